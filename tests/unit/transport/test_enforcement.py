"""One policy for every library of the process, taken back without a trace."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import httpcore
import httpx
import pytest
import requests
import urllib3
from aiohttp.client_reqrep import ClientRequest

from securemfg.errors import PlaintextRefused, TlsRefused, TransportError
from securemfg.settings import LOOPBACK
from securemfg.transport import choke, clients, enforcement
from securemfg.transport.arrival import Watch
from tests.parts.tls import FLOOR_12, Pki, RawServer, Trail, enforcing, non_loopback

Call = Callable[[str, Any], object]  # url, CA file or False


def by_requests(url: str, verify: Any) -> object:
    return requests.get(url, verify=verify if verify is False else str(verify), timeout=5)


def by_urllib3(url: str, verify: Any) -> object:
    if verify is False:
        pool = urllib3.PoolManager(cert_reqs="CERT_NONE", retries=False, timeout=5)
    else:
        pool = urllib3.PoolManager(ca_certs=str(verify), retries=False, timeout=5)
    return pool.request("GET", url)


def by_urllib(url: str, verify: Any) -> object:
    context = ssl._create_unverified_context() if verify is False else ssl.create_default_context(cafile=verify)
    with urllib.request.urlopen(url, timeout=5, context=context) as answer:
        return answer.read()


def by_httpx(url: str, verify: Any) -> object:
    context = False if verify is False else ssl.create_default_context(cafile=verify)
    return httpx.get(url, verify=context, timeout=5)


def by_httpx_async(url: str, verify: Any) -> object:
    async def get() -> object:
        context = False if verify is False else ssl.create_default_context(cafile=verify)
        async with httpx.AsyncClient(verify=context, timeout=5) as client:
            return await client.get(url)

    return asyncio.run(get())


def by_aiohttp(url: str, verify: Any) -> object:
    async def get() -> object:
        context = False if verify is False else ssl.create_default_context(cafile=verify)
        async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as answer:
            return await answer.read()

    return asyncio.run(get())


def by_botocore(url: str, verify: Any) -> object:
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, s3={"addressing_style": "path"})
    client = boto3.client(
        "sts",
        endpoint_url=url.removesuffix("/x"),
        verify=verify if verify is False else str(verify),
        config=config,
        region_name="eu-central-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    return client.meta.events and client.get_caller_identity()


LIBRARIES: list[Call] = [by_requests, by_urllib3, by_urllib, by_httpx, by_httpx_async, by_aiohttp, by_botocore]
HTTP_ONLY = [call for call in LIBRARIES if call is not by_botocore]  # botocore wants an AWS to answer


def name(call: Call) -> str:
    return call.__name__.removeprefix("by_")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = classes()
    yield
    left = enforcement.active()
    while enforcement.active():
        enforcement.release()
    assert not left
    assert classes() == before


def classes() -> list[dict[str, Any]]:
    owners = [
        ssl.SSLContext,
        ssl.SSLSocket,
        ssl.SSLObject,
        http.client.HTTPConnection,
        httpcore.ConnectionPool,
        httpcore.AsyncConnectionPool,
        httpcore.HTTP11Connection,
        httpcore.AsyncHTTP11Connection,
        ClientRequest,
    ]
    return [dict(vars(owner)) for owner in owners] + [{"meta_path": [f for f in sys.meta_path if isinstance(f, Watch)]}]


def text_of(error: BaseException) -> str:
    """What a user of the library reads: the error and, for urllib and urllib3, its reason."""
    return str(error)


@pytest.mark.parametrize("call", HTTP_ONLY, ids=name)
def test_a_tls_13_server_is_reached_and_counted(pki: Pki, trail: Trail, call: Call) -> None:
    with pki.server() as server, enforcing(pki.policy(), trail):
        before = enforcement.observed()
        call(f"https://localhost:{server.port}/x", pki.ca.ca_file)
        new = {c: n - before.get(c, 0) for c, n in enforcement.observed().items() if n != before.get(c, 0)}
    assert ("TLSv1.3", "localhost", "client") in {(c.version, c.host, c.side) for c in new}
    assert trail.events == []


@pytest.mark.parametrize("call", LIBRARIES, ids=name)
def test_a_tls_12_server_is_refused_and_the_user_reads_why(pki: Pki, trail: Trail, call: Call) -> None:
    with pki.server(tls12=True) as server, enforcing(pki.policy(), trail):
        with pytest.raises(Exception) as caught:
            call(f"https://localhost:{server.port}/x", pki.ca.ca_file)
    assert "at most TLS 1.2" in text_of(caught.value)
    assert "securemfg.toml" in text_of(caught.value)
    assert set(trail.codes()) == {"tls_version"}


@pytest.mark.parametrize("call", LIBRARIES, ids=name)
def test_verify_false_is_refused_and_the_user_reads_why(pki: Pki, trail: Trail, call: Call) -> None:
    with pki.server() as server, enforcing(pki.policy(), trail):
        with pytest.raises(Exception) as caught:
            call(f"https://localhost:{server.port}/x", False)
    assert "verification is off" in text_of(caught.value)
    assert set(trail.codes()) == {"verification_off"}


@pytest.mark.parametrize("call", LIBRARIES, ids=name)
def test_a_certificate_for_another_host_is_refused(pki: Pki, trail: Trail, call: Call) -> None:
    with pki.server(pki.wrong_host) as server, enforcing(pki.policy(), trail):
        with pytest.raises(Exception) as caught:
            call(f"https://localhost:{server.port}/x", pki.ca.ca_file)
    assert "certificate is not for localhost" in text_of(caught.value)
    assert set(trail.codes()) == {"wrong_host"}


def test_a_certificate_of_an_unknown_issuer_names_the_librarys_own_ca_setting(pki: Pki, trail: Trail) -> None:
    with pki.server(pki.unknown) as server, enforcing(pki.policy(), trail):
        with pytest.raises(requests.exceptions.SSLError, match="CA's certificate file to the library in use"):
            by_requests(f"https://localhost:{server.port}/x", pki.ca.ca_file)
    assert trail.codes() == ["unknown_issuer"]


@pytest.mark.parametrize("call", LIBRARIES, ids=name)
def test_plain_http_is_refused_before_a_byte_and_the_user_reads_why(pki: Pki, trail: Trail, call: Call) -> None:
    address = non_loopback()
    with RawServer(host="0.0.0.0") as server, enforcing(pki.policy(), trail):
        with pytest.raises(Exception) as caught:
            call(f"http://{address}:{server.port}/x", pki.ca.ca_file)
        assert server.received == b""
    assert f"plain http to {address}:{server.port} is refused" in text_of(caught.value)
    assert set(trail.codes()) == {"plaintext"}
    if call is not by_botocore:  # it wraps whatever it meets in its own HTTPClientError
        assert isinstance(caught.value, PlaintextRefused)


@pytest.mark.parametrize("call", HTTP_ONLY, ids=name)
def test_plain_http_to_a_name_that_resolves_to_loopback_is_allowed_and_audited(
    pki: Pki, trail: Trail, call: Call
) -> None:
    with RawServer() as server, enforcing(pki.policy(), trail):
        call(f"http://localhost:{server.port}/x", pki.ca.ca_file)
        assert server.received.startswith(b"GET /x")
    [event] = trail.of("tls.exception_used")
    assert event["detail"]["entry"] == "loopback"
    assert [c.version for c in enforcement.observed() if c.port == server.port] == ["none (local, not protected)"]


@pytest.mark.parametrize("call", HTTP_ONLY, ids=name)
def test_a_loopback_name_that_leads_elsewhere_is_refused_before_a_byte(
    pki: Pki, trail: Trail, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = non_loopback()
    real = socket.getaddrinfo
    with RawServer(host="0.0.0.0") as server, enforcing(pki.policy(), trail):
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: real(address, *a, **k))
        monkeypatch.setattr("securemfg.transport.guard.may_be_local", lambda _: True)
        with pytest.raises(PlaintextRefused, match=f"leads to {address}"):
            call(f"http://localhost:{server.port}/x", pki.ca.ca_file)
        assert server.received == b""
    assert trail.codes() == ["plaintext"]


def test_a_botocore_client_reaches_a_local_aws_and_the_use_is_audited(pki: Pki, trail: Trail, aws: str) -> None:
    import boto3

    with enforcing(pki.policy(), trail):
        assert boto3.client("sts").get_caller_identity()["Account"]
    assert {e["detail"]["entry"] for e in trail.of("tls.exception_used")} == {"loopback"}


def test_contexts_that_rule_tls_13_out_are_refused(pki: Pki, trail: Trail) -> None:
    capped = ssl.create_default_context(cafile=pki.ca.ca_file)
    capped.maximum_version = ssl.TLSVersion.TLSv1_2
    without = ssl.create_default_context(cafile=pki.ca.ca_file)
    without.options |= ssl.OP_NO_TLSv1_3
    with pytest.warns(DeprecationWarning, match="TLSv1_2"):
        fixed = ssl.SSLContext(ssl.PROTOCOL_TLSv1_2)
    fixed.verify_mode = ssl.CERT_REQUIRED
    with pki.server() as server, enforcing(pki.policy(), trail):
        for context in (capped, without, fixed):
            with pytest.raises(ssl.SSLError, match=r"rules out TLS 1\.3") as caught, tcp(server) as plain:
                context.wrap_socket(plain, server_hostname="localhost")
            assert isinstance(caught.value, TlsRefused)
            assert len(caught.value.args) == 2
    assert trail.codes() == ["context_limited"] * 3


def test_a_client_that_names_no_host_is_refused(pki: Pki, trail: Trail) -> None:
    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    context.check_hostname = False
    with pki.server() as server, enforcing(pki.policy(), trail), tcp(server) as plain:
        with pytest.raises(ssl.SSLError, match="pass server_hostname"):
            context.wrap_socket(plain)


def test_the_context_of_a_program_is_the_same_after_each_connection(pki: Pki, trail: Trail) -> None:
    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with pki.server() as server, enforcing(pki.policy(), trail), tcp(server) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as tls:
            assert tls.version() == "TLSv1.3"
            assert (context.minimum_version, context.check_hostname) == (ssl.TLSVersion.TLSv1_2, False)


def test_one_context_serves_a_strict_host_and_one_with_an_exception(pki: Pki, trail: Trail) -> None:
    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    policy = pki.policy(allow=(LOOPBACK, FLOOR_12))
    with pki.server(tls12=True) as server, enforcing(policy, trail):
        with tcp(server) as plain, context.wrap_socket(plain, server_hostname="localhost") as tls:
            assert tls.version() == "TLSv1.2"
        with tcp(server) as plain, pytest.raises(ssl.SSLError, match=r"at most TLS 1\.2"):
            context.wrap_socket(plain, server_hostname="127.0.0.1")
    assert [e["detail"]["version"] for e in trail.of("tls.exception_used")] == ["TLSv1.2"]


def test_a_floor_12_entry_for_loopback_goes_by_the_peers_address(pki: Pki, trail: Trail) -> None:
    entry = LOOPBACK.model_copy(update={"floor": "1.2"})
    with pki.server(tls12=True) as server, enforcing(pki.policy(allow=(entry,)), trail):
        by_requests(f"https://127.0.0.1:{server.port}/x", pki.ca.ca_file)
    assert [e["detail"]["entry"] for e in trail.of("tls.exception_used")] == ["loopback"]


def test_a_connection_wrapped_before_and_shaken_after_does_not_slip_through(pki: Pki, trail: Trail) -> None:
    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    with pki.server(tls12=True) as server, tcp(server) as plain:
        tls = context.wrap_socket(plain, server_hostname="localhost", do_handshake_on_connect=False)
        with tls, enforcing(pki.policy(), trail), pytest.raises(TlsRefused, match=r"TLSv1\.2"):
            tls.do_handshake()
    assert trail.codes() == ["tls_version"]


def test_a_server_of_this_process_refuses_tls_12_clients(pki: Pki, trail: Trail) -> None:
    lax = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lax.load_cert_chain(pki.good.certificate, pki.good.key)
    old = ssl.create_default_context(cafile=pki.ca.ca_file)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    left, right = socket.socketpair()
    with enforcing(pki.policy(), trail), ThreadPoolExecutor(1) as threads:
        serving = threads.submit(lax.wrap_socket, right, server_side=True)
        with choke.exempt(), pytest.raises(ssl.SSLError):
            old.wrap_socket(left, server_hostname="localhost")
        with pytest.raises(ssl.SSLError, match=r"TLS 1\.2"):
            serving.result(5)
    assert trail.codes() == ["tls_version"]
    left.close()
    right.close()


def test_observe_lets_old_tls_and_plain_http_pass_with_events_but_no_unverified_certificate(
    pki: Pki, trail: Trail
) -> None:
    address = non_loopback()
    policy = pki.policy(enforcing=False)
    with pki.server(tls12=True) as old, RawServer(host="0.0.0.0") as plain, enforcing(policy, trail):
        by_requests(f"https://localhost:{old.port}/x", pki.ca.ca_file)
        by_requests(f"http://{address}:{plain.port}/x", True)
        with pytest.raises(requests.exceptions.SSLError, match="verification is off"):
            by_requests(f"https://localhost:{old.port}/x", False)
    assert trail.codes("failure") == ["tls_version", "plaintext"]
    assert trail.codes("denied") == ["verification_off"]


def test_of_several_policies_the_strictest_wins(pki: Pki, trail: Trail) -> None:
    second = Trail()
    lax = pki.policy(enforcing=False)
    with pki.server(tls12=True) as server, enforcing(pki.policy(), trail), enforcing(lax, second):
        with pytest.raises(requests.exceptions.SSLError, match=r"at most TLS 1\.2"):
            by_requests(f"https://localhost:{server.port}/x", pki.ca.ca_file)
    with RawServer() as server, enforcing(pki.policy(allow=()), trail), enforcing(pki.policy(), second):
        with pytest.raises(PlaintextRefused):
            by_requests(server.url, True)


def test_enforcement_ends_with_its_last_release(pki: Pki, trail: Trail) -> None:
    policy = pki.policy()
    enforcement.enforce(policy, trail)
    enforcement.enforce(policy, trail)
    enforcement.release()
    assert enforcement.active()
    assert "_wrap_socket" in vars(ssl.SSLContext)
    enforcement.release()
    assert not enforcement.active()
    with pytest.raises(TransportError, match="without enforce"):
        enforcement.release()


def test_release_of_a_named_policy_leaves_the_other_in_force(pki: Pki, trail: Trail) -> None:
    strict, lax = pki.policy(), pki.policy(enforcing=False)
    enforcement.enforce(strict, trail)
    enforcement.enforce(lax, trail)
    enforcement.release(lax)
    with pki.server(tls12=True) as server, pytest.raises(requests.exceptions.SSLError):
        by_requests(f"https://localhost:{server.port}/x", pki.ca.ca_file)
    enforcement.release(strict)


def test_after_release_a_program_is_as_before(pki: Pki, trail: Trail) -> None:
    with enforcing(pki.policy(), trail):
        pass
    with pki.server(tls12=True) as server, RawServer(host="0.0.0.0") as plain:
        assert by_requests(f"https://localhost:{server.port}/x", False)
        assert by_requests(f"http://{non_loopback()}:{plain.port}/x", True)
    assert trail.events == []


def test_a_patch_that_came_later_is_not_undone(pki: Pki, trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ssl.SSLSocket.do_handshake
    enforcement.enforce(pki.policy(), trail)
    ours = ssl.SSLSocket.do_handshake
    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", lambda self, block=False: ours(self, block))
    theirs = ssl.SSLSocket.do_handshake
    enforcement.release()
    assert ssl.SSLSocket.do_handshake is theirs
    with pki.server(tls12=True) as server:  # ours below it only passes on
        assert by_requests(f"https://localhost:{server.port}/x", pki.ca.ca_file)
    monkeypatch.undo()
    ssl.SSLSocket.do_handshake = original


def test_threads_are_covered_and_share_one_context(pki: Pki, trail: Trail) -> None:
    context = ssl.create_default_context(cafile=pki.ca.ca_file)
    context.check_hostname = False
    with pki.server() as server, pki.server(pki.wrong_host) as wrong, enforcing(pki.policy(), trail):

        def connect(number: int) -> str:
            target = wrong if number % 2 else server
            with tcp(target) as plain:
                try:
                    with context.wrap_socket(plain, server_hostname="localhost") as tls:
                        return str(tls.version())
                except ssl.SSLCertVerificationError:
                    return "wrong host"

        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(connect, range(200)))
    assert results == ["TLSv1.3", "wrong host"] * 100
    assert trail.codes() == ["wrong_host"] * 100


class Stubborn(ssl.SSLContext):
    """Its host name check cannot be turned on: what a thread that keeps loosening it amounts to."""

    def __setattr__(self, key: str, value: object) -> None:
        if key != "check_hostname":
            super().__setattr__(key, value)


def test_a_context_that_another_thread_keeps_loosening_is_refused(pki: Pki, trail: Trail) -> None:
    context = Stubborn(ssl.PROTOCOL_TLS_CLIENT)
    ssl.SSLContext.check_hostname.__set__(context, False)
    context.load_verify_locations(pki.ca.ca_file)
    with pki.server(pki.wrong_host) as wrong, enforcing(pki.policy(), trail), tcp(wrong) as plain:
        with pytest.raises(TlsRefused, match="being changed by another thread"):
            context.wrap_socket(plain, server_hostname="localhost")
    assert trail.codes() == ["context_changing"]


def test_what_a_context_is_for_a_moment_is_not_taken_for_its_own_by_another_thread(pki: Pki, trail: Trail) -> None:
    strict_now, other_made = threading.Event(), threading.Event()

    class Slow(ssl.SSLContext):
        def __setattr__(self, key: str, value: object) -> None:
            super().__setattr__(key, value)
            if key == "check_hostname" and value and not strict_now.is_set():
                strict_now.set()
                assert not other_made.wait(0.3)  # without the lock the other one gets through now, unchecked

    context = Slow(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    strict_now.clear()

    def other() -> None:
        assert strict_now.wait(5)
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
        other_made.set()

    thread = threading.Thread(target=other)
    with enforcing(pki.policy(), trail):
        thread.start()
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
        thread.join()
    assert other_made.is_set()


def test_enforcing_and_releasing_in_many_threads_ends_clean(pki: Pki, trail: Trail) -> None:
    policies = [pki.policy(), pki.policy(allow=())]

    def cycle(number: int) -> None:
        policy = policies[number % 2]
        for _ in range(50):
            enforcement.enforce(policy, trail)
            assert enforcement.active()
            enforcement.release(policy)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(cycle, range(16)))
    assert not enforcement.active()


def test_a_fork_keeps_the_policy(pki: Pki, trail: Trail) -> None:
    with pki.server(tls12=True) as server, enforcing(pki.policy(), trail):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                by_urllib(f"https://localhost:{server.port}/x", pki.ca.ca_file)
            except urllib.error.URLError as error:
                code = 0 if "at most TLS 1.2" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_trail_may_connect_while_it_records_without_an_endless_loop(pki: Pki) -> None:
    seen: list[str] = []

    def emit(action: str, **_: object) -> None:
        seen.append(action)
        with tcp(server) as sock:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.sock = sock
            connection.request("GET", "/audit")

    with RawServer() as server, enforcing(pki.policy(), emit):
        by_requests(server.url, True)
    assert seen == ["tls.exception_used"]


def test_a_quiet_thread_says_a_use_once_and_still_counts_it(pki: Pki, trail: Trail) -> None:
    with RawServer() as server, enforcing(pki.policy(), trail):

        def ship() -> None:
            for _ in range(3):
                with enforcement.quiet():
                    by_requests(server.url, True)

        thread = threading.Thread(target=ship)
        thread.start()
        thread.join()
        assert [n for c, n in enforcement.observed().items() if c.port == server.port] == [3]
        assert len(trail.events) == 1
        by_requests(server.url, True)
        assert len(trail.events) == 2


def test_a_unix_socket_is_local(pki: Pki, trail: Trail) -> None:
    left, right = socket.socketpair()
    connection = http.client.HTTPConnection("docker")
    connection.sock = left
    with left, right, enforcing(pki.policy(), trail):
        connection.request("GET", "/info")
        assert right.recv(100).startswith(b"GET /info")
    assert [e["detail"]["version"] for e in trail.of("tls.exception_used")] == ["none (local, not protected)"]


def test_a_proxy_tunnel_is_allowed_and_what_is_in_it_is_tls(pki: Pki, trail: Trail) -> None:
    with pki.server() as server, Tunnel(server.port) as proxy, enforcing(pki.policy(allow=()), trail):
        url = f"https://localhost:{server.port}/x"
        answer = requests.get(url, proxies={"https": proxy.url}, verify=str(pki.ca.ca_file), timeout=5)
        assert answer.json()["path"] == "/x"
        context = ssl.create_default_context(cafile=pki.ca.ca_file)
        assert httpx.get(url, proxy=proxy.url, verify=context).status_code == 200
    assert trail.codes() == []


def test_plain_http_through_a_local_proxy_is_judged_by_its_target(pki: Pki, trail: Trail) -> None:
    with RawServer() as proxy, enforcing(pki.policy(), trail):
        with pytest.raises(PlaintextRefused, match=r"far\.example"):
            requests.get("http://far.example/x", proxies={"http": proxy.url}, timeout=5)
        with pytest.raises(PlaintextRefused, match=r"far\.example"):
            httpx.get("http://far.example/x", proxy=proxy.url)
        assert proxy.received == b""


def test_our_own_client_under_enforcement_says_everything_once(pki: Pki, trail: Trail) -> None:
    policy = pki.policy()
    with pki.server(tls12=True) as old, pki.server() as good, RawServer() as plain, enforcing(policy, trail):
        with clients.client(policy, trail) as client:
            with pytest.raises(TlsRefused, match=r"at most TLS 1\.2"):
                client.get(f"https://localhost:{old.port}")
            client.get(plain.url)
            client.get(f"https://localhost:{good.port}")
        counts = {c.port: n for c, n in enforcement.observed().items()}
    assert [action for action, _ in trail.events] == ["tls.refused", "tls.exception_used"]
    assert (counts[plain.port], counts[good.port]) == (1, 1)


def test_our_own_client_under_enforcement_reports_a_floor_12_exception_once(pki: Pki, trail: Trail) -> None:
    policy = pki.policy(allow=(FLOOR_12,))
    with pki.server(tls12=True) as old, enforcing(policy, trail), clients.client(policy, trail) as client:
        client.get(f"https://localhost:{old.port}")
        assert [n for c, n in enforcement.observed().items() if c.port == old.port] == [1]
    assert [action for action, _ in trail.events] == ["tls.exception_used"]


LATE = """
import sys
from securemfg.transport import enforcement
from securemfg.transport.policy import TlsPolicy
assert "httpcore" not in sys.modules and "urllib3" not in sys.modules and "aiohttp" not in sys.modules
enforcement.enforce(TlsPolicy(), lambda *a, **k: None)
assert "httpcore" not in sys.modules and "http.client" not in sys.modules
import httpx, urllib.request, httpcore, http.client
from securemfg.errors import PlaintextRefused
for call in (lambda: httpx.get("http://192.0.2.1/"), lambda: urllib.request.urlopen("http://192.0.2.1/")):
    try:
        call()
    except PlaintextRefused:
        pass
    else:
        raise SystemExit("not refused")
assert "_Loader" not in repr(httpcore.__spec__.loader) + repr(httpcore.__loader__)
patched = httpcore.HTTP11Connection.handle_request, http.client.HTTPConnection.send
enforcement.release()
assert httpcore.HTTP11Connection.handle_request is not patched[0]
assert http.client.HTTPConnection.send is not patched[1]
"""


def test_libraries_imported_later_are_guarded_and_none_is_imported_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def tcp(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


class Tunnel(RawServer):
    """A proxy that knows CONNECT and one destination."""

    def __init__(self, to: int) -> None:
        self._to = to
        super().__init__()

    def _serve(self, connection: socket.socket) -> None:
        while not self.received.endswith(b"\r\n\r\n"):
            self.received += connection.recv(65536)
        self.received = b""
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        far = socket.create_connection(("127.0.0.1", self._to))

        def pump(source: socket.socket, target: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        back = threading.Thread(target=pump, args=(far, connection), daemon=True)
        back.start()
        pump(connection, far)
        back.join(5)
        connection.close()
        far.close()
