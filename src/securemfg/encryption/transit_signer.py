"""`vault-transit:MOUNT/NAME` as a signer: a transit key of type ed25519, ecdsa-p256 or ecdsa-p384.

Rights needed: `update` on MOUNT/sign/NAME and `read` on MOUNT/keys/NAME to sign; `read` on MOUNT/keys/NAME to verify,
which is local. The newest version signs, and each one from `min_decryption_version` on verifies.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from securemfg.encryption.signers import PublicKey, VerifyingKey, checked
from securemfg.encryption.vault_transit import PATH, Requests
from securemfg.errors import ConfigError, CredentialError, KeyUnavailable

_TYPES: Final = {"ed25519": None, "ecdsa-p256": "sha2-256", "ecdsa-p384": "sha2-384"}  # type -> what it hashes with
_SIGNATURE: Final = re.compile(r"vault:v(?P<version>\d+):(?P<signature>[A-Za-z0-9+/=]+)")


class VaultTransitSigner:
    """One transit key. `vault` gives the logged-in client, on first use."""

    def __init__(self, path: str, *, vault: Callable[[], Requests], origin: str = "argument") -> None:
        match = PATH.fullmatch(path)
        if match is None:
            raise ConfigError(f"a transit signer must be like 'vault-transit:transit/NAME', got {path!r} ({origin})")
        self.path = path
        self._mount, self._name = match["mount"], match["name"]
        self._vault = vault
        self._origin = origin
        self._lock = threading.Lock()
        self._kind = ""
        self._versions: dict[int, VerifyingKey] = {}

    def __repr__(self) -> str:
        return f"VaultTransitSigner({self.path})"

    def verifying_keys(self) -> Sequence[VerifyingKey]:
        known = self._known()
        return tuple(known[version] for version in sorted(known, reverse=True))

    def sign(self, message: bytes) -> tuple[bytes, VerifyingKey]:
        known = self._known()
        body: dict[str, Any] = {"input": base64.b64encode(message).decode()}
        hashed = _TYPES[self._kind]
        if hashed is not None:
            body |= {"hash_algorithm": hashed, "marshaling_algorithm": "asn1"}
        data = self._ask("post", f"{self._mount}/sign/{self._name}", body, "transit sign", "update")
        match = _SIGNATURE.fullmatch(str(data.get("signature", "")))
        if match is None:
            raise KeyUnavailable(f"Vault gave no signature for {self.path} ({self._origin})")
        version = int(match["version"])
        if version not in known:  # it was rotated since
            known = self._known(again=True)
        if version not in known:
            raise KeyUnavailable(
                f"Vault signed with version {version} of {self.path}, whose public key it does not give"
            )
        try:
            signature = base64.b64decode(match["signature"], validate=True)
        except binascii.Error:
            signature = b""
        return checked(signature, message, known[version], self._origin)

    def _known(self, *, again: bool = False) -> dict[int, VerifyingKey]:
        with self._lock:
            if again or not self._versions:
                data = self._ask("get", f"{self._mount}/keys/{self._name}", None, "transit public key", "read")
                kind = str(data.get("type", ""))
                if kind not in _TYPES:
                    raise KeyUnavailable(
                        f"transit key {self.path} ({self._origin}) is of type {kind!r}: a signer needs "
                        f"{', '.join(_TYPES)}"
                    )
                keys = data.get("keys")
                first = int(data.get("min_decryption_version", 1) or 1)
                self._kind = kind
                self._versions = {
                    int(version): VerifyingKey(self._public(kind, entry), f"vault-transit:{self.path} (v{version})")
                    for version, entry in (keys.items() if isinstance(keys, Mapping) else ())
                    if int(version) >= first
                }
            return self._versions

    def _public(self, kind: str, entry: Any) -> PublicKey:
        text = str(entry.get("public_key", "")) if isinstance(entry, Mapping) else ""
        try:
            if kind == "ed25519":
                return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
            public = load_pem_public_key(text.encode())
        except ValueError as error:  # binascii.Error is one
            raise KeyUnavailable(f"Vault gave no public key for {self.path} ({self._origin})") from error
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise KeyUnavailable(f"Vault gave another kind of key for {self.path} than {kind} ({self._origin})")
        return public

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, what: str, right: str) -> Mapping[str, Any]:
        try:
            reply = self._vault().request(method, path, body, what=what)
        except CredentialError as error:
            raise KeyUnavailable(
                f"signer {self.path} cannot be used ({self._origin}): {error}; the policy needs {right} on {path}"
            ) from error
        data = reply.get("data")
        if not isinstance(data, Mapping):
            raise KeyUnavailable(f"Vault gave no data for {self.path} ({self._origin})")
        return data
