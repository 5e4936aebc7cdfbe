"""Refuses plain http before its first byte, by where the connected socket leads.

Three places see nearly all http of Python programs: http.client (urllib, urllib3, requests, hvac, botocore,
MLflow), httpcore (httpx) and aiohttp. Each is changed when it is imported, not before, and changed back by
`uninstall`.

A CONNECT request to a proxy may go in the clear: what follows is TLS. An http request handed to a proxy names
its real target, and that is judged too, as no peer address vouches for it. Plaintext that is not http is not
seen.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from securemfg.errors import PlaintextRefused, TransportError
from securemfg.transport import patching
from securemfg.transport.arrival import Watch
from securemfg.transport.judgement import judge_plaintext, judge_plaintext_early
from securemfg.transport.observation import Activation
from securemfg.transport.patching import Patch
from securemfg.transport.policy import UNIX, is_loopback

__all__ = ["check", "check_early", "install", "lasting", "leads_to", "may_be_local", "uninstall"]

# The error must not be an OSError: libraries retry those, or turn them into time-outs.
assert not issubclass(PlaintextRefused, OSError)

_TO_PROXY: Final = re.compile(rb"[A-Z]+ (https?://[^ \r\n]+) HTTP/1\.[01]\r\n")
_OWN_CONNECT: Final = frozenset({"http.client", "urllib3.connection"})
_MOST: Final = 256
_Active = Callable[[], Sequence[Activation]]

_lock = threading.Lock()
_watch: Watch | None = None
_applied: list[Patch] = []
_judged: weakref.WeakKeyDictionary[Any, dict[tuple[str, int | None], list[Activation]]] = weakref.WeakKeyDictionary()
_possible: dict[tuple[str, int | None], Sequence[Activation]] = {}


def install(active: _Active) -> None:
    """Guard what is imported, and what will be. Raises TransportError when a library's inside has changed."""
    global _watch
    makers = {"http.client": _http_client, "httpcore": _httpcore, "aiohttp": _aiohttp}

    def arrived(name: str) -> None:
        try:
            patches = makers[name](active)
            for patch in patches:
                getattr(patch.owner, patch.name)  # a guard on a method that nobody calls would be none
        except (ImportError, AttributeError) as error:
            raise TransportError(
                f"plain http by this version of {name} cannot be guarded ({error}): install another one"
            ) from error
        patching.apply(patches)
        _applied.extend(patches)

    _watch = Watch(makers, arrived)
    try:
        _watch.start()
    except BaseException:
        uninstall()
        raise


def uninstall() -> None:
    """Take every change back."""
    global _watch
    if _watch is not None:
        _watch.stop()
    _watch = None
    patching.revert(_applied)
    _applied.clear()
    _possible.clear()


def check(
    held: Sequence[Activation], connection: object, *, host: str, port: int | None, peer_address: str | None
) -> None:
    """Judge plain http to a connected peer, once per connection and policy. Raises PlaintextRefused."""
    try:
        with _lock:
            done = _judged.setdefault(connection, {}).setdefault((host, port), [])
            todo = [activation for activation in held if activation not in done]
    except TypeError:  # it cannot be remembered, so it is judged each time
        done, todo = [], list(held)
    if todo:
        judge_plaintext(todo, host=host, port=port, peer_address=peer_address, count=not done)
        with _lock:
            done.extend(todo)


def check_early(
    held: Sequence[Activation], *, host: str, port: int | None, local: Callable[[str], bool] | None = None
) -> None:
    """Refuse what no peer could make right, before connecting. Raises PlaintextRefused."""
    key = (host, port)
    if _possible.get(key) is held:
        return
    judge_plaintext_early(held, host=host, port=port, local=local or may_be_local)
    if len(_possible) >= _MOST:
        _possible.clear()
    _possible[key] = held


def may_be_local(name: str) -> bool:
    """Whether a name resolves to this machine. The peer's address decides in the end; this only saves
    waiting.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True  # let the connection fail in the caller's own words
    return any(is_loopback(str(address[0])) for *_, address in found)


def leads_to(sock: Any) -> str | None:
    """The peer's address; UNIX for a local socket; None when it is not connected or leads through a SOCKS
    proxy.
    """
    if hasattr(sock, "get_proxy_peername"):  # PySocks answers for the far end, which it has only been told of
        return None
    try:
        name = sock.getpeername()
    except (OSError, AttributeError):
        return None
    return _address(name)


def lasting(sock: Any) -> Any:
    """The socket itself: asyncio wraps it anew each time, so the wrapper cannot be remembered."""
    return getattr(sock, "_sock", sock)


def _address(name: Any) -> str | None:
    if isinstance(name, tuple | list) and len(name) >= 2:
        return str(name[0])
    return UNIX if isinstance(name, str | bytes) else None


def _far(held: Sequence[Activation], connection: object, url: str) -> None:
    """The real target of a request that a proxy forwards in the clear."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    check(held, connection, host=parts.hostname or "", port=port, peer_address=None)


def _http_client(active: _Active) -> list[Patch]:
    from http.client import HTTPConnection

    return [Patch(HTTPConnection, "send", lambda before: _send(active, before))]


