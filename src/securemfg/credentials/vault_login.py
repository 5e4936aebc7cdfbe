"""How to log in to Vault: where the secret lies for each method, and what its refusal means.

Secrets come from files and are read at each login, so that a freshly delivered one is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from securemfg._secret import Secret
from securemfg.errors import ConfigError, CredentialDenied, CredentialError
from securemfg.settings import VaultAuth

__all__ = ["Auth", "Call", "Login", "Reply", "login_for"]

_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")  # where Kubernetes puts it
_REFUSED: Final = frozenset({400, 401, 403, 404})


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """Vault's answer: the HTTP status and the JSON body, {} when there was none."""

    status: int
    body: Mapping[str, Any] = field(repr=False)

    @property
    def data(self) -> Mapping[str, Any]:
        return self.body.get("data") or {}

    @property
    def errors(self) -> str:
        """What the server says went wrong, in one line."""
        found = self.body.get("errors") or self.body.get("warnings") or []
        return "; ".join(" ".join(str(item).split()) for item in found)[:300] or f"HTTP {self.status}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Auth:
    """A token as the login gave it. `ttl` in seconds; 0 never ends."""

    token: Secret
    ttl: float
    renewable: bool
    own: bool = True  # made by this login, so ours to revoke


class Call(Protocol):
    """One request, not logged in unless a token is given. Raises CredentialError when Vault cannot be reached."""

    def __call__(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: Secret | None = None
    ) -> Reply: ...


class Login(Protocol):
    """A way in. A refusal of a `sticky` one stands until its `fingerprint` changes: asking again could lock it out."""

    sticky: bool

    def fingerprint(self) -> bytes:
        """A digest of the secret as it is in its file now. Raises CredentialError when it cannot be read."""
        ...

    def __call__(self, call: Call, /) -> Auth:
        """Log in. Raises CredentialDenied when the server refuses, CredentialError when it cannot be asked."""
        ...


def login_for(auth: VaultAuth, origin: Callable[[str], str]) -> Login:
    """The login that `vault.auth` describes. Raises ConfigError for what its method lacks."""
    place = origin("vault.auth")

    def needed(setting: str) -> Any:
        value = getattr(auth, setting)
        if value is None:
            raise ConfigError(
                f"vault.auth method {auth.method!r} needs {setting!r} ({place}): set 'vault.auth.{setting}'"
            )
        return value

    mount = (auth.mount or auth.method).strip("/")
    if auth.method == "approle":
        return _AppRole(mount, str(needed("role_id")), needed("secret_id_file"), auth.secret_id_wrapped, place)
    if auth.method == "token":
        return _TokenFile(needed("token_file"), place)
    if auth.method == "cert":
        return _Certificate(mount, auth.role, place)
    jwt_file = auth.jwt_file or (_SERVICE_ACCOUNT if auth.method == "kubernetes" else needed("jwt_file"))
    return _Jwt(mount, str(needed("role")), jwt_file, place)


def _read(file: Path, what: str, place: str) -> Secret:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise CredentialError(f"{what} in {file} ({place}) cannot be read: {why}; deliver it there") from error
    if not text:
        raise CredentialError(f"{what} in {file} ({place}) is empty: deliver it there")
    return Secret(text)


def _digest(secret: Secret) -> bytes:
    return hashlib.sha256(secret.reveal().encode()).digest()


def _auth(reply: Reply, mount: str, refusal: str) -> Auth:
    found = reply.body.get("auth") or {}
    if reply.status == 200 and found.get("client_token"):
        return Auth(
            token=Secret(str(found["client_token"])),
            ttl=float(found.get("lease_duration") or 0),
            renewable=bool(found.get("renewable")),
        )
    if reply.status in _REFUSED:
        raise CredentialDenied(f"{refusal} ({reply.errors})")
    raise CredentialError(f"Vault's login at auth/{mount} gave no token: {reply.errors}")


