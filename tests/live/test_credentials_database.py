"""Dynamic credentials: a real OpenBao makes, extends and removes users of a real PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from securemfg.credentials.broker import Broker
from securemfg.credentials.vault import VaultSource
from securemfg.credentials.vault_client import VaultClient
from securemfg.errors import CredentialExpired
from securemfg.settings import CredentialSettings, VaultAuth, VaultSettings
from tests.parts import missing, until
from tests.parts.openbao import OpenBao, free_port, unique
from tests.unit.credentials.doubles import Events

pytestmark = pytest.mark.live


@dataclass(frozen=True)
class Postgres:
    port: int
    folder: Path

    def query(self, text: str) -> str:
        command = ["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "owner", "-d", "postgres", "-Atqc", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    def users(self, like: str) -> list[str]:
        return self.query(f"select rolname from pg_roles where rolname like '%{like}%' order by 1").splitlines()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if not all(shutil.which(name) for name in ("initdb", "postgres", "psql")):
        missing("PostgreSQL", "apt install postgresql, with its bin folder in PATH")
    users = {user.pw_name for user in pwd.getpwall()}  # it refuses to run as root; not every image has its own user
    owner = ("postgres" if "postgres" in users else "nobody") if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if owner is not None:
            shutil.chown(folder, owner)
        data, port = folder / "data", free_port()
        subprocess.run(
            ["initdb", "-D", str(data), "-U", "owner", "-A", "trust", "--no-sync"],
            user=owner,
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=60,
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["postgres", "-D", str(data), "-p", str(port), "-k", name, "-h", "127.0.0.1", "-F"],
                user=owner,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            server = Postgres(port, folder)
            until(lambda: _answers(server), what="PostgreSQL")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown: the smart one waits for OpenBao's connections
            process.wait(20)


def _answers(server: Postgres) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), 1).close()
        return server.query("select 1") == "1"
    except (OSError, subprocess.CalledProcessError):
        return False


@dataclass
class Engine:
    openbao: OpenBao
    mount: str
    marker: str

    @property
    def path(self) -> str:
        return f"{self.mount}/creds/{self.marker}"

    def live(self) -> list[str]:
        return self.openbao.leases(self.path)


@pytest.fixture
def engine(openbao: OpenBao, postgres: Postgres) -> Engine:
    mount, marker = unique("database"), f"t{unique('r').replace('-', '')}"
    openbao.api("POST", f"sys/mounts/{mount}", {"type": "database"})
    openbao.api(
        "POST",
        f"{mount}/config/plant",
        {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": "*",
            "connection_url": f"postgresql://owner:x@127.0.0.1:{postgres.port}/postgres?sslmode=disable",
        },
    )
    return Engine(openbao, mount, marker)


def role(engine: Engine, *, ttl: str = "60s", most: str = "120s") -> None:
    engine.openbao.api(
        "POST",
        f"{engine.mount}/roles/{engine.marker}",
        {
            "db_name": "plant",
            "creation_statements": ["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"],
            "revocation_statements": ['DROP ROLE "{{name}}"'],
            "default_ttl": ttl,
            "max_ttl": most,
        },
    )


def broker(
    engine: Engine, folder: Path, events: Events, *, revoke: bool = True, linger: float = 0.0, **token: str
) -> Broker:
    rules = {engine.path: ["read"]}
    if revoke:
        rules["sys/leases/revoke"] = ["update"]
    approle = engine.openbao.role(folder, rules=rules, **{"token_ttl": "60s", **token})
    settings = VaultSettings(
        address=engine.openbao.address,
        auth=VaultAuth(role_id=approle.role_id, secret_id_file=approle.secret_id_file),
        timeout=timedelta(seconds=5),
    )
    return Broker(
        {"features-db": CredentialSettings(vault=engine.path)},
        sources={"vault": lambda: VaultSource(VaultClient(settings))},
        emit=events,
        linger=timedelta(seconds=linger),
    )


def test_database_user_lives_as_long_as_its_last_step(engine: Engine, postgres: Postgres, tmp_path: Path) -> None:
    role(engine)
    events = Events()
    made = broker(engine, tmp_path, events)
    name = made.acquire("features-db", "step-1").credential()["username"].reveal()
    made.acquire("features-db", "step-2")
    assert postgres.users(engine.marker[:8]) == [name]
    assert len(engine.live()) == 1
    made.leave("step-1")
    assert len(engine.live()) == 1
    made.leave("step-2")
    until(lambda: engine.live() == [], what="the lease's end, as the server sees it")
    assert postgres.users(engine.marker[:8]) == []
    until(lambda: events.actions() == ["credential.leased", "credential.revoked"])
    made.close()


def test_short_lease_is_extended_while_a_step_uses_it(engine: Engine, tmp_path: Path) -> None:
    role(engine, ttl="2s", most="60s")
    events = Events()
    made = broker(engine, tmp_path, events)
    lease = made.acquire("features-db", "step")
    first = lease.credential()["username"].reveal()
    until(lambda: len(events.of("credential.renewed")) >= 3)
    assert lease.credential()["username"].reveal() == first
    assert {event["detail"]["how"] for event in events.of("credential.renewed")} == {"extended"}
    assert len(engine.live()) == 1
    made.close()
    assert engine.live() == []


def test_lease_at_its_maximum_is_replaced_without_a_gap(engine: Engine, postgres: Postgres, tmp_path: Path) -> None:
    role(engine, ttl="2s", most="3s")
    events = Events()
    made = broker(engine, tmp_path, events, linger=1.0)
    lease = made.acquire("features-db", "step")
    seen: list[str] = []

    def three_users() -> bool:
        name = lease.credential()["username"].reveal()
        if name not in seen:
            seen.append(name)
        assert name in postgres.users(engine.marker[:8]), "handed out a user that is gone"
        return len(seen) >= 3

    until(three_users)
    assert [event["outcome"] for event in events.of("credential.renewed")].count("failure") == 0
    made.close()


def test_lease_is_bounded_by_its_token_and_outlives_it_by_replacement(engine: Engine, tmp_path: Path) -> None:
    role(engine, ttl="600s", most="1200s")
    events = Events()
    made = broker(engine, tmp_path, events, token_ttl="2s", token_max_ttl="4s")
    lease = made.acquire("features-db", "step")
    seen: set[str] = set()

    def replaced() -> bool:
        seen.add(lease.credential()["username"].reveal())
        return len(seen) >= 2

    until(replaced)
    assert lease.credential()["username"].reveal() in seen
    made.close()


def test_without_the_right_to_revoke_it_is_told_and_ends_with_the_token(engine: Engine, tmp_path: Path) -> None:
    role(engine)
    events = Events()
    made = broker(engine, tmp_path, events, revoke=False)
    lease = made.acquire("features-db", "step")
    made.leave("step")
    until(lambda: events.of("credential.revoked"))
    (event,) = events.of("credential.revoked")
    assert event["outcome"] == "failure"
    assert "does not allow PUT 'sys/leases/revoke'" in event["reason"]
    assert len(engine.live()) == 1
    with pytest.raises(CredentialExpired):
        lease.credential()
    made.close()
    until(lambda: engine.live() == [], what="the cascade from the token's revocation")
