"""`vault-transit:MOUNT/NAME`: data keys wrapped by a transit key of Vault or OpenBao, bound to the encryption context.

Rights needed: `update` on MOUNT/datakey/plaintext/NAME to write, on MOUNT/decrypt/NAME to read, on MOUNT/encrypt/NAME
to be a further recipient. The serialized context goes along as associated data; a server or key type that ignores it is
refused at first use. Rewrapping is decrypt, then encrypt: the server's own rewrap refuses associated data.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from securemfg.encryption.fate import Fate
from securemfg.encryption.message import KEY_LENGTH, Context, EncryptedDataKey, serialize_context
from securemfg.errors import ConfigError, CredentialDenied, CredentialError, DecryptionError, KeyUnavailable

PROVIDER: Final = "vault-transit"
PATH: Final = re.compile(r"(?P<mount>[\w.-]+(?:/[\w.-]+)*)/(?P<name>[\w.-]+)")
_OTHER: Final = b"securemfg: not the context that it was wrapped with"


class Requests(Protocol):
    """What is needed of a Vault: one logged-in request."""

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, what: str = ...
    ) -> Mapping[str, Any]: ...


class VaultTransitKey:
    """One transit key. `vault` gives the logged-in client, on first use."""

    remote: Final = True  # unwrapping asks the service

    def __init__(self, path: str, *, vault: Callable[[], Requests], origin: str = "argument") -> None:
        match = PATH.fullmatch(path)
        if match is None:
            raise ConfigError(f"a transit key must be like 'vault-transit:transit/NAME', got {path!r} ({origin})")
        self.path = path
        self.recipient = f"{PROVIDER}/{path}"
        self._mount, self._name = match["mount"], match["name"]
        self._origin = origin
        self._vault = vault
        self._binds = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"VaultTransitKey({self.path})"

    def generate(self, context: Context) -> tuple[bytes, EncryptedDataKey]:
        """A new data key and its wrapping, in one call. Raises KeyUnavailable."""
        body = {"bits": KEY_LENGTH * 8, "associated_data": self._aad(context)}
        data = self._call("datakey/plaintext", body)
        edk = self._wrapped(data)
        self._must_bind(edk)
        return self._plaintext(data), edk

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:
        body = {"plaintext": base64.b64encode(data_key).decode(), "associated_data": self._aad(context)}
        edk = self._wrapped(self._call("encrypt", body))
        self._must_bind(edk)
        return edk

    def matches(self, edk: EncryptedDataKey) -> bool:
        return edk.provider == PROVIDER and edk.info == self.path.encode()

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        self._must_bind(edk)
        return self._open(edk, self._aad(context))

    def destroy(self, *, days: int) -> list[Fate]:  # noqa: ARG002 - Vault deletes at once
        """Delete the key in all its versions.

        Rights needed besides: read and delete on MOUNT/keys/NAME, update on MOUNT/keys/NAME/config.
        """
        place = f"{self._mount}/keys/{self._name}"
        known = self._ask("get", place, None).get("data") or {}
        self._ask("post", f"{place}/config", {"deletion_allowed": True})
        self._ask("delete", place, None)
        try:
            self._vault().request("get", place, what="a look whether the transit key is gone")
        except CredentialDenied:  # not there
            fates = [
                Fate.done(
                    self.path, f"deleted in all {known.get('latest_version', '?')} versions; Vault has it no more"
                )
            ]
        except CredentialError as error:
            fates = [Fate.failed(self.path, f"Vault accepted the deletion, and cannot say that it is gone: {error}")]
        else:
            fates = [Fate.failed(self.path, "Vault accepted the deletion and still has it")]
        if known.get("exportable") or known.get("allow_plaintext_backup"):
            fates.append(
                Fate.not_provable(f"exports of {self.path}", "the key could be exported or backed up in the clear")
            )
        fates.append(Fate.not_provable(f"backups of {self.path}", "snapshots and replicas of Vault's own storage"))
        return fates

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
        try:
            return self._vault().request(method, path, body, what="destroying a transit key")
        except CredentialError as error:
            raise KeyUnavailable(f"key {self.path} cannot be destroyed ({self._origin}): {error}") from error

    def _open(self, edk: EncryptedDataKey, associated_data: str) -> bytes:
        try:
            ciphertext = edk.ciphertext.decode("ascii")
        except UnicodeDecodeError:
            raise DecryptionError(f"key {self.path} does not open it: not a ciphertext of Vault's") from None
        return self._plaintext(self._call("decrypt", {"ciphertext": ciphertext, "associated_data": associated_data}))

    def _must_bind(self, edk: EncryptedDataKey) -> None:
        """Once per key: opening with other associated data must fail, else messages could be swapped unseen."""
        with self._lock:
            if self._binds:
                return
            try:
                self._open(edk, base64.b64encode(_OTHER).decode())
            except DecryptionError:
                self._binds = True
                return
        raise KeyUnavailable(
            f"transit key {self.path} ({self._origin}) ignores associated data, so it cannot bind a message to its "
            "context: use a key of type aes256-gcm96 on a server that supports it"
        )

    @staticmethod
    def _aad(context: Context) -> str:
        # an empty context still binds: to the fact that there is none
        return base64.b64encode(b"securemfg" + serialize_context(context)).decode()

    def _call(self, operation: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        path = f"{self._mount}/{operation}/{self._name}"
        try:
            reply = self._vault().request("post", path, body, what=f"transit {operation}")
        except CredentialDenied as error:
            raise KeyUnavailable(
                f"key {self.path} cannot be used ({self._origin}): {error}; the policy needs update on {path}"
            ) from error
        except CredentialError as error:
            if operation == "decrypt" and _is_mismatch(str(error)):
                raise DecryptionError(
                    f"key {self.path} does not open it: changed, or another key or context"
                ) from error
            raise KeyUnavailable(f"key {self.path} cannot be used ({self._origin}): {error}") from error
        data = reply.get("data")
        if not isinstance(data, Mapping):
            raise KeyUnavailable(f"Vault gave no data for key {self.path}")
        return data

    def _plaintext(self, data: Mapping[str, Any]) -> bytes:
        try:
            data_key = base64.b64decode(str(data.get("plaintext", "")), validate=True)
        except binascii.Error:
            data_key = b""
        if len(data_key) != KEY_LENGTH:
            raise KeyUnavailable(f"Vault gave a data key of {len(data_key)} bytes for {self.path}, not {KEY_LENGTH}")
        return data_key

    def _wrapped(self, data: Mapping[str, Any]) -> EncryptedDataKey:
        ciphertext = str(data.get("ciphertext", ""))
        if not ciphertext.startswith("vault:v"):
            raise KeyUnavailable(f"Vault gave no ciphertext for key {self.path}")
        return EncryptedDataKey(PROVIDER, self.path.encode(), ciphertext.encode("ascii"))


def _is_mismatch(text: str) -> bool:
    """Whether Vault's refusal says that the ciphertext itself is at fault, not the server or the key's rules."""
    return "message authentication failed" in text or "invalid ciphertext" in text or "no prefix" in text