class _AppRole:
    sticky = True

    def __init__(self, mount: str, role_id: str, file: Path, wrapped: bool, place: str) -> None:
        self._mount, self._role_id, self._file, self._wrapped, self._place = mount, role_id, file, wrapped, place
        self._unwrapped: tuple[bytes, Secret] | None = None  # a wrapping token opens once; the secret id serves on

    def fingerprint(self) -> bytes:
        return _digest(_read(self._file, "the secret id", self._place))

    def __call__(self, call: Call, /) -> Auth:
        secret_id = _read(self._file, "the secret id", self._place)
        if self._wrapped:
            secret_id = self._open(secret_id, call)
        body = {"role_id": self._role_id, "secret_id": secret_id.reveal()}
        reply = call("post", f"auth/{self._mount}/login", body)
        return _auth(
            reply,
            self._mount,
            f"Vault refused the secret id from {self._file} ({self._place}): it is used up, expired, or of another "
            "role; deliver a new one",
        )

    def _open(self, wrapping: Secret, call: Call) -> Secret:
        """The secret id behind a wrapping token, if a role made it: another origin means it was swapped on the way."""
        mark = _digest(wrapping)
        if self._unwrapped is not None and self._unwrapped[0] == mark:
            return self._unwrapped[1]
        spent = CredentialDenied(
            f"the wrapped secret id in {self._file} ({self._place}) cannot be opened: it expired, or somebody else "
            "has opened it already; deliver a new one, and look into who did"
        )
        seen = call("post", "sys/wrapping/lookup", {"token": wrapping.reveal()})
        if seen.status in _REFUSED:
            raise spent
        made_at = str(seen.data.get("creation_path") or "")
        role = f"auth/{self._mount}/role/"
        if seen.status == 200 and not (made_at.startswith(role) and made_at.endswith("/secret-id")):
            raise CredentialDenied(
                f"the wrapping token in {self._file} ({self._place}) was made at {made_at!r}, not by {role}: "
                "it is not a wrapped secret id; find out who put it there"
            )
        reply = call("post", "sys/wrapping/unwrap", None, token=wrapping)
        secret_id = reply.data.get("secret_id")
        if reply.status in _REFUSED or (reply.status == 200 and not secret_id):
            raise spent
        if reply.status != 200:
            raise CredentialError(f"Vault did not open the wrapped secret id in {self._file}: {reply.errors}")
        self._unwrapped = (mark, Secret(str(secret_id)))
        return self._unwrapped[1]


class _TokenFile:
    sticky = True

    def __init__(self, file: Path, place: str) -> None:
        self._file, self._place = file, place

    def fingerprint(self) -> bytes:
        return _digest(_read(self._file, "the token", self._place))

    def __call__(self, call: Call, /) -> Auth:
        token = _read(self._file, "the token", self._place)
        reply = call("get", "auth/token/lookup-self", None, token=token)
        if reply.status in _REFUSED:
            raise CredentialDenied(
                f"Vault refused the token in {self._file} ({self._place}): it expired or was revoked; deliver a new one"
            )
        if reply.status != 200:
            raise CredentialError(f"Vault could not look up the token in {self._file}: {reply.errors}")
        return Auth(
            token=token,
            ttl=float(reply.data.get("ttl") or 0),
            renewable=bool(reply.data.get("renewable")),
            own=False,
        )


class _Jwt:
    """The `jwt` and `kubernetes` methods: a signed token of the platform for one of Vault's."""

    sticky = False  # the platform rotates the file, and a role may be made later

    def __init__(self, mount: str, role: str, file: Path, place: str) -> None:
        self._mount, self._role, self._file, self._place = mount, role, file, place

    def fingerprint(self) -> bytes:
        return _digest(_read(self._file, "the JWT", self._place))

    def __call__(self, call: Call, /) -> Auth:
        jwt = _read(self._file, "the JWT", self._place)
        reply = call("post", f"auth/{self._mount}/login", {"role": self._role, "jwt": jwt.reveal()})
        return _auth(
            reply,
            self._mount,
            f"Vault refused the JWT in {self._file} for role {self._role!r} ({self._place}): check its expiry, "
            "audience and the role's bounds",
        )


class _Certificate:
    """The `cert` method: the session's client certificate is the proof."""

    sticky = False

    def __init__(self, mount: str, role: str | None, place: str) -> None:
        self._mount, self._role, self._place = mount, role, place

    def fingerprint(self) -> bytes:
        return b""

    def __call__(self, call: Call, /) -> Auth:
        reply = call("post", f"auth/{self._mount}/login", {"name": self._role} if self._role else {})
        return _auth(
            reply,
            self._mount,
            f"Vault refused the client certificate at auth/{self._mount} ({self._place}): check that the session "
            "carries one, its expiry and the role's authority",
        )
