"""The one place that every TLS handshake of Python's `ssl` passes, whichever library asks for it.

`ssl.SSLContext` is given its own `_wrap_socket` and `_wrap_bio`, both calling the C base. A context that
already exists is covered as well, and `ssl.SSLContext` stays the same class (replacing it makes its setters
recurse).

A context is changed only while one connection is made from it, under a lock, and put back: OpenSSL copies
versions, options and verification into the connection at that moment (SSL_new). So nothing remains to be
undone later, and one context may serve a strict host and one with a `floor = "1.2"` exception.

Not covered: `_ssl._SSLContext` used directly, and native stacks (libpq, gRPC, curl, pyOpenSSL). Sessions that
were handshaken before stay as they are.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from securemfg.errors import TlsRefused
from securemfg.transport.judgement import floor_of, judge_version
from securemfg.transport.observation import Activation, endpoint, note_refusal
from securemfg.transport.patching import Patch
from securemfg.transport.policy import UNIX
from securemfg.transport.reasons import explain, version_name

__all__ = ["HandshakeRefused", "exempt", "judged", "noted", "patches"]

_C_BASE: Final[Any] = ssl.SSLContext.__mro__[1]  # _ssl._SSLContext
_FIXED: Final = frozenset(  # protocols whose contexts have one version for good
    getattr(ssl, name) for name in ("PROTOCOL_TLSv1", "PROTOCOL_TLSv1_1", "PROTOCOL_TLSv1_2") if hasattr(ssl, name)
)
_OLD: Final = frozenset(
    {
        ssl.TLSVersion.MINIMUM_SUPPORTED,
        ssl.TLSVersion.SSLv3,
        ssl.TLSVersion.TLSv1,
        ssl.TLSVersion.TLSv1_1,
    }
)
_TRIES: Final = 8
_AGAIN: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_MARK: Final = "_securemfg_noted"  # on an error: the trails that know of it
_JUDGED: Final = "_securemfg_judged"  # on a connection: the policies it has passed


class HandshakeRefused(ssl.SSLError, TlsRefused):
    """A TLS connection that falls short of the policy. An SSLError too, so every library hands it on as one.

    It has two arguments, number and text: with one alone some libraries print only the number.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.reason = "SECUREMFG_REFUSED"
        self.library = "securemfg"


class _Exempt(threading.local):
    depth = 0


_exempt = _Exempt()
_lock = threading.Lock()  # a context may be shared by threads, and is changed for a moment


@contextmanager
def exempt() -> Iterator[None]:
    """Look without judging, in this thread: for the probe, which sends nothing."""
    _exempt.depth += 1
    try:
        yield
    finally:
        _exempt.depth -= 1


def patches(active: Callable[[], Sequence[Activation]]) -> list[Patch]:
    """What to change in `ssl`. `active` returns the policies in force at that moment."""
    return [
        Patch(ssl.SSLContext, "_wrap_socket", lambda before: _socket_wrapper(active, before)),
        Patch(ssl.SSLContext, "_wrap_bio", lambda before: _bio_wrapper(active, before)),
        Patch(ssl.SSLSocket, "do_handshake", lambda before: _socket_handshake(active, before)),
        Patch(ssl.SSLObject, "do_handshake", lambda before: _object_handshake(active, before)),
    ]


def noted(error: BaseException, activation: Activation) -> bool:
    """Whether this failure is already in `activation`'s trail."""
    return any(emit == activation.emit for emit in getattr(error, _MARK, ()))


def judged(*connections: object) -> Sequence[Activation]:
    """The policies that one of these (a socket, an ssl object) has passed in its handshake."""
    return next((held for c in connections if (held := getattr(c, _JUDGED, None))), ())


def _socket_wrapper(active: Callable[[], Sequence[Activation]], before: Any) -> Any:
    wrap = before or _C_BASE._wrap_socket

    def _wrap_socket(
        self: ssl.SSLContext, sock: Any, server_side: bool, server_hostname: str | None = None, **options: Any
    ) -> Any:
        def call() -> Any:
            return wrap(self, sock, server_side, server_hostname, **options)

        held = _held(active)
        if not held:
            return call()
        end = _End.of(sock, server_hostname, server_side=server_side)
        return _made(held, self, end, bool(server_hostname), call)

    return _wrap_socket


