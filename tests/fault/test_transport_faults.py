"""Transport when what it leans on misbehaves: servers, the audit trail, libraries, forks."""

# ruff: noqa: F811 - fixtures are imported by name here

from __future__ import annotations

import os
import socket
import ssl
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import httpcore
import httpx
import pytest
import requests

from securemfg.errors import AuditError, PlaintextRefused, TransportError
from securemfg.transport import choke, clients, enforcement, guard, observation
from securemfg.transport.arrival import Watch
from securemfg.transport.observation import Connection
from tests.parts.tls import FLOOR_12, Pki, RawServer, Trail, enforcing, pki, trail  # noqa: F401 - fixtures


class Silent(RawServer):
    """Takes the connection and never says anything."""

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                pass


class HangsUp(RawServer):
    """Closes in the middle of the handshake."""

    def _serve(self, connection: socket.socket) -> None:
        connection.recv(1)
        connection.close()


def full(action: str, **_: object) -> None:
    raise AuditError("the journal is full")


def test_a_server_that_says_nothing_is_a_timeout_and_no_refusal(pki: Pki, trail: Trail) -> None:
    with Silent() as server, clients.client(pki.policy(), trail, timeout=0.2) as client:
        with pytest.raises(httpx.ConnectTimeout):
            client.get(f"https://localhost:{server.port}")
    assert trail.events == []


def test_a_server_that_hangs_up_is_a_network_failure_and_no_refusal(pki: Pki, trail: Trail) -> None:
    with HangsUp() as server, enforcing(pki.policy(), trail), clients.client(pki.policy(), trail) as client:
        with pytest.raises(httpx.ConnectError):
            client.get(f"https://localhost:{server.port}")
    assert trail.events == []


def test_a_tls_refusal_stays_one_when_the_trail_is_full_and_says_so(pki: Pki) -> None:
    with pki.server(tls12=True) as server, enforcing(pki.policy(), full):
        with pytest.raises(requests.exceptions.SSLError, match=r"at most TLS 1\.2.*the journal is full"):
            requests.get(f"https://localhost:{server.port}", verify=str(pki.ca.ca_file), timeout=5)


def test_an_exception_is_not_used_when_the_trail_is_full(pki: Pki) -> None:
    with RawServer() as server, enforcing(pki.policy(), full):
        with pytest.raises(AuditError, match="full"):
            requests.get(server.url, timeout=5)
        with pytest.raises(AuditError, match="full"):
            requests.get(server.url, timeout=5)  # the first failure did not pass for a use that is known
        assert server.received == b""


def test_a_floor_12_exception_is_not_used_when_the_trail_is_full(pki: Pki) -> None:
    with pki.server(tls12=True) as server, enforcing(pki.policy(allow=(FLOOR_12,)), full):
        with pytest.raises(requests.exceptions.SSLError, match="audit trail could not take it"):
            requests.get(f"https://localhost:{server.port}", verify=str(pki.ca.ca_file), timeout=5)


def test_a_trail_that_stalls_in_one_thread_holds_up_no_other(pki: Pki) -> None:
    stalled, go_on = threading.Event(), threading.Event()

    def emit(action: str, **_: object) -> None:
        stalled.set()
        assert go_on.wait(10)

    def refused() -> None:
        with pytest.raises(PlaintextRefused):
            requests.get("http://192.0.2.1/", timeout=5)

    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    context.check_hostname = False
    with pki.server() as server, enforcing(pki.policy(), emit):
        thread = threading.Thread(target=refused)
        thread.start()
        assert stalled.wait(10)
        with socket.create_connection(("127.0.0.1", server.port), 5) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as tls:
                assert tls.version() == "TLSv1.3"
        go_on.set()
        thread.join()


def test_a_library_whose_inside_has_changed_stops_enforcement_from_starting(
    pki: Pki, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    import http.client

    before = dict(vars(ssl.SSLContext)), dict(vars(http.client.HTTPConnection))
    monkeypatch.delattr(httpcore, "AsyncHTTP11Connection")
    with pytest.raises(TransportError, match="httpcore cannot be guarded"):
        enforcement.enforce(pki.policy(), trail)
    assert not enforcement.active()
    assert (dict(vars(ssl.SSLContext)), dict(vars(http.client.HTTPConnection))) == before
    assert not [finder for finder in sys.meta_path if isinstance(finder, Watch)]


def test_a_module_that_cannot_be_guarded_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newcomer.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def arrived(name: str) -> None:
        raise TransportError(f"{name} is unknown")

    watch = Watch({"newcomer"}, arrived)
    watch.start()
    try:
        with pytest.raises(TransportError, match="newcomer is unknown"):
            __import__("newcomer")
        assert "newcomer" not in sys.modules
    finally:
        watch.stop()
    module: ModuleType = __import__("newcomer")
    assert module.value == 1
    del sys.modules["newcomer"]


def test_a_fork_while_other_threads_hold_every_lock_does_not_hang(pki: Pki, trail: Trail) -> None:
    locks = [enforcement._lock, observation._lock, choke._lock, guard._lock]
    with RawServer() as server, enforcing(pki.policy(), trail):
        for lock in locks:
            lock.acquire()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                socket.setdefaulttimeout(5)
                requests.get(server.url, timeout=5)
                enforcement.enforce(pki.policy(), trail)
                code = 0 if len(trail.events) == 1 else 2
            finally:
                os._exit(code)
        for lock in locks:
            lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_counts_stay_bounded_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "_seen", {})
    monkeypatch.setattr(observation, "_snapshot", None)
    for number in range(3000):
        observation.record(Connection(host=f"host{number}", port=443, version="TLSv1.3"))
    counts: dict[Any, int] = dict(observation.observed())
    assert len(counts) == 1025
    assert sum(counts.values()) == 3000
    assert counts[Connection(host="(others)", port=None, version="TLSv1.3")] == 3000 - 1024
