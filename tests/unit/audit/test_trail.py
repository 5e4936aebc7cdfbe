"""The fail policies over a journal whose disk fails and recovers."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from datetime import timedelta

import pytest

from securemfg.audit import Journal, Trail, verify
from securemfg.audit.events import rfc3339
from securemfg.audit.writer import Disk
from securemfg.errors import AuditError
from securemfg.labels import Sensitivity
from securemfg.settings import AuditSettings
from tests.unit.audit.parts import recorded, tags

PUBLIC, CONFIDENTIAL, PII = (tags(level) for level in (Sensitivity.PUBLIC, Sensitivity.CONFIDENTIAL, Sensitivity.PII))


class FailingDisk:
    """A disk whose writes or syncs fail while told so."""

    def __init__(self) -> None:
        self.full = threading.Event()
        self.dead = threading.Event()
        self.disk = Disk(write=self.write, sync=self.sync)

    def write(self, fd, data, offset):
        if self.full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(fd, data, offset)

    def sync(self, fd):
        if self.dead.is_set():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)


@pytest.fixture
def failing():
    return FailingDisk()


@pytest.fixture
def trail(tmp_path, failing):
    journal = Journal(tmp_path / "site" / "journal", disk=failing.disk)
    made = Trail(journal, policy_for=AuditSettings().policy, deadline=timedelta(milliseconds=150), spool_events=50)
    yield made
    failing.full.clear()
    failing.dead.clear()
    made.close(5)


def balanced(trail) -> bool:
    account = trail.summary()
    return account.emitted == account.pending + account.shipped + account.lost


def test_an_event_is_recorded_and_its_id_is_returned(trail):
    event_id = trail.record(PUBLIC, "a", resource="r", durable=True)
    assert recorded(trail.journal)[1]["event_id"] == event_id
    assert (trail.summary().emitted, trail.summary().pending) == (2, 2)


def test_degrade_keeps_events_in_memory_and_writes_them_in_order_with_their_own_time(trail, failing, caplog):
    trail.record(PUBLIC, "0")
    failing.full.set()
    with caplog.at_level(logging.WARNING):
        assert [trail.record(PUBLIC, str(number)) for number in range(1, 6)] == [None] * 5
    assert len([line for line in caplog.records if "degrade" in line.message]) == 1
    assert trail.summary().emitted == 7
    assert balanced(trail)
    failing.full.clear()
    trail.record(PUBLIC, "6")  # the disk is back, but the others were first
    recovered = rfc3339(time.time_ns())
    trail.settle(Sensitivity.PUBLIC)
    trail.close(5)
    events = recorded(trail.journal)
    assert [event["action"] for event in events][1:-1] == [str(number) for number in range(7)]
    assert all(event["time"] < recovered for event in events[1:-1])
    assert verify(trail.journal.folder).ok
    assert trail.summary().lost == 0
    assert balanced(trail)


def test_degrade_changes_nothing_that_waits_when_the_caller_reuses_its_mapping(trail, failing):
    failing.full.set()
    detail = {"number": 1}
    trail.record(PUBLIC, "a", detail=detail)
    detail["number"] = 2
    failing.full.clear()
    trail.settle(Sensitivity.PUBLIC)
    assert recorded(trail.journal)[-1]["detail"]["number"] == 1


def test_degrade_drops_the_oldest_from_a_full_memory_and_counts_it(trail, failing):
    failing.full.set()
    for number in range(60):
        trail.record(PUBLIC, str(number))
    account = trail.summary()
    assert (account.lost, account.pending, account.emitted) == (10, 50, 60)
    failing.full.clear()
    trail.settle(Sensitivity.PUBLIC)
    assert recorded(trail.journal)[1]["action"] == "10"
    assert balanced(trail)


def test_degrade_does_not_raise_when_the_disk_hangs_on_a_durable_event(trail, failing):
    trail.record(PUBLIC, "a", durable=True)
    failing.dead.set()
    assert trail.record(PUBLIC, "b", durable=True) is not None
    trail.settle(Sensitivity.PUBLIC)


@pytest.mark.parametrize("level", [Sensitivity.CONFIDENTIAL, Sensitivity.IP_SENSITIVE, Sensitivity.PII])
def test_block_and_fail_closed_raise_when_the_journal_cannot_be_written(trail, failing, level):
    trail.record(tags(level), "a")
    failing.full.set()
    with pytest.raises(AuditError, match="No space left"):
        trail.record(tags(level), "b")
    assert trail.summary().lost == 1
    assert balanced(trail)
    failing.full.clear()
    assert trail.record(tags(level), "c") is not None
    trail.close(5)
    assert verify(trail.journal.folder).ok


def test_block_waits_for_a_disk_that_recovers_within_the_deadline(tmp_path, failing):
    trail = Trail(Journal(tmp_path / "b" / "journal", disk=failing.disk), policy_for=AuditSettings().policy)
    trail.record(CONFIDENTIAL, "a")
    failing.full.set()
    timer = threading.Timer(0.1, failing.full.clear)
    timer.start()
    assert trail.record(CONFIDENTIAL, "b") is not None
    timer.join()
    trail.close(5)
    assert trail.summary().lost == 0


def test_settle_raises_under_block_when_the_disk_does_not_answer_and_not_under_degrade(trail, failing):
    trail.record(CONFIDENTIAL, "a", durable=True)
    failing.dead.set()
    trail.record(CONFIDENTIAL, "b")
    trail.settle(Sensitivity.INTERNAL)
    with pytest.raises(AuditError, match="Input/output error"):
        trail.settle(Sensitivity.CONFIDENTIAL)
    failing.dead.clear()
    trail.settle(Sensitivity.CONFIDENTIAL)


def test_a_durable_event_under_fail_closed_is_on_the_disk_before_the_call_returns(trail, failing):
    trail.record(PII, "a", durable=True)
    failing.dead.set()
    with pytest.raises(AuditError):
        trail.record(PII, "step.started", durable=True)


@pytest.mark.parametrize("tag", [PUBLIC, CONFIDENTIAL, PII], ids=["degrade", "block", "fail_closed"])
def test_a_folder_that_cannot_be_made_is_an_audit_error_or_a_wait_in_memory(tmp_path, tag):
    (tmp_path / "file").write_text("not a folder")
    trail = Trail(
        Journal(tmp_path / "file" / "journal"), policy_for=AuditSettings().policy, deadline=timedelta(milliseconds=10)
    )
    if tag is PUBLIC:
        assert trail.record(tag, "a") is None
        assert trail.summary().pending == 1
    else:
        with pytest.raises(AuditError, match="cannot be opened"):
            trail.record(tag, "a", durable=True)
        assert trail.summary().lost == 1
    assert balanced(trail)


def test_close_seals_never_raises_and_can_be_called_again(trail, failing):
    trail.record(PUBLIC, "a")
    trail.close(5)
    trail.close(5)
    assert verify(trail.journal.folder).writers[0].closed
    trail.record(PUBLIC, "late")  # a thread that outlives the close: a new writer
    failing.dead.set()
    trail.close(0.2)


def test_a_forked_child_does_not_write_what_waits_in_the_parent_s_memory(trail, failing):
    trail.record(PUBLIC, "first")
    failing.full.set()
    trail.record(PUBLIC, "parent's")
    failing.full.clear()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            trail.record(PUBLIC, "child's", durable=True)
            actions = [event["action"] for event in recorded(trail.journal)]
            code = 0 if actions == ["journal.opened", "child's"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    trail.settle(Sensitivity.PUBLIC)
    assert recorded(trail.journal)[-1]["action"] == "parent's"