def _bio_wrapper(active: Callable[[], Sequence[Activation]], before: Any) -> Any:
    wrap = before or _C_BASE._wrap_bio

    def _wrap_bio(
        self: ssl.SSLContext,
        incoming: Any,
        outgoing: Any,
        server_side: bool,
        server_hostname: str | None = None,
        **options: Any,
    ) -> Any:
        def call() -> Any:
            return wrap(self, incoming, outgoing, server_side, server_hostname, **options)

        held = _held(active)
        if not held:
            return call()
        end = _End.of(None, server_hostname, server_side=server_side)
        return _made(held, self, end, bool(server_hostname), call)

    return _wrap_bio


@dataclass(frozen=True, slots=True)
class _End:
    """The other end of one connection. `peer` and `port` are None where only memory buffers are seen (asyncio)."""

    host: str
    port: int | None
    peer: str | None
    server_side: bool  # whether we are the server

    @classmethod
    def of(cls, sock: Any, server_hostname: str | None, *, server_side: bool) -> _End:
        peer, port = (None, None) if sock is None else _peer(sock)
        if server_side:  # the port of a client says nothing, and each of its connections has another
            return cls(peer or "an unnamed client", None, peer, server_side)
        return cls(server_hostname or peer or "an unnamed host", port, peer, server_side)

    def __str__(self) -> str:
        return endpoint(self.host, self.port)


def _made(held: Sequence[Activation], context: ssl.SSLContext, end: _End, named: bool, call: Callable[[], Any]) -> Any:
    """Make the connection object with the policy's settings, or raise HandshakeRefused."""
    if not end.server_side:
        _check_verification(held, context, end, named)
    floor = _floor(held, end)
    if floor is not None and not _reaches(context, floor):
        strict = [a for a in held if a.policy.enforcing]
        why = f"the ssl context for {end} rules out {version_name(floor)}, which is required"
        raise _refusal(
            strict,
            end,
            "context_limited",
            f"{why} (tls.floor, {strict[0].policy.origin})",
            'raise its maximum_version, or add an entry with floor = "1.2" and a reason to tls.allow',
        )
    with _lock:
        for _ in range(_TRIES):
            made = _with_settings(context, floor, end, call)
            if made is not None:
                return made
    raise _refusal(
        held,
        end,
        "context_changing",
        f"the ssl context for {end} is being changed by another thread",
        "set a context up before it is used, or give each thread its own",
    )


def _with_settings(context: ssl.SSLContext, floor: ssl.TLSVersion | None, end: _End, call: Callable[[], Any]) -> Any:
    """`call()` while `context` is as strict as it must be; None when somebody loosened it in the meantime.

    Only under the lock: what another thread has set for a moment must not be taken for the context's own.
    """
    minimum, names = context.minimum_version, context.check_hostname
    raise_floor = floor is not None and context.protocol not in _FIXED and _minimum(context) < floor
    check_name = not end.server_side and not names
    try:
        if raise_floor and floor is not None:
            context.minimum_version = floor
        if check_name:
            context.check_hostname = True
        made = call()
        # urllib3 sets these on a shared context for each connection, and knows nothing of our lock.
        verified = end.server_side or (context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED)
        return made if verified and not (raise_floor and context.minimum_version != floor) else None
    finally:
        if check_name:
            context.check_hostname = names
        if raise_floor:
            context.minimum_version = minimum


def _check_verification(held: Sequence[Activation], context: ssl.SSLContext, end: _End, named: bool) -> None:
    """A client verifies, in observe too (trust rule 6)."""
    if context.verify_mode is not ssl.CERT_REQUIRED:
        raise _refusal(
            held,
            end,
            "verification_off",
            f"certificate verification is off for {end}",
            "remove verify=False (or CERT_NONE); for a private CA hand its file to the library",
        )
    if not named:
        raise _refusal(
            held,
            end,
            "no_host_name",
            f"the connection to {end} names no host to check the certificate against",
            "pass server_hostname",
        )


def _socket_handshake(active: Callable[[], Sequence[Activation]], before: Any) -> Any:
    def do_handshake(self: ssl.SSLSocket, block: bool = False) -> None:
        held = _held(active)
        if not held:
            before(self, block)
            return
        end = _End.of(self, self.server_hostname, server_side=self.server_side)
        _judged_handshake(held, self, end, lambda: before(self, block))

    return do_handshake


