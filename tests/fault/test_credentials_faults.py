"""When things go wrong: Vault sealed, stopped, redirecting, slow or something else; forks; the end of the process."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from securemfg.config import load
from securemfg.credentials.broker import Broker
from securemfg.credentials.grant import Wanted
from securemfg.credentials.sources import sources, vault_client
from securemfg.credentials.vault import VaultSource
from securemfg.credentials.vault_client import VaultClient
from securemfg.credentials.vault_session import session as strict_session
from securemfg.errors import (
    ConfigError,
    CredentialDenied,
    CredentialError,
    CredentialExpired,
    PlaintextRefused,
)
from securemfg.settings import CredentialSettings, VaultAuth, VaultSettings
from tests.parts import until
from tests.parts.openbao import OpenBao, Role, free_port
from tests.unit.credentials.doubles import Clock, Counting, Events, Setup

CANARY = "canary-fault-77"
RULES = {"secret/data/ai": ["read"]}


def settings(
    address: str, role: Role | None = None, *, folder: Path | None = None, timeout: float = 2
) -> VaultSettings:
    if role is not None:
        auth = VaultAuth(role_id=role.role_id, secret_id_file=role.secret_id_file)
    else:
        assert folder is not None
        file = folder / "secret-id"
        file.write_text("secret-id-" + CANARY)
        auth = VaultAuth(role_id="role", secret_id_file=file)
    return VaultSettings(address=address, auth=auth, timeout=timedelta(seconds=timeout))


def broker(client: VaultClient, clock: Callable[[], float] = time.monotonic, events: Events | None = None) -> Broker:
    return Broker(
        {"ai": CredentialSettings(vault="secret/ai", ttl="60s")},
        sources={"vault": lambda: VaultSource(client)},
        emit=events or Events(),
        clock=clock,
        draw=lambda: 0.0,
    )


@pytest.mark.live
def test_sealed_server_is_named_and_the_old_credential_served_until_it_runs_out(
    openbao_alone: OpenBao, tmp_path: Path
) -> None:
    openbao_alone.write("secret/ai", {"key": CANARY})
    role = openbao_alone.role(tmp_path, rules=RULES)
    clock = Clock()
    client = VaultClient(settings(openbao_alone.address, role, timeout=0.5), origin=lambda name: f"plant.toml {name}")
    made = broker(client, clock)
    lease = made.acquire("ai", "step")
    openbao_alone.seal()
    clock.forward(45)
    assert lease.credential()["key"].reveal() == CANARY
    clock.forward(15)
    with pytest.raises(
        CredentialExpired, match=rf"{openbao_alone.address} \(plant.toml vault.address\).*sealed.*check that it runs"
    ):
        lease.credential()
    openbao_alone.unseal()
    clock.forward(60)
    until(lambda: _key(lease) == CANARY)
    made.close()


def _key(lease) -> str | None:
    try:
        return lease.credential()["key"].reveal()
    except CredentialError:
        return None


@pytest.mark.live
def test_stopped_server_is_named_within_the_deadline_and_close_is_quiet(openbao_alone: OpenBao, tmp_path: Path) -> None:
    openbao_alone.write("secret/ai", {"key": CANARY})
    role = openbao_alone.role(tmp_path, rules=RULES)
    made = broker(VaultClient(settings(openbao_alone.address, role, timeout=0.5)))
    made.acquire("ai", "step")
    openbao_alone.stop()
    other = broker(VaultClient(settings(openbao_alone.address, role, timeout=0.5)))
    with pytest.raises(
        CredentialError, match=rf"Vault at {openbao_alone.address} .*could not be used.*Connection refused"
    ):
        other.acquire("ai", "step")
    made.close()
    other.close()


# -- a server that misbehaves


@dataclass
class Answers:
    """An http server: each request gets the next answer, the last one for ever."""

    address: str = ""
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    next: list[Callable[[http.server.BaseHTTPRequestHandler], None]] = field(default_factory=list)

    def tokens(self) -> list[str]:
        return [headers["x-vault-token"] for _, _, headers in self.seen if "x-vault-token" in headers]

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.seen]


def answer(status: int, body: object = None, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    return send


LOGIN = answer(200, {"auth": {"client_token": f"token-{CANARY}", "lease_duration": 60, "renewable": False}})
MOUNT = answer(200, {"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}})
VALUE = answer(200, {"data": {"data": {"key": CANARY}}})


@contextmanager
def answering(*next_: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[Answers]:
    answers = Answers(next=list(next_))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answers.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            reply = answers.next.pop(0) if len(answers.next) > 1 else answers.next[0]
            try:
                reply(self)
            except OSError:
                self.close_connection = True

        do_GET = do_POST = do_PUT = _serve  # noqa: N815 - the names http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    answers.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_redirect_is_refused_and_the_token_goes_nowhere(tmp_path: Path) -> None:
    with answering(VALUE) as elsewhere:
        away = answer(307, None, Location=f"{elsewhere.address}/v1/secret/data/ai")
        with answering(LOGIN, MOUNT, away) as vault:
            client = VaultClient(settings(vault.address, folder=tmp_path))
            with pytest.raises(CredentialError, match=f"redirects to {elsewhere.address}: not followed"):
                broker(client).acquire("ai", "step")
            assert vault.tokens() == [f"token-{CANARY}"] * 2
        assert elsewhere.seen == []


@pytest.mark.parametrize("status", [412, 429, 472, 473, 500, 502, 503])
def test_server_that_is_not_ready_is_asked_again(tmp_path: Path, status: int) -> None:
    wait: list[float] = []
    busy = answer(status, {"errors": ["not now"]}, Retry_After="1")
    with answering(busy, LOGIN, MOUNT, busy, busy, VALUE) as vault:
        client = VaultClient(settings(vault.address, folder=tmp_path, timeout=10), sleep=wait.append)
        assert broker(client).acquire("ai", "step").credential()["key"].reveal() == CANARY
        assert sum("login" in path for path in vault.paths()) == 2, "a busy server is no reason to log in again"
    assert wait == [1.0, 1.0, 1.0], "Retry-After is honoured"


def test_wait_that_server_asks_for_is_not_beyond_the_deadline(tmp_path: Path) -> None:
    busy = answer(429, {"errors": ["request path quota"]}, Retry_After="3600")
    with answering(busy) as vault:
        client = VaultClient(settings(vault.address, folder=tmp_path), sleep=lambda _: pytest.fail("no use in waiting"))
        with pytest.raises(CredentialError, match=r"asks to wait \(quota or standby\).*request path quota"):
            broker(client).acquire("ai", "step")


def test_connection_cut_in_the_middle_is_tried_again(tmp_path: Path) -> None:
    def cut(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"data":')
        handler.wfile.flush()
        handler.connection.shutdown(2)
        handler.close_connection = True

    with answering(LOGIN, MOUNT, cut, VALUE) as vault:
        made = broker(VaultClient(settings(vault.address, folder=tmp_path)))
        assert made.acquire("ai", "step").credential()["key"].reveal() == CANARY


def test_reply_that_trickles_ends_at_the_deadline(tmp_path: Path) -> None:
    ended = threading.Event()

    def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 20))
        handler.end_headers()
        while not ended.wait(0.02):
            handler.wfile.write(b" " * 70000)
            handler.wfile.flush()

    with answering(LOGIN, MOUNT, trickle) as vault:
        client = VaultClient(settings(vault.address, folder=tmp_path, timeout=0.3))
        with pytest.raises(CredentialError, match="could not be used"):
            broker(client).acquire("ai", "step")
        ended.set()


def test_reply_of_something_else_and_a_huge_one_are_refused(tmp_path: Path) -> None:
    with answering(answer(200, b"<html>portal</html>")) as portal:
        with pytest.raises(CredentialError, match=f"{portal.address}.*does not speak Vault's API"):
            broker(VaultClient(settings(portal.address, folder=tmp_path))).acquire("ai", "step")
    with answering(LOGIN, MOUNT, answer(200, b" " * (5 << 20))) as vault:
        with pytest.raises(CredentialError, match="larger than 4 MiB"):
            broker(VaultClient(settings(vault.address, folder=tmp_path))).acquire("ai", "step")


def test_failed_login_is_shared_by_the_leases_that_waited_for_it(tmp_path: Path) -> None:
    gate = threading.Event()

    def slow_refusal(handler: http.server.BaseHTTPRequestHandler) -> None:
        gate.wait(10)
        answer(418, {"errors": ["a teapot"]})(handler)

    with answering(slow_refusal) as vault:
        asked: list[int] = []

        def clock() -> float:
            asked.append(threading.get_ident())
            return time.monotonic()

        client = VaultClient(settings(vault.address, folder=tmp_path, timeout=10), clock=clock)
        source = VaultSource(client)
        errors: list[Exception] = []

        def lease(number: int) -> None:
            try:
                source.lease(Wanted(name=f"c{number}", settings=CredentialSettings(vault="secret/ai")))
            except CredentialError as error:
                errors.append(error)

        threads = [threading.Thread(target=lease, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(vault.seen) == 1)
        until(lambda: all(asked.count(thread.ident) >= 2 for thread in threads))  # their deadline, and at the lock
        gate.set()
        for thread in threads:
            thread.join(10)
        assert len(errors) == 8
        assert len(vault.seen) == 1


def test_plain_http_to_another_machine_is_refused_before_a_byte_is_sent(tmp_path: Path) -> None:
    with answering(LOGIN, MOUNT, VALUE) as vault:
        nothing_is_local = lambda host, port, peer: False  # noqa: E731
        client = VaultClient(
            settings(vault.address, folder=tmp_path), session=lambda: strict_session(plain_to=nothing_is_local)
        )
        with pytest.raises(PlaintextRefused, match=r"would be spoken to without TLS.*use its https address"):
            broker(client).acquire("ai", "step")
        assert vault.seen == []


def test_settings_tls_rules_hold_for_vault(tmp_path: Path) -> None:
    with answering(LOGIN, MOUNT, VALUE) as vault:
        file = tmp_path / "securemfg.toml"
        (tmp_path / "secret-id").write_text("x")
        text = f"""
            [vault]
            address = "{vault.address}"
            auth = {{ role_id = "r", secret_id_file = "secret-id" }}
            [credentials]
            ai = {{ vault = "secret/ai" }}
        """
        file.write_text(textwrap.dedent(text))
        config = load(file, environment={})
        made = Broker(config.settings.credentials, sources=sources(config), emit=Events(), origin=config.origin)
        assert made.acquire("ai", "step").credential()["key"].reveal() == CANARY
        made.close()
        strict = load(file, environment={}, overrides={"tls.allow": ()})
        with pytest.raises(PlaintextRefused):
            vault_client(strict).request("get", "secret/data/ai")


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        (VaultAuth(), "needs 'role_id'"),
        (VaultAuth(role_id="r"), "needs 'secret_id_file'"),
        (VaultAuth(method="token"), "needs 'token_file'"),
        (VaultAuth(method="jwt", role="r"), "needs 'jwt_file'"),
        (VaultAuth(method="kubernetes"), "needs 'role'"),
    ],
)
def test_login_that_lacks_a_setting_says_which(auth: VaultAuth, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VaultClient(VaultSettings(address="https://vault:8200", auth=auth))


def test_absent_and_empty_secret_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "secret-id"
    auth = VaultAuth(role_id="r", secret_id_file=file)
    made = broker(VaultClient(VaultSettings(address=f"http://127.0.0.1:{free_port()}", auth=auth)))
    with pytest.raises(CredentialError, match=f"{file} .*cannot be read: No such file"):
        made.acquire("ai", "step")
    file.write_text("\n")
    other = broker(VaultClient(VaultSettings(address=f"http://127.0.0.1:{free_port()}", auth=auth)))
    with pytest.raises(CredentialError, match="is empty"):
        other.acquire("ai", "step")


# -- forks and the end of the process


def in_child(work: Callable[[], object]) -> str:
    """What `work` gives in a forked child."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                text = str(work())
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            os.write(writable, text.encode())
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.live
def test_forked_child_logs_in_for_itself_and_never_uses_the_parent_s_socket(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.write("secret/ai", {"key": CANARY})
    role = openbao.role(tmp_path, rules=RULES)
    client = VaultClient(settings(openbao.address, role, timeout=5))
    made = broker(client)
    lease = made.acquire("ai", "step")
    lease.credential()
    parent = client._token.value.reveal()
    adapter = id(client._adapter)

    def child() -> str:
        forgotten = client._token is None and client._adapter is None
        value = lease.credential()["key"].reveal()
        own = client._token.value.reveal() != parent and id(client._adapter) != 0
        made.close()
        return f"{forgotten} {value} {own}"

    assert in_child(child) == f"True {CANARY} True"
    assert id(client._adapter) == adapter
    assert client.request("get", "auth/token/lookup-self")["data"]["id"] == parent, (
        "the child revoked its own token only"
    )
    made.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_in_the_middle_of_a_request_does_not_stop_the_child() -> None:
    setup = Setup(source=Counting())
    made = setup.broker()
    lease = made.acquire("features-db", "step")
    setup.source.gate = threading.Event()
    setup.clock.forward(99)
    waiting = threading.Thread(target=lease.credential)
    waiting.start()
    until(lambda: setup.source.leases == 2)
    shared = lease._shared

    def child() -> str:
        setup.source.gate = None
        return lease.credential()["username"].reveal()

    with shared._lock, made._lock:  # as another thread might hold them at the fork
        assert in_child(child) == "user-3"
    setup.source.gate.set()
    waiting.join(10)
    made.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_child_s_close_leaves_the_parent_s_leases_alone(tmp_path: Path) -> None:
    setup = Setup(source=Counting())
    made = setup.broker()
    lease = made.acquire("features-db", "step")

    def child() -> str:
        made.close()
        return f"revoked {setup.source.revoked} told {setup.events.of('credential.revoked')}"

    assert in_child(child) == "revoked [] told []"
    assert lease.credential()["username"].reveal() == "user-1"
    made.close()


@pytest.mark.live
def test_token_is_revoked_at_exit_and_the_body_s_exception_stands(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.write("secret/ai", {"key": CANARY})
    role = openbao.role(tmp_path, rules=RULES)
    program = f"""
        import atexit
        from datetime import timedelta
        from pathlib import Path
        from securemfg.credentials.broker import Broker
        from securemfg.credentials.vault import VaultSource
        from securemfg.credentials.vault_client import VaultClient
        from securemfg.settings import CredentialSettings, VaultAuth, VaultSettings

        auth = VaultAuth(role_id={role.role_id!r}, secret_id_file=Path({str(role.secret_id_file)!r}))
        client = VaultClient(VaultSettings(address={openbao.address!r}, auth=auth))
        broker = Broker({{"ai": CredentialSettings(vault="secret/ai")}},
                        sources={{"vault": lambda: VaultSource(client)}}, emit=lambda *a, **k: None)
        atexit.register(broker.close)
        broker.acquire("ai", "step").credential()
        print(client.request("get", "auth/token/lookup-self")["data"]["accessor"], flush=True)
        raise LookupError("the body's own")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    accessor = done.stdout.strip()
    assert len(accessor) > 10, done.stderr
    assert openbao.lookup(accessor) is None
    assert done.stderr.strip().endswith("LookupError: the body's own")
    assert CANARY not in done.stdout + done.stderr


def test_package_stays_light() -> None:
    program = """
        import sys
        import securemfg.credentials, securemfg.credentials.broker, securemfg.credentials.sources
        import securemfg.credentials.vault, securemfg.credentials.sts, securemfg.credentials.secrets_manager
        print(sorted({"hvac", "boto3", "botocore", "requests", "httpx", "mlflow"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_denial_of_a_login_tells_nothing_of_the_secret(tmp_path: Path) -> None:
    with answering(answer(400, {"errors": ["invalid role or secret ID"]})) as vault:
        events = Events()
        made = broker(VaultClient(settings(vault.address, folder=tmp_path)), events=events)
        with pytest.raises(CredentialDenied) as denied:
            made.acquire("ai", "step")
        assert CANARY not in str(denied.value) + repr(events.kept)
