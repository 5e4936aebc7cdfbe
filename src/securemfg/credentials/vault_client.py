"""A logged-in connection to one Vault, by hvac: no redirects, nothing ambient, a total deadline, one token per process.

Rights needed: `auth/token/lookup-self`, `renew-self` and `revoke-self`, which Vault's `default` policy gives.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from securemfg._secret import Secret
from securemfg.credentials.vault_login import Auth, Login, Reply, login_for
from securemfg.credentials.vault_session import session as strict_session
from securemfg.errors import ConfigError, CredentialDenied, CredentialError
from securemfg.forking import forget_after_fork
from securemfg.settings import VaultSettings

if TYPE_CHECKING:
    import requests

__all__ = ["VaultClient"]

# 412: a standby lags behind; 429: quota, or just unsealed; 472, 473: standbys; 500, 502, 503: starting, sealed, proxies
_AGAIN: Final = frozenset({412, 429, 472, 473, 500, 502, 503})
_MOST_BODY: Final = 4 << 20  # bytes of a reply
_CONNECT: Final = 5.0  # seconds for one attempt to connect, so that a deadline leaves room for a second
_SOFT: Final = 0.6  # of a token's life: before the 2/3 of any lease that hangs on it
_SHORTENED: Final = 0.9  # a renewal below this part of what was asked says that the maximum TTL is near


@dataclass(frozen=True, kw_only=True, slots=True)
class _Token:
    value: Secret
    generation: int
    own: bool
    renewable: bool
    life: float  # seconds, as first granted
    soft: float  # clock times
    end: float


class VaultClient:
    """Requests to one Vault, logged in as the settings say. Connects and logs in on first use; safe across forks.

    `session` makes the HTTP session (built in: TLS 1.3, plain http on loopback only). `clock` is monotonic seconds;
    `origin` says where a dotted setting came from. Raises ConfigError for what the login method lacks.
    """

    def __init__(
        self,
        settings: VaultSettings,
        *,
        origin: Callable[[str], str] = lambda _: "built-in",
        session: Callable[[], requests.Session] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._origin = origin
        self._session = session
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._timeout = settings.timeout.total_seconds()
        self._login: Login = login_for(settings.auth, origin)
        self._generation = 0
        self._refused: tuple[bytes, CredentialDenied] | None = None
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """In a forked child: no token, socket or lock of the parent's. A shared socket would mix up replies."""
        self._lock = threading.RLock()
        self._token: _Token | None = None
        self._replaced: list[_Token] = []
        self._alive: set[int] = set()  # generations known to live in spite of a 403
        self._failed: tuple[float, CredentialError] | None = None
        self._adapter: Any = None

    def __repr__(self) -> str:
        return f"<VaultClient {self._settings.address}>"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a VaultClient cannot be pickled: make one from the settings there")

    @property
    def address(self) -> str:
        """Where Vault is. Raises ConfigError when no setting says so."""
        if self._settings.address is None:
            raise ConfigError(
                "no setting says where Vault is: set 'vault.address', such as https://vault.plant.internal:8200 "
                f"({self._origin('vault')})"
            )
        return self._settings.address.rstrip("/")

    # -- requests

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, what: str = "a request"
    ) -> Mapping[str, Any]:
        """The JSON reply of one logged-in request, {} when it has none. `path` is below /v1/.

        `what` names the request in errors. Raises CredentialDenied (policy, or nothing there) or CredentialError
        (out of reach, or refused as malformed).
        """
        reply, _ = self.authorized(method, path, body, what=what)
        if reply.status in {200, 202, 204}:
            return reply.body
        kind = CredentialDenied if reply.status == 404 else CredentialError
        raise kind(f"Vault at {self.address} refused {what} at {path!r}: {reply.errors}")

    def check(self) -> str:
        """Whether the login works: who it is, its policies and how long its token lives, in one line.

        A wrapped secret id is left closed, because it opens only once: then only whether Vault is up. Raises
        CredentialDenied or CredentialError.
        """
        if self._settings.auth.secret_id_wrapped:
            reply = self._send("get", "sys/health", deadline=self._clock() + self._timeout)
            if reply.status != 200:
                raise CredentialError(f"Vault at {self.address} is not ready: HTTP {reply.status} ({reply.errors})")
            return f"{self.address} is up; its wrapped secret id was not tried, because it opens only once"
        found = self.request("get", "auth/token/lookup-self", what="a look at the login's token").get("data") or {}
        ttl = int(found.get("ttl") or 0)
        ends = f"ends in {ttl} s" if ttl else "never ends"
        policies = ", ".join(sorted({*(found.get("policies") or ()), *(found.get("identity_policies") or ())}))
        return f"{self.address}: logged in by {self._settings.auth.method}, policies {policies}; the token {ends}"

    def authorized(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        what: str,
        timeout: float | None = None,
    ) -> tuple[Reply, int]:
        """(reply, generation of the token used). A 403 means policy when the token lives, else one new login."""
        deadline = self._clock() + (self._timeout if timeout is None else timeout)
        token = self._current(deadline)
        reply = self._send(method, path, body, token=token.value, deadline=deadline)
        if reply.status == 403 and not self._lives(token, deadline):
            token = self._current(deadline, dead=token)
            reply = self._send(method, path, body, token=token.value, deadline=deadline)
            if reply.status == 403:
                self._alive.add(token.generation)  # just made: it is the policy
        if reply.status == 403:
            raise CredentialDenied(
                f"Vault's policy does not allow {method.upper()} {path!r}, needed for {what}: {reply.errors}; "
                "give the right to the login's role"
            )
        return reply, token.generation

    def left(self, generation: int) -> float:
        """Seconds until the token of that generation ends, and all leases made with it; 0 when it has."""
        with self._lock:
            for token in (self._token, *self._replaced):
                if token is not None and token.generation == generation:
                    return max(0.0, token.end - self._clock())
        return 0.0

    def close(self, timeout: float = 2.0) -> None:
        """Revoke the tokens that this process's logins made, and with them their leases. Never raises."""
        end = self._clock() + timeout
        with self._lock:
            tokens = [token for token in (self._token, *self._replaced) if token is not None]
            self._token, self._replaced = None, []
            adapter = self._adapter
        for token in tokens:
            if token.own and token.end > self._clock():
                try:
                    self._send("post", "auth/token/revoke-self", {}, token=token.value, deadline=end)
                except Exception:  # noqa: BLE001, S112 - at the end of the process: it dies with its TTL
                    continue
        if adapter is not None:
            adapter.close()

    # -- the token

    def _current(self, deadline: float, *, dead: _Token | None = None) -> _Token:
        """A token to use, renewed or newly logged in when it is time. `dead` is one that no longer works."""
        asked = self._clock()
        with self._lock:
            if self._failed is not None and self._failed[0] >= asked:
                raise type(self._failed[1])(*self._failed[1].args) from self._failed[1]  # the one we waited for
            token = self._token
            if dead is not None and token is not None and token.generation == dead.generation:
                token = self._token = None
            now = self._clock()
            if token is not None and now < token.soft:
                return token
            if token is None or now >= token.end:
                return self._logged_in(deadline)
            try:
                return self._renewed(token, deadline)
            except CredentialError:
                # it still works for a while; try again when a third of the rest is over
                token = self._token = replace(token, soft=now + (token.end - now) / 3)
                return token

    def _renewed(self, token: _Token, deadline: float) -> _Token:
        if token.renewable:
            body = {"increment": int(token.life)}
            began = self._clock()
            reply = self._send("post", "auth/token/renew-self", body, token=token.value, deadline=deadline)
            auth = reply.body.get("auth") or {}
            got = float(auth.get("lease_duration") or 0)
            if reply.status == 200 and got >= _SHORTENED * token.life and not reply.body.get("warnings"):
                self._token = replace(token, soft=began + got * _SOFT, end=began + got)
                return self._token
        made = self._logged_in(deadline)  # overlap: the old one serves its leases until they are replaced
        self._replaced = [old for old in (*self._replaced, token) if old.end > self._clock()]
        return made

    def _logged_in(self, deadline: float) -> _Token:
        try:
            mark = self._login.fingerprint()
            if self._refused is not None and self._refused[0] == mark:
                raise CredentialDenied(*self._refused[1].args) from self._refused[1]
            began = self._clock()
            try:
                auth = self._login(lambda *args, **kw: self._send(*args, **kw, deadline=deadline))
            except CredentialDenied as denied:
                if self._login.sticky:
                    self._refused = (mark, denied)
                raise
        except CredentialError as error:
            self._failed = (self._clock(), error)
            raise
        self._generation += 1
        self._token = self._made(auth, began)
        return self._token

    def _made(self, auth: Auth, began: float) -> _Token:
        life = auth.ttl if auth.ttl > 0 else float("inf")
        return _Token(
            value=auth.token,
            generation=self._generation,
            own=auth.own,
            renewable=auth.renewable and life != float("inf"),
            life=life,
            soft=began + life * _SOFT,
            end=began + life,
        )

    def _lives(self, token: _Token, deadline: float) -> bool:
        """Whether a token that got a 403 is alive. Asked once per generation: it may cost one of the token's uses."""
        if token.generation in self._alive:
            return True
        reply = self._send("get", "auth/token/lookup-self", None, token=token.value, deadline=deadline)
        if reply.status == 200:
            self._alive.add(token.generation)
            return True
        return False

    # -- the wire

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        token: Secret | None = None,
        deadline: float,
    ) -> Reply:
        """One request, tried again until `deadline` while Vault is not ready. Raises CredentialError after that."""
        wait = 0.1
        while True:
            reply, trouble, asked_wait = self._tried(method, path, body, token, deadline)
            if reply is not None and (reply.status not in _AGAIN or "max TTL" in reply.errors):
                return reply  # a lease past its maximum TTL is a 500 too
            cause = trouble if reply is None else None
            pause = max(asked_wait, wait * (0.5 + self._draw() / 2))
            if self._clock() + pause >= deadline:
                why = _reason(trouble) if trouble is not None else _state(reply)
                raise CredentialError(
                    f"Vault at {self.address} ({self._origin('vault.address')}) could not be used: {why}; "
                    "check that it runs, is unsealed and can be reached"
                ) from cause
            self._sleep(pause)
            wait = min(wait * 2, 2.0)

    def _tried(
        self, method: str, path: str, body: Mapping[str, Any] | None, token: Secret | None, deadline: float
    ) -> tuple[Reply | None, Exception | None, float]:
        """(reply, else the connection's trouble, seconds Vault asks to wait)."""
        import requests

        left = max(0.05, deadline - self._clock())
        try:
            response = self._connected().request(
                method,
                f"/v1/{quote(path.strip('/'), safe='/')}",
                headers={"X-Vault-Token": token.reveal()} if token is not None else {},
                raise_exception=False,  # hvac has no class for 412, 472 and 473, and takes a redirect for a success
                json=body,
                timeout=(min(_CONNECT, left), left),
                stream=True,
            )
            with response:
                if 300 <= response.status_code < 400:
                    raise self._redirected(str(response.headers.get("Location", "")))
                raw = self._body(response, deadline)
        except requests.exceptions.SSLError as error:
            raise CredentialError(
                f"TLS to Vault at {self.address} ({self._origin('vault.address')}) failed: {_reason(error)}; check "
                f"its certificate and 'vault.ca_file' ({self._origin('vault.ca_file')})"
            ) from error
        except requests.exceptions.InvalidURL as error:
            raise ConfigError(
                f"'vault.address' is not an address: {self.address!r} ({self._origin('vault.address')})"
            ) from error
        except (requests.exceptions.RequestException, OSError) as error:
            return None, error, 0.0
        return self._reply(response.status_code, raw), None, _seconds(response.headers.get("Retry-After"))

    def _body(self, response: requests.Response, deadline: float) -> bytes:
        """The body, bounded in size and by the deadline: a read timeout alone lets a slow sender go on for ever."""
        raw = bytearray()
        for chunk in response.iter_content(1 << 16):
            raw += chunk
            if len(raw) > _MOST_BODY:
                raise CredentialError(f"the reply of Vault at {self.address} is larger than {_MOST_BODY >> 20} MiB")
            if self._clock() > deadline:
                raise TimeoutError("the reply was not complete in time")
        return bytes(raw)

    def _reply(self, status: int, raw: bytes) -> Reply:
        try:
            body = json.loads(raw) if raw.strip() else {}
        except ValueError:
            body = None
        if not isinstance(body, dict):
            if status < 400:
                raise CredentialError(
                    f"{self.address} ({self._origin('vault.address')}) does not speak Vault's API: check the address"
                )
            body = {}
        return Reply(status=status, body=body)

    def _redirected(self, location: str) -> CredentialError:
        place = urlsplit(location)
        return CredentialError(
            f"Vault at {self.address} ({self._origin('vault.address')}) redirects to "
            f"{place.scheme or 'another'}://{place.netloc}: not followed, the token would go along; if that is the "
            "active node, name it in 'vault.address'"
        )

    def _connected(self) -> Any:
        with self._lock:
            if self._adapter is None:
                from hvac.adapters import RawAdapter

                # not hvac.Client: it fills what it is not given from VAULT_TOKEN, ~/.vault-token and VAULT_CLIENT_CERT
                if self._session is not None:
                    made = self._session()
                else:
                    made = strict_session(ca_file=self._settings.ca_file, origin=self._origin("vault.address"))
                self._adapter = RawAdapter(
                    base_uri=self.address,
                    token=None,
                    verify=True,
                    allow_redirects=False,
                    session=made,
                    namespace=self._settings.namespace,
                )
            return self._adapter


def _seconds(header: str | None) -> float:
    try:
        return min(max(float(header or 0), 0.0), 3600.0)
    except ValueError:
        return 0.0


def _state(reply: Reply | None) -> str:
    status = reply.status if reply is not None else 0
    meaning = {503: "it is sealed or in maintenance", 429: "it asks to wait (quota or standby)"}.get(status)
    said = reply.errors if reply is not None else ""
    return f"{meaning} ({said})" if meaning else f"HTTP {status} ({said})"


def _reason(error: Exception | None) -> str:
    """The innermost cause in one line: requests and urllib3 wrap it several times."""
    seen: BaseException | None = error
    while seen is not None:
        inner = seen.__cause__ or seen.__context__ or getattr(seen, "reason", None)
        inner = inner or next((arg for arg in seen.args if isinstance(arg, BaseException)), None)
        if not isinstance(inner, BaseException):
            break
        seen = inner
    return f"{type(seen).__name__}: {' '.join(str(seen).split())}"[:300]