def _object_handshake(active: Callable[[], Sequence[Activation]], before: Any) -> Any:
    def do_handshake(self: ssl.SSLObject) -> None:
        held = _held(active)
        if not held:
            before(self)
            return
        end = _End.of(None, self.server_hostname, server_side=self.server_side)
        _judged_handshake(held, self, end, lambda: before(self))

    return do_handshake


def _judged_handshake(
    held: Sequence[Activation],
    connection: ssl.SSLSocket | ssl.SSLObject,
    end: _End,
    shake: Callable[[], None],
) -> None:
    try:
        shake()
    except _AGAIN:
        raise
    except ssl.SSLError as error:
        _failed(held, error, end)
        raise
    try:
        why = judge_version(
            held,
            host=end.host,
            port=end.port,
            peer_address=end.peer,
            version=connection.version() or "without TLS",
            side="server" if end.server_side else "client",
        )
    except Exception as error:
        text = f"the TLS connection with {end} is given up: the audit trail could not take it ({error})"
        raise HandshakeRefused(1, text) from error
    if why is not None:
        raise _marked(HandshakeRefused(1, f"{why}; make a new connection now that the policy holds"), held)
    setattr(connection, _JUDGED, held)


def _failed(held: Sequence[Activation], error: ssl.SSLError, end: _End) -> None:
    """Audit a failed handshake that is a matter of policy, and say in the error itself what to do.

    The error stays the same object: libraries sort these by class and code.
    """
    reason = explain(error, host=end.host, policy=held[0].policy, ours=False)
    if reason is None or (end.server_side and reason.code != "tls_version"):
        return
    why = f"client {end.host} speaks at most TLS 1.2" if end.server_side else reason.why
    suffix = ""
    for activation in held:
        suffix = note_refusal(activation, host=end.host, port=end.port, code=reason.code, why=why) or suffix
    setattr(error, _MARK, tuple(activation.emit for activation in held))
    text = f"{why}{suffix}; {reason.remedy} [{error.strerror or error}]"
    error.args = (error.errno, text)
    error.strerror = text


def _marked(refusal: HandshakeRefused, held: Sequence[Activation]) -> HandshakeRefused:
    setattr(refusal, _MARK, tuple(activation.emit for activation in held))
    return refusal


def _refusal(held: Sequence[Activation], end: _End, code: str, why: str, remedy: str) -> HandshakeRefused:
    suffix = ""
    for activation in held:
        suffix = note_refusal(activation, host=end.host, port=end.port, code=code, why=why) or suffix
    return _marked(HandshakeRefused(1, f"{why}: {remedy}{suffix}"), held)


def _held(active: Callable[[], Sequence[Activation]]) -> Sequence[Activation]:
    return () if _exempt.depth else active()


def _floor(held: Sequence[Activation], end: _End) -> ssl.TLSVersion | None:
    """The strictest floor of the policies that enforce; None when all of them observe."""
    floors = [
        floor_of(a.policy, host=end.host, port=end.port, peer_address=end.peer)[0] for a in held if a.policy.enforcing
    ]
    return max(floors, default=None)


def _minimum(context: ssl.SSLContext) -> ssl.TLSVersion:
    minimum = context.minimum_version
    return ssl.TLSVersion.SSLv3 if minimum in _OLD else minimum


def _reaches(context: ssl.SSLContext, floor: ssl.TLSVersion) -> bool:
    """Whether a connection of this context can have version `floor` or later."""
    if context.protocol in _FIXED:
        return floor <= ssl.TLSVersion.TLSv1_2 and context.protocol is getattr(ssl, "PROTOCOL_TLSv1_2", None)
    maximum = context.maximum_version
    without_13 = bool(context.options & ssl.OP_NO_TLSv1_3)
    if maximum in _OLD:
        return False
    if floor >= ssl.TLSVersion.TLSv1_3:
        return not without_13 and maximum in {ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.MAXIMUM_SUPPORTED}
    return not (without_13 and context.options & ssl.OP_NO_TLSv1_2)


def _peer(sock: Any) -> tuple[str | None, int | None]:
    """Address and port that `sock` is connected to; UNIX for a local socket."""
    try:
        name = sock.getpeername()
    except OSError:
        return None, None
    if isinstance(name, tuple) and len(name) >= 2:
        return str(name[0]), int(name[1])
    return UNIX, None


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
