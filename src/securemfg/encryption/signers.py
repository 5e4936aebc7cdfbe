"""Keys that sign, and the public keys that verify. `open_signer` is the only place where a signer's text is understood.

    ed25519:PATH              a local key: PKCS #8 PEM without a password, 0600; as a pinned key: its public PEM
    ecdsa:PATH                the same on P-256 or P-384, the kinds that the public model-signing verifier accepts too
    aws-kms:ARN               an asymmetric key of AWS KMS (ECC_NIST_P256 or ECC_NIST_P384, SIGN_VERIFY)
    vault-transit:MOUNT/NAME  a transit key of type ed25519, ecdsa-p256 or ecdsa-p384

Who signs needs the key; who verifies needs only its public half, pinned in the settings. A signature names a key and
never supplies one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm

from securemfg.encryption.keys import KeyServices, read_private, write_private
from securemfg.encryption.target import replacing
from securemfg.errors import ConfigError, EncryptionError, KeyUnavailable
from securemfg.settings import SIGNER_KINDS, check_signer

PublicKey: TypeAlias = Ed25519PublicKey | ec.EllipticCurvePublicKey
PrivateKey: TypeAlias = Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_MAX_PEM: Final = 1 << 16  # bytes
_HASHES: Final[dict[str, HashAlgorithm]] = {"secp256r1": SHA256(), "secp384r1": SHA384()}


class VerifyingKey:
    """A public key, and the name by which signatures ask for it."""

    def __init__(self, public: PublicKey, name: str) -> None:
        if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name not in _HASHES:
            raise KeyUnavailable(f"{name} is on curve {public.curve.name}: use P-256, P-384 or Ed25519")
        self.public = public
        self.name = name
        self.pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.hint = hashlib.sha256(self.pem).hexdigest()  # as OpenSSF model-signing names it

    def __repr__(self) -> str:
        return f"VerifyingKey({self.name}, {self.hint[:16]})"

    @property
    def digest(self) -> HashAlgorithm | None:
        """What ECDSA signs by, or None for Ed25519, which takes the message itself."""
        return _HASHES[self.public.curve.name] if isinstance(self.public, ec.EllipticCurvePublicKey) else None

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (ECDSA: DER) is this key's over `message`."""
        try:
            if isinstance(self.public, Ed25519PublicKey):
                self.public.verify(signature, message)
            else:
                self.public.verify(signature, message, ec.ECDSA(_HASHES[self.public.curve.name]))
        except InvalidSignature:
            return False
        return True


class Signer(Protocol):
    """Signs messages with one key."""

    def verifying_keys(self) -> Sequence[VerifyingKey]:
        """The public halves of every version that may have signed; the newest first. Raises KeyUnavailable."""
        ...

    def sign(self, message: bytes) -> tuple[bytes, VerifyingKey]:
        """The signature (ECDSA: DER) over `message`, and the key that made it. Raises KeyUnavailable."""
        ...


class LocalSigner:
    """A private key in a file. Whoever reads the file signs as its owner."""

    def __init__(self, private: PrivateKey, name: str) -> None:
        self._private = private
        self._key = VerifyingKey(private.public_key(), name)

    def __repr__(self) -> str:
        return f"LocalSigner({self._key.name}, {self._key.hint[:16]})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a signing key cannot be pickled or copied: hand over its text and open it there")

    def verifying_keys(self) -> Sequence[VerifyingKey]:
        return (self._key,)

    def sign(self, message: bytes) -> tuple[bytes, VerifyingKey]:
        if isinstance(self._private, Ed25519PrivateKey):
            return self._private.sign(message), self._key
        return self._private.sign(message, ec.ECDSA(_HASHES[self._private.curve.name])), self._key


def checked(signature: bytes, message: bytes, key: VerifyingKey, origin: str) -> tuple[bytes, VerifyingKey]:
    """What a service gave as a signature, verified: a wrong one would be noticed only by readers."""
    if not key.verifies(signature, message):
        raise KeyUnavailable(f"the signature that {key.name} gave ({origin}) does not verify: nothing was signed")
    return signature, key


def open_signer(
    text: str, *, folder: Path | None = None, origin: str = "argument", services: KeyServices | None = None
) -> Signer:
    """The signer that `text` names. No service is asked before it signs. Raises ConfigError, KeyUnavailable."""
    kind, rest = _parts(text, origin)
    if kind in {"ed25519", "ecdsa"}:
        path = _place(rest, folder)
        private = _private(path, origin)
        _same_kind(private, kind, path, origin)
        return LocalSigner(private, text)
    return _service(kind, rest, origin, services)