def _send(active: _Active, before: Any) -> Any:
    def send(self: Any, data: Any) -> None:
        held = active()
        if held:
            if self.sock is None and self.auto_open:
                # Only where we know how it connects: a subclass may lead its host name to a local socket.
                if self.default_port != 443 and type(self).connect.__module__ in _OWN_CONNECT:
                    target = _TO_PROXY.match(data) if isinstance(data, bytes | bytearray) else None
                    if target is None and not self._tunnel_host:
                        check_early(held, host=self.host, port=self.port)
                self.connect()
            if self.sock is not None and not _protected(self.sock):
                _check_send(held, self, data)
        before(self, data)

    return send


def _check_send(held: Sequence[Activation], connection: Any, data: Any) -> None:
    head = bytes(data[:8192]) if isinstance(data, bytes | bytearray) else b""
    if connection._tunnel_host and head.startswith(b"CONNECT "):
        return
    try:
        target = _TO_PROXY.match(head)
        if target is not None:
            _far(held, connection.sock, target[1].decode("latin-1"))
        check(
            held,
            connection.sock,
            host=connection.host,
            port=connection.port,
            peer_address=leads_to(connection.sock),
        )
    except PlaintextRefused:
        connection.close()
        raise


def _protected(sock: Any) -> bool:
    """Whether what is written to `sock` leaves it encrypted."""
    if isinstance(sock, ssl.SSLSocket):
        return getattr(sock, "_sslobj", None) is not None  # without it an SSLSocket writes in the clear
    version = getattr(sock, "version", None)  # urllib3's TLS in TLS, and pyOpenSSL
    return bool(callable(version) and version())


def _httpcore(active: _Active) -> list[Patch]:
    import httpcore

    names = ["HTTP11Connection"]
    if "handle_request" in vars(httpcore.HTTP2Connection):  # a stub without h2
        names.append("HTTP2Connection")
    patches = [
        Patch(httpcore.ConnectionPool, "handle_request", lambda b: _in_pool(active, b)),
        Patch(httpcore.AsyncConnectionPool, "handle_async_request", lambda b: _in_async_pool(active, b)),
    ]
    for name in names:
        patches += [
            Patch(getattr(httpcore, name), "handle_request", lambda b: _on_stream(active, b)),
            Patch(
                getattr(httpcore, f"Async{name}"),
                "handle_async_request",
                lambda b: _on_async_stream(active, b),
            ),
        ]
    return patches


def _judge_stream(active: _Active, connection: Any, request: Any) -> None:
    held = active()
    stream = getattr(connection, "_network_stream", None)
    if not held or stream is None or stream.get_extra_info("ssl_object") is not None or request.method == b"CONNECT":
        return
    sock = lasting(stream.get_extra_info("socket")) or connection
    target = request.url.target
    if target.startswith((b"http://", b"https://")):
        _far(held, sock, target.decode("latin-1"))
    host, port = _url_host(request.url)
    check(held, sock, host=host, port=port, peer_address=_address(stream.get_extra_info("server_addr")))


def _on_stream(active: _Active, before: Any) -> Any:
    def handle_request(self: Any, request: Any) -> Any:
        try:
            _judge_stream(active, self, request)
        except PlaintextRefused:
            self.close()
            raise
        return before(self, request)

    return handle_request


def _on_async_stream(active: _Active, before: Any) -> Any:
    async def handle_async_request(self: Any, request: Any) -> Any:
        try:
            _judge_stream(active, self, request)
        except PlaintextRefused:
            await self.aclose()
            raise
        return await before(self, request)

    return handle_async_request


def _judge_pool(active: _Active, pool: Any, request: Any, local: Callable[[str], bool] | None) -> None:
    held = active()
    if not held or request.url.scheme not in {b"http", b"ws"} or getattr(pool, "_uds", None):
        return
    host, port = _url_host(request.url)
    if "SOCKS" in type(pool).__name__:  # the peer is the proxy, so nothing vouches for the host
        judge_plaintext(held, host=host, port=port, peer_address=None)
    else:
        check_early(held, host=host, port=port, local=local)


def _in_pool(active: _Active, before: Any) -> Any:
    def handle_request(self: Any, request: Any) -> Any:
        _judge_pool(active, self, request, None)
        return before(self, request)

    return handle_request


def _in_async_pool(active: _Active, before: Any) -> Any:
    async def handle_async_request(self: Any, request: Any) -> Any:
        _judge_pool(active, self, request, lambda _: True)  # no blocking name lookup in an event loop
        return await before(self, request)

    return handle_async_request


def _url_host(url: Any) -> tuple[str, int | None]:
    return url.host.decode("ascii", "replace"), url.port or 80


def _aiohttp(active: _Active) -> list[Patch]:
    from aiohttp.client_reqrep import ClientRequest

    return [Patch(ClientRequest, "send", lambda before: _aiohttp_send(active, before))]


def _aiohttp_send(active: _Active, before: Any) -> Any:
    async def send(self: Any, conn: Any) -> Any:
        held = active()
        transport = conn.transport
        if held and transport is not None and transport.get_extra_info("sslcontext") is None:
            host, port = self.url.host or "", self.url.port
            proxy = getattr(self, "proxy", None)
            if self.method != "CONNECT":
                if proxy is not None:
                    check(held, transport, host=host, port=port, peer_address=None)
                    host, port = proxy.host or "", proxy.port
                check(
                    held,
                    transport,
                    host=host,
                    port=port,
                    peer_address=leads_to(transport.get_extra_info("socket")),
                )
        return await before(self, conn)

    return send


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
