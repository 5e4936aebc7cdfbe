"""httpx clients that hold to a policy on their own, whether or not the process enforces one.

Refusals are PlaintextRefused and TlsRefused and say why; ordinary network failures stay httpx's own errors.
httpx reports each connection through its `trace` extension: that is where the connected peer is judged,
before the first byte of the request.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from securemfg.context import Emit
from securemfg.errors import ConfigError, TlsRefused, TransportError
from securemfg.transport import guard
from securemfg.transport.choke import HandshakeRefused, judged, noted
from securemfg.transport.contexts import Certificate, client_context, context_with_floor
from securemfg.transport.judgement import (
    floor_of,
    judge_plaintext,
    judge_plaintext_early,
    judge_version,
    refuse_redirect,
)
from securemfg.transport.observation import Activation, endpoint, note_refusal
from securemfg.transport.policy import TlsPolicy, literal
from securemfg.transport.reasons import explain, tls_error

if TYPE_CHECKING:
    import httpx

__all__ = ["async_client", "client"]

_OURS: Final = ("verify", "cert", "trust_env", "transport", "mounts", "app")
_TRANSPORT_OPTIONS: Final = ("http1", "http2", "limits", "proxy")
_TIMEOUT: Final = 10.0  # seconds, for each of connect, read, write and pool
_CAME_BY_TLS: Final = "securemfg.https"  # httpx hands a request's extensions on to the one a redirect makes


def client(policy: TlsPolicy, emit: Emit, *, certificate: Certificate | None = None, **options: Any) -> httpx.Client:
    """An httpx.Client that speaks TLS 1.3 only and always verifies; `options` are httpx's own.

    Plain http goes only where the allow-list lets it, by the connected peer's address. Environment proxies
    and REQUESTS_CA_BUNDLE and the like are not read. Raises ConfigError for `verify`, `cert`, `trust_env`,
    `transport` and `mounts`: they would go round the policy.
    """
    import httpx

    kind = _over(httpx.HTTPTransport)
    return httpx.Client(**_arguments(kind, policy, emit, certificate, options))


def async_client(
    policy: TlsPolicy, emit: Emit, *, certificate: Certificate | None = None, **options: Any
) -> httpx.AsyncClient:
    """As `client`, for asyncio."""
    import httpx

    kind = _async_over(httpx.AsyncHTTPTransport)
    return httpx.AsyncClient(**_arguments(kind, policy, emit, certificate, options))


def _arguments(
    kind: Callable[..., Any],
    policy: TlsPolicy,
    emit: Emit,
    certificate: Certificate | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    refused = [name for name in _OURS if name in options]
    if refused:
        raise ConfigError(
            f"a client of the TLS policy takes no {refused[0]}=: verification stays on. "
            "For a private CA set tls.ca_file; for a client certificate give certificate=(file, key file)"
        )
    own: dict[str, Any] = {name: options.pop(name) for name in _TRANSPORT_OPTIONS if name in options}
    options.setdefault("timeout", _TIMEOUT)
    return {**options, "transport": kind(_Judge(policy, emit, certificate, own)), "trust_env": False}


class _Judge:
    """What one client asks of each request, connection and failure."""

    def __init__(self, policy: TlsPolicy, emit: Emit, certificate: Certificate | None, options: dict[str, Any]) -> None:
        self.activation = Activation(policy, emit)
        self.held = (self.activation,)
        self.policy = policy
        self.certificate = certificate
        self.options = options
        self.proxied = options.get("proxy") is not None
        client_context(policy, certificate=certificate)  # a wrong file is said here, not at the first request

    def context(self, floor: ssl.TLSVersion) -> ssl.SSLContext:
        if floor >= self.policy.floor:
            return client_context(self.policy, certificate=self.certificate)
        return context_with_floor(self.policy, floor, self.certificate)

    def admit(self, request: httpx.Request, local: Callable[[str], bool]) -> ssl.TLSVersion:
        """Refuse what needs no connection to be refused; else the TLS floor of this host."""
        host, port = request.url.host, _port(request.url)
        if request.url.scheme in {"https", "wss"}:
            request.extensions[_CAME_BY_TLS] = True
            peer = host if literal(host) is not None and not self.proxied else None
            return floor_of(self.policy, host=host, port=port, peer_address=peer)[0]
        if request.extensions.get(_CAME_BY_TLS):
            refuse_redirect(self.activation, host=host, port=port)
        if self.proxied:
            judge_plaintext(self.held, host=host, port=port, peer_address=None)
        else:
            judge_plaintext_early(self.held, host=host, port=port, local=local)
        return self.policy.floor

    def connected(self, request: httpx.Request, event: str, stream: Any) -> None:
        """Judge a new connection: where it leads, and which TLS version it came to."""
        host, port = request.url.host, _port(request.url)
        sock = stream.get_extra_info("socket")
        if event == "connection.connect_tcp.complete" and request.url.scheme in {"http", "ws"} and not self.proxied:
            guard.check(
                self.held,
                guard.lasting(sock) or stream,
                host=host,
                port=port,
                peer_address=guard.leads_to(sock),
            )
        elif event.endswith("start_tls.complete"):
            tls = stream.get_extra_info("ssl_object")
            passed = judged(sock, tls)
            if self.activation in passed:
                return
            why = judge_version(
                self.held,
                host=host,
                port=port,
                peer_address=None if self.proxied else guard.leads_to(sock),
                version=(tls is not None and tls.version()) or "without TLS",
                count=not passed,
            )
            if why is not None:
                raise TlsRefused(why)

    def refusal(self, error: Exception, request: httpx.Request) -> TransportError | None:
        """The refusal that `error` amounts to, audited; None when it is an ordinary network failure."""
        if isinstance(error, TransportError) and not isinstance(error, HandshakeRefused):
            return None
        found = tls_error(error)
        host, port = request.url.host, _port(request.url)
        if found is None:
            return None
        if noted(found, self.activation):
            return TlsRefused(str(found))
        if isinstance(found, HandshakeRefused):  # by a policy of the process that is not this client's
            note_refusal(self.activation, host=host, port=port, code="process_policy", why=str(found))
            return TlsRefused(str(found))
        reason = explain(error, host=host, policy=self.policy)
        if reason is None:
            return None
        suffix = note_refusal(self.activation, host=host, port=port, code=reason.code, why=reason.why)
        return TlsRefused(f"no connection to {endpoint(host, port)}: {reason}{suffix}")


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme in {"https", "wss"} else 80)


def _over(inner: type[httpx.HTTPTransport]) -> Callable[[_Judge], httpx.BaseTransport]:
    import httpx

    class TlsTransport(httpx.BaseTransport):
        """One httpx transport per TLS floor: a host with an exception shares nothing with the others."""

        def __init__(self, judge: _Judge) -> None:
            self._judge = judge
            self._inner: dict[ssl.TLSVersion, httpx.HTTPTransport] = {}

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            floor = self._judge.admit(request, guard.may_be_local)
            with _traced(self._judge, request):
                try:
                    return self._transport(floor).handle_request(request)
                except Exception as error:
                    refusal = self._judge.refusal(error, request)
                    if refusal is None:
                        raise
                    raise refusal from error

        def _transport(self, floor: ssl.TLSVersion) -> httpx.HTTPTransport:
            if floor not in self._inner:
                context = self._judge.context(floor)
                self._inner[floor] = inner(verify=context, trust_env=False, **self._judge.options)
            return self._inner[floor]

        def close(self) -> None:
            for transport in self._inner.values():
                transport.close()

    return TlsTransport


def _async_over(inner: type[httpx.AsyncHTTPTransport]) -> Callable[[_Judge], httpx.AsyncBaseTransport]:
    import httpx

    class AsyncTlsTransport(httpx.AsyncBaseTransport):
        """As TlsTransport."""

        def __init__(self, judge: _Judge) -> None:
            self._judge = judge
            self._inner: dict[ssl.TLSVersion, httpx.AsyncHTTPTransport] = {}

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            floor = self._judge.admit(request, lambda _: True)  # no blocking name lookup in an event loop
            async with _async_traced(self._judge, request):
                try:
                    return await self._transport(floor).handle_async_request(request)
                except Exception as error:
                    refusal = self._judge.refusal(error, request)
                    if refusal is None:
                        raise
                    raise refusal from error

        def _transport(self, floor: ssl.TLSVersion) -> httpx.AsyncHTTPTransport:
            if floor not in self._inner:
                context = self._judge.context(floor)
                self._inner[floor] = inner(verify=context, trust_env=False, **self._judge.options)
            return self._inner[floor]

        async def aclose(self) -> None:
            for transport in self._inner.values():
                await transport.aclose()

    return AsyncTlsTransport


_MADE: Final = ("connect_tcp.complete", "start_tls.complete")


@contextmanager
def _traced(judge: _Judge, request: httpx.Request) -> Iterator[None]:
    """Hear of the connections made for `request`, before the caller's own trace does."""
    theirs = request.extensions.get("trace")

    def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(_MADE):
            stream = info["return_value"]
            try:
                judge.connected(request, event, stream)
            except BaseException:
                stream.close()
                raise
        if theirs is not None:
            theirs(event, info)

    request.extensions["trace"] = trace
    try:
        yield
    finally:
        _put_back(request, theirs)


@asynccontextmanager
async def _async_traced(judge: _Judge, request: httpx.Request) -> AsyncIterator[None]:
    theirs = request.extensions.get("trace")

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event.endswith(_MADE):
            stream = info["return_value"]
            try:
                judge.connected(request, event, stream)
            except BaseException:
                await stream.aclose()
                raise
        if theirs is not None:
            await theirs(event, info)

    request.extensions["trace"] = trace
    try:
        yield
    finally:
        _put_back(request, theirs)


def _put_back(request: httpx.Request, theirs: Any) -> None:
    if theirs is None:
        request.extensions.pop("trace", None)
    else:
        request.extensions["trace"] = theirs