def open_pinned(
    text: str, *, folder: Path | None = None, origin: str = "argument", services: KeyServices | None = None
) -> Sequence[VerifyingKey]:
    """The public keys that `text` pins: a PEM file, or what the service says. Raises ConfigError, KeyUnavailable."""
    kind, rest = _parts(text, origin)
    if kind not in {"ed25519", "ecdsa"}:
        return _service(kind, rest, origin, services).verifying_keys()
    path = _place(rest, folder)
    public = _public(path, origin)
    _same_kind(public, kind, path, origin)
    return (VerifyingKey(public, text),)


def create_signing_key(private: Path, public: Path | None = None, *, kind: str = "ed25519") -> LocalSigner:
    """Make a new signing key (PKCS #8, no password, 0600), and its public PEM if a place is named.

    Raises EncryptionError when one exists, ConfigError for another kind than ed25519 and ecdsa (P-256).
    """
    made: PrivateKey
    if kind == "ed25519":
        made = Ed25519PrivateKey.generate()
    elif kind == "ecdsa":
        made = ec.generate_private_key(ec.SECP256R1())
    else:
        raise ConfigError(f"a local signing key is of kind 'ed25519' or 'ecdsa', not {kind!r}")
    signer = LocalSigner(made, f"{kind}:{private}")
    pem = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if public is None:
        write_private(private, pem)
        return signer
    try:
        with replacing(public, mode=0o644, durable=True, overwrite=False) as fd:
            with open(fd, "wb", closefd=False) as file:
                file.write(signer.verifying_keys()[0].pem)
            write_private(private, pem)
    except OSError as error:
        raise EncryptionError(f"{public} cannot be written: {error.strerror}") from error
    return signer


# -- texts and files --------------------------------------------------------------------------------------------------


def _parts(text: str, origin: str) -> tuple[str, str]:
    try:
        check_signer(text)
    except ValueError as error:
        raise ConfigError(f"a signer {error} ({origin})") from None
    kind, _, rest = text.partition(":")
    return kind, rest


def _service(kind: str, rest: str, origin: str, services: KeyServices | None) -> Signer:
    services = services or KeyServices()
    if kind == "aws-kms":
        from securemfg.encryption.aws_kms import kms_client
        from securemfg.encryption.kms_signer import AwsKmsSigner

        return AwsKmsSigner(rest, origin=origin, client=services.kms or kms_client)
    from securemfg.encryption.transit_signer import VaultTransitSigner

    if services.vault is None:
        raise ConfigError(f"signer 'vault-transit:{rest}' ({origin}) needs a Vault: set vault.address")
    return VaultTransitSigner(rest, vault=services.vault, origin=origin)


def _place(text: str, folder: Path | None) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() or folder is None else folder / path


def _private(path: Path, origin: str) -> PrivateKey:
    size = path.stat().st_size if path.is_file() else 0
    if size > _MAX_PEM:
        raise KeyUnavailable(f"{path} is too large for a key ({origin})")
    pem = read_private(path, size, origin=origin)
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnavailable(f"{path} holds no private key in PEM without a password ({origin}): {error}") from error
    if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise KeyUnavailable(f"{path} holds a key that cannot sign models ({origin}): use Ed25519, P-256 or P-384")
    return key


def _public(path: Path, origin: str) -> PublicKey:
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            pem = file.read(_MAX_PEM)
    except OSError as error:
        raise KeyUnavailable(f"pinned key {path} cannot be read ({origin}): {error.strerror}") from error
    if mode & 0o022:
        raise KeyUnavailable(f"pinned key {path} can be changed by others ({origin}): chmod go-w {path}")
    if b"PRIVATE KEY" in pem:
        raise KeyUnavailable(f"pinned key {path} is a private key ({origin}): name its public half, and keep that one")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnavailable(f"pinned key {path} is no public key in PEM ({origin}): {error}") from error
    if not isinstance(key, Ed25519PublicKey | ec.EllipticCurvePublicKey):
        raise KeyUnavailable(f"pinned key {path} ({origin}) is of no kind that signs models: Ed25519, P-256 or P-384")
    return key


def _same_kind(key: PrivateKey | PublicKey, kind: str, path: Path, origin: str) -> None:
    found = "ed25519" if isinstance(key, Ed25519PrivateKey | Ed25519PublicKey) else "ecdsa"
    if found != kind:
        raise ConfigError(f"{path} holds a key of kind {found}: write '{found}:{path}' ({origin})")


__all__ = [
    "SIGNER_KINDS",
    "LocalSigner",
    "Signer",
    "VerifyingKey",
    "create_signing_key",
    "open_pinned",
    "open_signer",
]
