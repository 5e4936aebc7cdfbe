"""Shipping to CloudWatch Logs: moto over HTTP, real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest

from securemfg.audit import Journal, Shipper, Trail, verify
from securemfg.audit.cloudwatch import logs_client
from securemfg.audit.logs import configure
from securemfg.errors import AuditError
from securemfg.labels import Sensitivity
from securemfg.settings import AuditSettings
from tests.parts import until
from tests.unit.audit.parts import TAGS, raw_lines, tags, writer_lines

pytestmark = pytest.mark.live

GROUP = "ai-workflow-logs"
QUICK = {"interval": timedelta(milliseconds=20), "backoff": (0.01, 0.05)}


def stored(stream: str) -> list[bytes]:
    """Every message of a stream, in the service's order."""
    client, found, token = logs_client(), [], None
    while True:
        page = client.get_log_events(
            logGroupName=GROUP, logStreamName=stream, startFromHead=True, **({"nextToken": token} if token else {})
        )
        found += [event["message"].encode() for event in page["events"]]
        if not page["events"] or page["nextForwardToken"] == token:
            return found
        token = page["nextForwardToken"]


def events_of(messages: list[bytes]) -> list[bytes]:
    return sorted((m for m in messages if b'"schema_version"' in m), key=lambda m: json.loads(m)["seq"])


def test_the_service_holds_the_journal_s_exact_bytes_and_its_signed_checkpoints(aws, tmp_path):
    journal = Journal(tmp_path / "site" / "journal", checkpoint_events=100)
    for number in range(450):
        journal.append(TAGS, "model.predicted", resource=f"m{number}", detail={"note": 'é "quoted" \u2028 \\ 😀'})
    journal.close(5)
    shipper = Shipper(journal.folder, logs_client, GROUP)
    done = shipper.ship_pending(30)
    assert (done.events, done.writers, done.pending, done.problem) == (452, 1, 0, None)
    (writer,) = journal.writer_ids
    messages = stored(writer)
    assert events_of(messages) == raw_lines(journal)
    notes = [json.loads(message)["checkpoint"] for message in messages if b'"checkpoint"' in message]
    assert "".join(note + "\n" for note in sorted(notes, key=lambda note: int(note.split("\n")[1]))) == (
        journal.folder / writer / "checkpoints"
    ).read_text(encoding="utf-8")
    assert verify(journal.folder, anchor=max(notes, key=lambda note: int(note.split("\n")[1]))).writers[0].anchored
    again = shipper.ship_pending(5)
    assert (again.events, again.writers, again.pending) == (0, 0, 0)


