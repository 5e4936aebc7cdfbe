"""`rsa:PATH.pem`: an offline key for break-glass escrow, in the format of the specification's raw RSA keyring.

The public half wraps, so the private half can lie in a safe: with it, and only then, the messages can be opened. The
name is taken from the public key, so both halves have the same. RSA-OAEP with SHA-256 (RFC 8017; NIST SP 800-56B).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from securemfg.encryption.fate import Fate
from securemfg.encryption.message import Context, EncryptedDataKey
from securemfg.errors import DecryptionError, KeyUnavailable

PROVIDER: Final = "securemfg-rsa"
_SMALLEST: Final = 3072  # bits (NIST SP 800-57: beyond 2030)
_LARGEST: Final = 16384  # bits: a key file is not to keep us busy
_OAEP: Final = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def rsa_name(public: rsa.RSAPublicKey) -> str:
    """The first 16 hex of SHA-256 over the public key's SubjectPublicKeyInfo."""
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


class RsaKey:
    """Wraps with the public half. Cannot read: see `RsaPrivateKey`."""

    def __init__(self, public: rsa.RSAPublicKey, origin: str = "argument") -> None:
        if not _SMALLEST <= public.key_size <= _LARGEST:
            raise KeyUnavailable(
                f"the RSA key has {public.key_size} bits ({origin}): {_SMALLEST} to {_LARGEST} are taken"
            )
        self._public = public
        self.name = rsa_name(public)
        self.recipient = f"{PROVIDER}/{self.name}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({PROVIDER}/{self.name})"

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:  # noqa: ARG002 - RSA-OAEP binds no context;
        # the message's own tags do, under the data key
        return EncryptedDataKey(PROVIDER, self.name.encode(), self._public.encrypt(data_key, _OAEP))

    def destroy(self, *, days: int) -> list[Fate]:  # noqa: ARG002
        return [
            Fate.not_provable(
                f"escrow key {self.recipient}", "its private half lies wherever it was put: destroy it there"
            )
        ]


class RsaPrivateKey(RsaKey):
    """Both halves."""

    def __init__(self, private: rsa.RSAPrivateKey, origin: str = "argument") -> None:
        super().__init__(private.public_key(), origin)
        self._private = private

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key cannot be pickled or copied: hand over its key text and open it there")

    def matches(self, edk: EncryptedDataKey) -> bool:
        return edk.provider == PROVIDER and edk.info == self.name.encode()

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:  # noqa: ARG002 - see wrap
        try:
            return self._private.decrypt(edk.ciphertext, _OAEP)
        except ValueError:
            raise DecryptionError(f"key {PROVIDER}/{self.name} does not open it: changed, or another key") from None


def open_rsa(pem: bytes, path: Path, origin: str) -> RsaKey:
    """The key in a PEM file: public, or private and then not protected by a password. Raises KeyUnavailable."""
    try:
        if b"PRIVATE KEY" in pem:
            private = serialization.load_pem_private_key(pem, password=None)
            if isinstance(private, rsa.RSAPrivateKey):
                return RsaPrivateKey(private, origin)
        else:
            public = serialization.load_pem_public_key(pem)
            if isinstance(public, rsa.RSAPublicKey):
                return RsaKey(public, origin)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnavailable(f"{path} holds no RSA key that can be read ({origin}): {error}") from error
    raise KeyUnavailable(f"{path} holds a key of another kind ({origin}): an RSA key is wanted")
