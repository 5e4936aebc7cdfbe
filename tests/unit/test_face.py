"""The face: what `import securemfg` offers and costs, TLS by default settings, and how a process ends and forks."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import securemfg
from securemfg.audit import verify
from securemfg.errors import ConfigError, PlaintextRefused, TransportError
from securemfg.transport import enforcement
from tests.parts.tls import Pki, RawServer, non_loopback, pki  # noqa: F401  # a fixture
from tests.parts.trail import actions, events, settings

MEMBERS = [
    "AccessDenied",
    "AuditError",
    "CatalogError",
    "ConfigError",
    "CredentialDenied",
    "CredentialError",
    "CredentialExpired",
    "DecryptionError",
    "EncryptionError",
    "EvidenceError",
    "KeyUnavailable",
    "PlaintextRefused",
    "Secret",
    "SecureMfgError",
    "Sensitivity",
    "Stage",
    "Step",
    "TlsRefused",
    "TransportError",
    "Workflow",
    "__version__",
    "artifacts",
    "audit",
    "authorize",
    "aws_session",
    "current",
    "encryption",
    "secret",
    "step",
    "tls",
]
PARTS = {
    "artifacts": ["activate", "active", "deactivate", "open_artifact"],
    "audit": [
        "Journal", "Problem", "Receipt", "Shipped", "Shipper", "Strength", "Summary", "Tags", "Trail",
        "Verification", "event", "read_events", "verify",
    ],
    "tls": ["async_client", "client", "enforce", "release"],
}  # fmt: skip


def test_the_members_are_these_and_no_others() -> None:
    assert securemfg.__all__ == MEMBERS
    assert dir(securemfg) == sorted(MEMBERS)


def test_every_member_resolves() -> None:
    for name in MEMBERS:
        assert getattr(securemfg, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'stepp'"):
        securemfg.stepp  # noqa: B018


@pytest.mark.parametrize("part", PARTS)
def test_every_member_of_a_part_resolves(part: str) -> None:
    module = getattr(securemfg, part)
    assert module is importlib.import_module(f"securemfg.{part}")
    assert sorted(module.__all__) == PARTS[part]
    for name in PARTS[part]:
        assert getattr(module, name) is not None


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` as a script in the working folder; what it printed."""
    Path("script.py").write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "script.py"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_and_decorating_brings_in_no_heavy_library() -> None:
    ran = python(
        "import sys, securemfg\n"
        "@securemfg.step('training', assets=['a'], credentials=['b'])\n"
        "def train(): ...\n"
        "@securemfg.step('inference')\n"
        "async def predict(): ...\n"
        "heavy = 'hvac boto3 botocore mlflow httpx structlog pydantic cryptography yaml requests asyncio typer'.split()\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr
    assert not Path(".securemfg").exists()


def test_importing_patches_nothing() -> None:
    ran = python(
        "import ssl, socket, http.client\n"
        "before = ssl.SSLContext, socket.socket.connect, ssl.SSLContext.wrap_socket, http.client.HTTPConnection.connect\n"
        "import securemfg, securemfg.workflow, securemfg.tls, securemfg.artifacts.activation\n"
        "after = ssl.SSLContext, socket.socket.connect, ssl.SSLContext.wrap_socket, http.client.HTTPConnection.connect\n"
        "print(before == after)\n"
    )
    assert ran.stdout.strip() == "True", ran.stderr


# -- the end of a process


def test_a_process_that_ends_normally_leaves_a_sealed_and_verified_journal() -> None:
    ran = python("import securemfg\nwith securemfg.step('training'):\n    pass\n")
    assert ran.returncode == 0, ran.stderr
    found = verify(Path(".securemfg/journal"))
    assert found.ok
    assert found.tail == 0
    assert [event["action"] for event in events()] == [
        "journal.opened",
        "step.started",
        "step.finished",
        "journal.closed",
    ]


def test_a_process_that_exits_inside_a_step_leaves_a_failed_step_and_its_code() -> None:
    ran = python("import sys, securemfg\nwith securemfg.step('training'):\n    sys.exit(7)\n")
    assert ran.returncode == 7, ran.stderr
    assert actions() == ["step.started", "step.failed"]
    assert verify(Path(".securemfg/journal")).tail == 0


def test_an_unhandled_error_shows_its_own_traceback_only() -> None:
    ran = python("import securemfg\n@securemfg.step('training')\ndef train():\n    return 1 / 0\ntrain()\n")
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "During handling" not in ran.stderr
    assert actions() == ["step.started", "step.failed"]


def test_a_fork_inside_a_step_writes_to_its_own_writer() -> None:
    ran = python(
        "import os, sys, securemfg\n"
        "with securemfg.step('training', name='outer') as step:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        securemfg.audit.event('child.worked')\n"
        "        with securemfg.step('evaluation', name='inner'):\n"
        "            pass\n"
        "        securemfg.workflow.reset()\n"
        "        os._exit(0)\n"
        "    print(os.waitpid(child, 0)[1])\n"
        "    securemfg.audit.event('parent.worked')\n"
    )
    assert ran.stdout.strip() == "0", ran.stderr
    found = verify(Path(".securemfg/journal"))
    assert found.ok
    assert found.tail == 0
    assert len(found.writers) == 2
    writers = {event["action"]: event["writer"] for event in events() if not event["action"].startswith("step.")}
    assert writers["child.worked"] != writers["parent.worked"]
    by_writer = [(e["step"], e["action"], e["writer"] == writers["child.worked"]) for e in events("step.")]
    assert sorted(by_writer) == [
        ("inner", "step.finished", True),
        ("inner", "step.started", True),
        ("outer", "step.finished", False),
        ("outer", "step.started", False),
    ]


def test_multiprocessing_workers_keep_their_own_trail() -> None:
    ran = python(
        "import multiprocessing, securemfg\n"
        "@securemfg.step('evaluation')\n"
        "def work(number):\n"
        "    return number * number\n"
        "if __name__ == '__main__':\n"
        "    with securemfg.step('training'):\n"
        "        with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "            print(pool.map(work, range(6)))\n"
    )
    assert ran.stdout.strip() == "[0, 1, 4, 9, 16, 25]", ran.stderr
    found = verify(Path(".securemfg/journal"))
    assert found.ok, found.problems
    finished = events("step.finished")
    assert len([event for event in finished if event["step"] == "work"]) == 6


# -- TLS


def test_tls_is_enforced_inside_a_step_and_released_after() -> None:
    import http.client
    import ssl

    before = ssl.SSLContext.wrap_socket, http.client.HTTPConnection.connect
    with securemfg.step("training"), securemfg.step("evaluation"):
        assert enforcement.active()
    assert not enforcement.active()
    securemfg.workflow.reset()
    assert (ssl.SSLContext.wrap_socket, http.client.HTTPConnection.connect) == before


def test_plain_http_outside_loopback_is_refused_inside_a_step_and_served_outside() -> None:
    with RawServer(host=non_loopback()) as server:
        with securemfg.step("training"):
            with pytest.raises((PlaintextRefused, urllib.error.URLError)) as caught:
                urllib.request.urlopen(server.url, timeout=5)
            with pytest.raises(PlaintextRefused):
                securemfg.current().http.get(server.url)
        assert "PlaintextRefused" in repr((caught.value, getattr(caught.value, "reason", "")))
        assert server.received == b""
        assert urllib.request.urlopen(server.url, timeout=5).read() == b"{}"
    assert [event["outcome"] for event in events("tls.refused")] == ["denied", "denied"]
    assert {event["step"] for event in events("tls.refused")} == {"training"}


def test_an_exception_in_the_body_releases_tls_as_well() -> None:
    with pytest.raises(ValueError, match="mine"):
        with securemfg.step("training"):
            raise ValueError("mine")
    assert not enforcement.active()


def test_enforce_and_release_are_a_counted_pair() -> None:
    with pytest.raises(TransportError, match="without enforce"):
        securemfg.tls.release()
    securemfg.tls.enforce()
    securemfg.tls.enforce()
    securemfg.tls.release()
    assert enforcement.active()
    with securemfg.step("training"):
        pass
    assert enforcement.active()
    securemfg.tls.release()
    assert not enforcement.active()


def test_the_client_speaks_tls_13_to_a_private_authority_and_nothing_less(pki: Pki) -> None:  # noqa: F811
    settings(f'[tls]\nca_file = "{pki.ca.ca_file}"\n')
    with pki.server() as good, securemfg.tls.client() as client:
        answer = client.post(f"{good.url}/x", json={"a": 1})
        assert answer.json() == {"path": "/x", "body": {"a": 1}}
    with pki.server(tls12=True) as old, securemfg.tls.client() as client:
        with pytest.raises(securemfg.TlsRefused):
            client.get(f"{old.url}/x")
    with pytest.raises(ConfigError, match="verify"):
        securemfg.tls.client(verify=False)


async def test_the_async_client_does_the_same(pki: Pki) -> None:  # noqa: F811
    settings(f'[tls]\nca_file = "{pki.ca.ca_file}"\n')
    with pki.server() as good:
        async with securemfg.tls.async_client() as client:
            assert (await client.post(f"{good.url}/y", json=2)).json() == {"path": "/y", "body": 2}


def test_a_step_counts_its_connections_and_closes_its_client(pki: Pki) -> None:  # noqa: F811
    settings(f'[tls]\nca_file = "{pki.ca.ca_file}"\n')
    with pki.server() as good:
        with securemfg.step("inference") as step:
            step.http.post(f"{good.url}/x", json=1)
            client = step.http
        assert client.is_closed
    detail = events("step.finished")[0]["detail"]
    assert (detail["tls_connections"], detail["tls_versions"]) == (1, "TLSv1.3")
