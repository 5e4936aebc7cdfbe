"""Our own httpx clients: each kind of bad server is refused with its class, its reason and one event."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from securemfg.errors import AuditError, ConfigError, PlaintextRefused, TlsRefused
from securemfg.settings import LOOPBACK, AllowEntry
from securemfg.transport import clients, observation
from securemfg.transport.policy import TlsPolicy
from tests.parts.tls import FLOOR_12, Pki, RawServer, Trail, non_loopback

REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"


def url(server: object, host: str = "localhost") -> str:
    return f"https://{host}:{server.port}/press"


def test_a_tls_13_server_of_the_ca_is_reached(pki: Pki, trail: Trail) -> None:
    with pki.server() as server, clients.client(pki.policy(), trail) as client:
        answer = client.post(url(server), json={"force": 12})
    assert answer.json() == {"path": "/press", "body": {"force": 12}}
    assert trail.events == []


async def test_an_async_client_reaches_it_too(pki: Pki, trail: Trail) -> None:
    with pki.server() as server:
        async with clients.async_client(pki.policy(), trail) as client:
            assert (await client.get(url(server))).json()["path"] == "/press"
    assert trail.events == []


BAD = [
    ("tls12", "tls_version", "at most TLS 1.2"),
    ("self_signed", "self_signed", "self-signed"),
    ("expired", "expired", "has expired"),
    ("future", "not_yet_valid", "not valid yet"),
    ("wrong_host", "wrong_host", "certificate is not for localhost"),
    ("unknown", "unknown_issuer", "tls.ca_file"),
]


@pytest.mark.parametrize(("kind", "code", "text"), BAD)
def test_a_bad_server_is_refused_and_the_message_says_why(
    pki: Pki, trail: Trail, kind: str, code: str, text: str
) -> None:
    issued = pki.good if kind == "tls12" else getattr(pki, kind)
    before = observation.refused_count()
    with pki.server(issued, tls12=kind == "tls12") as server, clients.client(pki.policy(), trail) as client:
        with pytest.raises(TlsRefused, match=text) as caught:
            client.get(url(server))
        assert caught.value.__cause__ is not None
        [event] = trail.of("tls.refused")
        assert (event["outcome"], event["resource"], event["kind"]) == (
            "denied",
            f"localhost:{server.port}",
            "endpoint",
        )
    assert trail.codes() == [code]
    assert event["reason"]
    assert observation.refused_count() == before + 1


@pytest.mark.parametrize(("kind", "code", "text"), BAD)
async def test_a_bad_server_is_refused_by_the_async_client_as_well(
    pki: Pki, trail: Trail, kind: str, code: str, text: str
) -> None:
    issued = pki.good if kind == "tls12" else getattr(pki, kind)
    with pki.server(issued, tls12=kind == "tls12") as server:
        async with clients.async_client(pki.policy(), trail) as client:
            with pytest.raises(TlsRefused, match=text):
                await client.get(url(server))
    assert trail.codes() == [code]


def test_a_server_that_speaks_no_tls_is_named_as_such(pki: Pki, trail: Trail) -> None:
    with RawServer(eager=True) as plain, clients.client(pki.policy(), trail) as client:
        with pytest.raises(TlsRefused, match="does not answer in TLS"):
            client.get(f"https://localhost:{plain.port}")
    assert trail.codes() == ["not_tls"]


def test_plain_http_to_loopback_is_allowed_by_the_peers_address_and_audited(pki: Pki, trail: Trail) -> None:
    with RawServer() as server, clients.client(pki.policy(), trail) as client:
        before = observation.observed()
        assert client.get(f"http://localhost:{server.port}").status_code == 200
        client.get(f"http://localhost:{server.port}")
        after = observation.observed()
    [event] = trail.of("tls.exception_used")  # once per connection, not per request
    assert (event["outcome"], event["reason"], event["detail"]["entry"]) == ("success", "same machine", "loopback")
    local = [c for c in after if c.port == server.port]
    assert [(c.version, after[c] - before.get(c, 0)) for c in local] == [("none (local, not protected)", 1)]


def test_plain_http_is_refused_before_a_byte_when_loopback_is_not_allowed(pki: Pki, trail: Trail) -> None:
    with RawServer() as server, clients.client(pki.policy(allow=()), trail) as client:
        with pytest.raises(PlaintextRefused, match="no entry for loopback"):
            client.get(server.url)
        assert server.connections == 0
    assert trail.codes() == ["plaintext"]


def test_a_loopback_name_that_leads_elsewhere_is_refused_before_a_byte(
    pki: Pki, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    address = non_loopback()
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: real(address, *a, **k))
    monkeypatch.setattr("securemfg.transport.guard.may_be_local", lambda _: True)  # as in asyncio: connect, then look
    with RawServer(host="0.0.0.0") as server, clients.client(pki.policy(), trail) as client:
        with pytest.raises(PlaintextRefused, match=f"leads to {address}"):
            client.get(f"http://localhost:{server.port}")
        assert server.received == b""
    assert trail.codes() == ["plaintext"]


def test_an_unreachable_plain_host_is_refused_at_once_instead_of_timing_out(pki: Pki, trail: Trail) -> None:
    with clients.client(pki.policy(), trail) as client, pytest.raises(PlaintextRefused, match="use https"):
        client.get("http://192.0.2.1:8080/")
    assert trail.of("tls.refused")[0]["resource"] == "192.0.2.1:8080"


async def test_plain_http_is_refused_by_the_async_client_before_a_byte(pki: Pki, trail: Trail) -> None:
    with RawServer(host="0.0.0.0") as server:
        async with clients.async_client(pki.policy(), trail) as client:
            with pytest.raises(PlaintextRefused):
                await client.get(f"http://{non_loopback()}:{server.port}/")
        assert server.received == b""
    assert trail.codes() == ["plaintext"]


def test_an_entry_by_address_allows_plain_http_until_its_date(pki: Pki, trail: Trail) -> None:
    address = non_loopback()
    entry = AllowEntry(host=address, reason="the old gateway", expires="2026-03-31")
    with RawServer(host="0.0.0.0") as server:
        target = f"http://{address}:{server.port}/"
        policy = pki.policy(allow=(entry,), now=lambda: datetime(2026, 3, 31, 23, 59, tzinfo=UTC))
        with clients.client(policy, trail) as client:
            assert client.get(target).status_code == 200
        policy = pki.policy(allow=(entry,), now=lambda: datetime(2026, 4, 1, tzinfo=UTC))
        with clients.client(policy, trail) as client, pytest.raises(PlaintextRefused, match="ended on 2026-03-31"):
            client.get(target)
    assert [e["reason"] for e in trail.of("tls.exception_used")] == ["the old gateway"]


def test_a_redirect_from_https_to_http_is_refused_even_to_an_allowed_host(pki: Pki, trail: Trail) -> None:
    with RawServer() as plain, redirecting(pki, plain.url) as server:
        with clients.client(pki.policy(), trail, follow_redirects=True) as client:
            with pytest.raises(PlaintextRefused, match="redirect"):
                client.get(url(server))
        assert plain.connections == 0
    assert trail.codes() == ["redirect"]


async def test_a_redirect_from_https_to_http_is_refused_by_the_async_client(pki: Pki, trail: Trail) -> None:
    with RawServer() as plain, redirecting(pki, plain.url) as server:
        async with clients.async_client(pki.policy(), trail, follow_redirects=True) as client:
            with pytest.raises(PlaintextRefused, match="redirect"):
                await client.get(url(server))
        assert plain.connections == 0


def test_a_redirect_that_is_not_followed_is_just_an_answer(pki: Pki, trail: Trail) -> None:
    with redirecting(pki, "http://127.0.0.1:1/") as server, clients.client(pki.policy(), trail) as client:
        assert client.get(url(server)).status_code == 302
    assert trail.events == []


class redirecting(RawServer):  # noqa: N801 - used like a function
    def __init__(self, pki: Pki, location: str) -> None:
        self._tls = pki.context(pki.good)
        super().__init__(REDIRECT % location.encode())

    def _serve(self, connection: socket.socket) -> None:
        super()._serve(self._tls.wrap_socket(connection, server_side=True))


def test_a_floor_12_entry_lets_tls_12_through_to_that_host_only_and_is_audited(pki: Pki, trail: Trail) -> None:
    policy = pki.policy(allow=(LOOPBACK, FLOOR_12))
    with pki.server(tls12=True) as server, clients.client(policy, trail) as client:
        assert client.get(url(server)).status_code == 200
        [event] = trail.of("tls.exception_used")
        assert event["detail"]["version"] == "TLSv1.2"
        with pytest.raises(TlsRefused, match=r"at most TLS 1\.2"):
            client.get(url(server, "127.0.0.1"))


def test_a_floor_12_entry_that_was_not_needed_is_not_reported_as_used(pki: Pki, trail: Trail) -> None:
    policy = pki.policy(allow=(FLOOR_12,))
    with pki.server() as server, clients.client(policy, trail) as client:
        client.get(url(server))
    assert trail.events == []


def test_observe_lets_tls_12_and_plain_http_pass_with_an_event(pki: Pki, trail: Trail) -> None:
    policy = pki.policy(allow=(), enforcing=False)
    with pki.server(tls12=True) as old, RawServer() as plain, clients.client(policy, trail) as client:
        assert client.get(url(old)).status_code == 200
        assert client.get(plain.url).status_code == 200
    assert trail.codes() == []
    assert trail.codes("failure") == ["tls_version", "plaintext"]
    assert all(e["detail"]["mode"] == "observe" for e in trail.of("tls.refused"))


def test_observe_never_turns_certificate_verification_off(pki: Pki, trail: Trail) -> None:
    policy = pki.policy(enforcing=False)
    with pki.server(pki.self_signed) as server, clients.client(policy, trail) as client:
        with pytest.raises(TlsRefused, match="self-signed"):
            client.get(url(server))


@pytest.mark.parametrize("option", ["verify", "cert", "trust_env", "transport", "mounts"])
def test_options_that_go_round_the_policy_are_refused(pki: Pki, trail: Trail, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        clients.client(pki.policy(), trail, **{option: None})
    with pytest.raises(ConfigError, match=option):
        clients.async_client(pki.policy(), trail, **{option: None})


def test_a_missing_ca_file_is_said_when_the_client_is_made(trail: Trail, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        clients.client(TlsPolicy(ca_file=tmp_path / "none.pem", origin="securemfg.toml"), trail)


def test_ordinary_network_failures_stay_httpx_errors(pki: Pki, trail: Trail) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with clients.client(pki.policy(), trail) as client, pytest.raises(httpx.ConnectError):
        client.get(f"https://localhost:{port}")
    assert trail.events == []


def test_a_refusal_stays_one_when_the_trail_fails(pki: Pki) -> None:
    def broken(action: str, **_: object) -> None:
        raise AuditError("the journal is full")

    with clients.client(pki.policy(allow=()), broken) as client:
        with pytest.raises(PlaintextRefused, match="the journal is full"):
            client.get("http://127.0.0.1:9/")


def test_an_exception_that_cannot_be_recorded_is_not_used(pki: Pki) -> None:
    def broken(action: str, **_: object) -> None:
        raise AuditError("the journal is full")

    with RawServer() as server, clients.client(pki.policy(), broken) as client:
        with pytest.raises(AuditError, match="full"):
            client.get(server.url)
        assert server.received == b""


def test_plain_http_through_a_proxy_is_judged_by_its_target(pki: Pki, trail: Trail) -> None:
    with RawServer() as proxy, clients.client(pki.policy(), trail, proxy=proxy.url) as client:
        with pytest.raises(PlaintextRefused, match=r"far\.example"):
            client.get("http://far.example/")
        assert proxy.received == b""


def test_a_callers_own_trace_still_hears_everything(pki: Pki, trail: Trail) -> None:
    heard: list[str] = []
    with pki.server() as server, clients.client(pki.policy(), trail) as client:
        client.get(url(server), extensions={"trace": lambda name, _: heard.append(name)})
    assert "connection.start_tls.complete" in heard


def test_a_client_certificate_is_shown_to_a_server_that_asks(pki: Pki, trail: Trail) -> None:
    from securemfg.transport.contexts import server_context
    from securemfg.transport.servers import JsonServer

    context = server_context(pki.good.certificate, pki.good.key, client_ca=pki.ca.ca_file)
    with JsonServer(lambda path, _: path, context) as server:
        with clients.client(pki.policy(), trail, certificate=(pki.good.certificate, pki.good.key)) as client:
            assert client.get(url(server)).json() == "/press"
        with clients.client(pki.policy(), trail) as client, pytest.raises(TlsRefused, match="client certificate"):
            client.get(url(server))
