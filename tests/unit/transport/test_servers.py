"""The JSON server speaks TLS 1.3 only, and the probe tells what any server speaks."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from securemfg.transport.contexts import server_context
from securemfg.transport.probe import probe
from securemfg.transport.servers import JsonServer
from tests.parts.tls import Pki, RawServer, Trail, enforcing


@pytest.fixture
def server(pki: Pki) -> Any:
    def handler(path: str, body: Any) -> object:
        if path == "/missing":
            raise KeyError("no such press")
        if path == "/odd":
            raise ValueError("force must be positive")
        if path == "/broken":
            raise RuntimeError("a secret inside")
        return {"body": body}

    with JsonServer(handler, server_context(pki.good.certificate, pki.good.key)) as server:
        yield server


def ask(pki: Pki, server: JsonServer, path: str, body: bytes | None = None) -> tuple[int, Any]:
    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    connection = http.client.HTTPSConnection("localhost", server.port, context=context, timeout=5)
    connection.request("POST" if body is not None else "GET", path, body)
    answer = connection.getresponse()
    result = answer.status, json.loads(answer.read())
    connection.close()
    return result


def test_the_url_is_https(server: JsonServer) -> None:
    assert server.url == f"https://127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/", b'{"force": 3}', (200, {"body": {"force": 3}})),
        ("/", None, (200, {"body": None})),
        ("/", b"{", (400, None)),
        ("/missing", None, (404, None)),
        ("/odd", None, (400, {"error": "force must be positive"})),
        ("/broken", None, (500, {"error": "internal error"})),
    ],
)
def test_answers_are_json_and_failures_have_their_status(
    pki: Pki, server: JsonServer, path: str, body: bytes | None, expected: tuple[int, Any]
) -> None:
    status, answer = ask(pki, server, path, body)
    assert status == expected[0]
    assert expected[1] is None or answer == expected[1]


def test_a_tls_12_client_is_refused_by_a_tls_13_server(pki: Pki, server: JsonServer) -> None:
    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", server.port), 5) as plain:
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            context.wrap_socket(plain, server_hostname="localhost")


def test_clients_that_stall_or_fail_in_the_handshake_hold_up_nobody(pki: Pki, server: JsonServer) -> None:
    stalled = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(5)]
    with socket.create_connection(("127.0.0.1", server.port), 5) as garbage:
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert garbage.recv(1) in {b"", b"\x15"}  # closed, at most after a TLS alert
    assert ask(pki, server, "/")[0] == 200
    for one in stalled:
        one.close()


def test_a_probe_of_a_good_server_says_so(pki: Pki, server: JsonServer) -> None:
    found = probe("localhost", server.port, ca_file=pki.ca.ca_file)
    assert found.ok
    assert (found.version, found.verified, found.reason) == ("TLSv1.3", True, None)
    assert found.subject == "CN=localhost"
    assert found.days_left == 29
    later = probe("localhost", server.port, ca_file=pki.ca.ca_file, now=lambda: datetime.now(UTC) + timedelta(days=40))
    assert later.days_left == -11


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("self_signed", "self-signed"),
        ("expired", "has expired"),
        ("wrong_host", "not for localhost"),
        ("unknown", "not trusted"),
    ],
)
def test_a_probe_explains_a_bad_certificate_and_still_reads_it(pki: Pki, kind: str, text: str) -> None:
    with pki.server(getattr(pki, kind)) as bad:
        found = probe("localhost", bad.port, ca_file=pki.ca.ca_file)
    assert not found.ok
    assert not found.verified
    assert text in str(found.reason)
    assert found.version == "TLSv1.3"
    assert found.subject is not None
    assert found.days_left is not None


def test_a_probe_of_an_old_server_says_what_it_speaks(pki: Pki) -> None:
    with pki.server(tls12=True) as old:
        found = probe("localhost", old.port, ca_file=pki.ca.ca_file)
    assert (found.ok, found.verified, found.version) == (False, True, "TLSv1.2")
    assert "at most TLSv1.2" in str(found.reason)


def test_a_probe_of_a_closed_port_and_of_plain_http_says_so(pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "cannot be reached" in str(probe("localhost", port).reason)
    with RawServer(eager=True) as plain:
        found = probe("localhost", plain.port)
    assert "does not answer in TLS" in str(found.reason)
    assert found.version is None


def test_a_probe_looks_under_enforcement_as_well_and_causes_no_event(pki: Pki, trail: Trail) -> None:
    with pki.server(pki.self_signed) as bad, enforcing(pki.policy(), trail):
        found = probe("localhost", bad.port, ca_file=pki.ca.ca_file)
    assert found.version == "TLSv1.3"
    assert trail.events == []