def test_a_trail_ships_in_the_background_and_its_account_balances(aws, tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    shipper = Shipper(journal.folder, logs_client, GROUP, **QUICK)
    trail = Trail(journal, policy_for=AuditSettings().policy, shipper=shipper)
    for number in range(300):
        trail.record(tags(Sensitivity.CONFIDENTIAL), "a", resource=str(number))
    until(lambda: trail.summary().shipped == 301, what="everything shipped")
    trail.record(TAGS, "last")
    trail.close(10)
    account = trail.summary()
    assert (account.emitted, account.shipped, account.pending, account.lost) == (303, 303, 0, 0)
    assert events_of(stored(journal.writer_ids[0])) == raw_lines(journal)


def test_what_a_killed_process_left_is_shipped_by_the_next_one_at_least_once(aws, tmp_path):
    root = tmp_path / "site" / "journal"
    code = f"""
import sys, time
from datetime import timedelta
from pathlib import Path
from securemfg.audit import Journal, Shipper, Tags
from securemfg.audit.cloudwatch import logs_client
journal = Journal(Path({str(root)!r}))
shipper = Shipper(journal.folder, logs_client, {GROUP!r}, interval=timedelta(milliseconds=20))
shipper.start()
number = 0
while True:
    journal.append(Tags.of(), "a", resource=str(number))
    number += 1
    if shipper.account(journal.writer)[0] > 20:
        print("shipped", flush=True)
    time.sleep(0.001)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (orphan,) = (path for path in root.iterdir() if path.is_dir())
    journal = Journal(root)
    trail = Trail(journal, policy_for=AuditSettings().policy, shipper=Shipper(root, logs_client, GROUP, **QUICK))
    trail.record(TAGS, "next process")
    until(lambda: trail.shipper.pending() == 0, what="the orphan shipped")
    trail.close(5)
    messages = events_of(stored(orphan.name))
    # The batch that was on its way when the process was killed may be there twice, with the same bytes.
    assert sorted(set(messages), key=lambda message: json.loads(message)["seq"]) == writer_lines(orphan)


def test_what_a_forked_child_wrote_is_shipped(aws, tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    trail = Trail(
        journal, policy_for=AuditSettings().policy, shipper=Shipper(journal.folder, logs_client, GROUP, **QUICK)
    )
    trail.record(TAGS, "parent")
    until(lambda: trail.summary().shipped == 2, what="the parent's events shipped")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            trail.record(TAGS, "child")
            until(lambda: trail.summary().shipped == 2, what="the child's events shipped", within=15)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    trail.close(5)
    assert trail.shipper.pending() == 0


def test_only_one_process_ships_a_writer(aws, tmp_path):
    from securemfg.audit.segments import try_lock, unlock

    journal = Journal(tmp_path / "site" / "journal")
    journal.append(TAGS, "a")
    journal.close(5)
    shipper = Shipper(journal.folder, logs_client, GROUP)
    held = try_lock(journal.folder / journal.writer_ids[0] / "ship.lock")
    assert held is not None
    blocked = shipper.ship_pending(0.1)
    assert (blocked.events, blocked.pending) == (0, 3)
    assert "another process" in (blocked.problem or "")
    unlock(held)
    assert shipper.ship_pending(10).events == 3


def test_a_group_that_may_not_be_made_is_not_made(aws, tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    journal.append(TAGS, "a")
    journal.close(5)
    refused = Shipper(journal.folder, logs_client, GROUP, create=False, backoff=(0.01, 0.02)).ship_pending()
    assert refused.events == 0
    assert "ResourceNotFoundException" in (refused.problem or "")
    logs_client().create_log_group(logGroupName=GROUP)
    assert Shipper(journal.folder, logs_client, GROUP, create=False).ship_pending(10).events == 3


def test_a_stream_deleted_meanwhile_is_made_again(aws, tmp_path):
    journal = Journal(tmp_path / "site" / "journal")
    journal.append(TAGS, "a")
    shipper = Shipper(journal.folder, logs_client, GROUP, backoff=(0.01, 0.02))
    shipper.ship_pending(10)
    logs_client().delete_log_stream(logGroupName=GROUP, logStreamName=journal.writer)
    journal.append(TAGS, "b")
    journal.close(5)
    assert shipper.ship_pending(10).pending == 0
    assert b'"b"' in b"".join(stored(journal.writer_ids[0]))


@pytest.fixture
def blackhole():
    """An address that takes connections into its backlog and never answers."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(50)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("fault", ["blackhole", "closed_port"])
def test_an_endpoint_that_is_down_at_start_and_at_exit_delays_nothing_and_loses_nothing(aws, tmp_path, fault, request):
    """A whole process with a dead endpoint ends by itself; with the endpoint back, the next one ships what it left."""
    root = tmp_path / "site" / "journal"
    code = f"""
import time
from pathlib import Path
from securemfg.audit import Journal, Shipper, Tags, Trail
from securemfg.audit.cloudwatch import logs_client
from securemfg.settings import AuditSettings
journal = Journal(Path({str(root)!r}))
trail = Trail(journal, policy_for=AuditSettings().policy, shipper=Shipper(journal.folder, logs_client, {GROUP!r}))
for number in range(200):
    trail.record(Tags.of(), "a", durable=number % 50 == 0)
time.sleep(0.2)
trail.close(1.0)
account = trail.summary()
assert (account.emitted, account.pending, account.shipped, account.lost) == (202, 202, 0, 0), account
"""
    dead = dict(os.environ, AWS_ENDPOINT_URL=request.getfixturevalue(fault))
    subprocess.run([sys.executable, "-c", code], env=dead, timeout=60, check=True)
    assert verify(root).tail == 0
    shipper = Shipper(root, logs_client, GROUP)
    assert shipper.ship_pending(20).events == 202


def test_the_shipper_starts_and_stops_at_once_with_a_blackholed_endpoint(tmp_path, blackhole, aws, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", blackhole)
    journal = Journal(tmp_path / "site" / "journal")
    journal.append(TAGS, "a")
    calling = threading.Event()

    def factory():
        calling.set()
        return logs_client()

    shipper = Shipper(journal.folder, factory, GROUP, **QUICK)
    shipper.start()
    assert calling.wait(20)
    shipper.stop(0.3)
    assert shipper._thread.is_alive()  # stop came back while the call still hangs
    journal.close(5)


def test_application_logs_reach_cloudwatch_by_watchtower_from_their_first_line(aws):
    import logging

    with configure(cloudwatch_client=logs_client(), log_group=GROUP, log_stream="app"):
        for number in range(50):
            logging.getLogger("a").info("line %d", number)
    assert len(stored("app")) == 50


def test_application_logs_say_when_the_stream_cannot_be_made(aws, monkeypatch, closed_port):
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_port)
    with pytest.raises(AuditError, match="CloudWatch Logs"):
        configure(cloudwatch_client=logs_client(), log_group=GROUP, log_stream="app")
