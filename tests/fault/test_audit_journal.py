"""The journal under faults: killed processes, full and failing disks, torn writes. Real processes, a real full disk."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from securemfg.audit import Journal, verify
from securemfg.audit.segments import is_live
from securemfg.audit.writer import Disk
from securemfg.errors import AuditError
from tests.parts import missing, until
from tests.unit.audit.parts import TAGS, recorded, writer_lines

WORKER = """
import os, sys, threading
from pathlib import Path
from securemfg.audit import Journal, Tags

journal = Journal(Path(sys.argv[1]), checkpoint_events=50, segment_bytes=1 << 16)
tags = Tags.of()
def work(name):
    for number in range(10**9):
        receipt = journal.append(tags, "a", resource=f"{name}/{number}", sync=number % 20 == 0, deadline=10)
        os.write(1, f"{receipt.event_id}\\n".encode())
threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
[thread.start() for thread in threads]
"""


def test_a_killed_process_loses_no_acknowledged_event_and_leaves_a_torn_tail_at_most(tmp_path):
    root = tmp_path / "site" / "journal"
    chosen = random.Random(7)
    acknowledged: set[str] = set()
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WORKER, str(root)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.readline()
        killer = threading.Timer(chosen.uniform(0.0, 0.3), process.send_signal, [signal.SIGKILL])
        killer.start()
        rest = process.stdout.read()
        process.wait()
        killer.join()
        whole = (first + rest).decode().split("\n")[:-1]
        acknowledged.update(whole)
    result = verify(root)
    assert result.ok, result.problems[:5]
    assert len(result.writers) == 6
    kept = {json.loads(line)["event_id"] for folder in root.iterdir() for line in writer_lines(folder)}
    assert len(acknowledged) > 100
    assert acknowledged <= kept


def test_exit_without_cleanup_keeps_every_event(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from securemfg.audit import Journal, Tags\n"
        "j = Journal(Path(sys.argv[1])); t = Tags.of()\n"
        "[j.append(t, 'a') for _ in range(500)]; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "site" / "journal")], check=True)
    result = verify(tmp_path / "site" / "journal")
    assert result.ok, result.problems
    assert result.events == 501


def test_forked_and_spawned_workers_keep_every_event(tmp_path):
    code = """
import multiprocessing, sys
from pathlib import Path
from securemfg.audit import Journal, Tags

journal = Journal(Path(sys.argv[1]))
def work(number):
    for _ in range(50):
        journal.append(Tags.of(), "worker", resource=str(number))

if __name__ == "__main__":
    journal.append(Tags.of(), "parent")
    for method in ("fork", "spawn"):
        workers = [multiprocessing.get_context(method).Process(target=work, args=(n,)) for n in range(3)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
    journal.close(5)
"""
    script = tmp_path / "work.py"
    script.write_text(code)
    subprocess.run([sys.executable, str(script), str(tmp_path / "site" / "journal")], check=True, timeout=60)
    result = verify(tmp_path / "site" / "journal")
    assert result.ok, result.problems
    assert len(result.writers) == 7
    assert result.events == 6 * 51 + 3


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_parent_s_lock(tmp_path):
    root = tmp_path / "site" / "journal"
    code = (
        "import os, signal, sys; from pathlib import Path; from securemfg.audit import Journal, Tags\n"
        "j = Journal(Path(sys.argv[1])); j.append(Tags.of(), 'a')\n"
        "if os.fork() == 0: sys.stdin.read(); os._exit(0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE) as parent:
        parent.wait()  # the child reads on until standard input is closed
        (folder,) = (path for path in root.iterdir() if path.is_dir())
        until(lambda: not is_live(folder), within=10, what="the writer seen as dead")


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        missing("the right to mount a tmpfs", "run as root with CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_events_whole_and_the_journal_goes_on_when_there_is_room(small_disk):
    journal = Journal(small_disk / "site" / "journal")
    journal.append(TAGS, "a")
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        room = os.statvfs(small_disk).f_bavail * 4096
        file.write(b"\0" * (room - 8192))
    accepted = 0
    with pytest.raises(AuditError, match="No space left"):
        for _ in range(200):
            journal.append(TAGS, "filling", resource="x" * 300)
            accepted += 1
    with pytest.raises(AuditError):
        for _ in range(20):
            journal.append(TAGS, "filling", resource="x" * 1300)
            accepted += 1
    ballast.unlink()
    journal.append(TAGS, "after", sync=True, deadline=5)
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    actions = [event["action"] for event in recorded(journal)]
    assert actions == ["journal.opened", "a", *["filling"] * accepted, "after", "journal.closed"]


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_short_write_is_completed_when_it_can_be(tmp_path, kept):
    short = iter([True] * 3)

    def write(fd, data, offset):
        if b'"short"' in bytes(data) and next(short, False):
            size = kept if kept >= 0 else len(data) - 1
            return (
                os.pwrite(fd, bytes(data)[:size], offset)
                if size
                else 1
                if os.pwrite(fd, bytes(data)[:1], offset)
                else 0
            )
        return os.pwrite(fd, data, offset)

    journal = Journal(tmp_path / "site" / "journal", disk=Disk(write=write))
    for _ in range(3):
        journal.append(TAGS, "short")
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    assert [event["action"] for event in recorded(journal)].count("short") == 3


@pytest.mark.parametrize("kept", [1, 50, 200, -1])
def test_a_short_write_that_ends_in_an_error_leaves_nothing_of_the_event(tmp_path, kept):
    state = {"broken": False, "cut": 0}

    def write(fd, data, offset):
        data = bytes(data)
        if state["broken"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if b'"torn"' in data:
            state["broken"] = True
            return os.pwrite(fd, data[:kept], offset)
        return os.pwrite(fd, data, offset)

    def truncate(fd, size):
        state["cut"] += 1
        if state["cut"] <= 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))  # even the repair fails at first
        os.ftruncate(fd, size)

    journal = Journal(tmp_path / "site" / "journal", disk=Disk(write=write, truncate=truncate))
    journal.append(TAGS, "before")
    with pytest.raises(AuditError):
        journal.append(TAGS, "torn", resource="x" * 4000)
    with pytest.raises(AuditError):
        journal.append(TAGS, "still full")
    state["broken"] = False
    journal.append(TAGS, "after")
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    assert [event["action"] for event in recorded(journal)][1:-1] == ["before", "after"]
    assert journal.lost == 2
    assert result.torn == 0


def test_a_failed_sync_writes_the_same_bytes_again_before_it_is_believed(tmp_path):
    """A kernel may drop dirty pages after EIO and call the next fdatasync a success."""
    failing = threading.Event()
    rewritten: list[bytes] = []
    lost_pages = []

    def sync(fd):
        if failing.is_set():
            size = os.fstat(fd).st_size
            lost_pages.append(os.pread(fd, 20, size - 20))
            os.pwrite(fd, b"\0" * 20, size - 20)  # what such a kernel leaves behind
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)

    def write(fd, data, offset):
        if isinstance(data, memoryview):
            rewritten.append(bytes(data))
        return os.pwrite(fd, data, offset)

    journal = Journal(tmp_path / "site" / "journal", disk=Disk(sync=sync, write=write))
    journal.append(TAGS, "a", sync=True, deadline=5)
    journal.checkpoint()
    failing.set()
    with pytest.raises(AuditError, match="Input/output error"):
        journal.append(TAGS, "b", sync=True, deadline=0.2)
    until(lambda: lost_pages, what="a failed sync")
    failing.clear()
    journal.flush(5)
    journal.close(5)
    assert any(b'"b"' in data for data in rewritten)
    result = verify(journal.folder)
    assert result.ok, result.problems
    assert result.events == 4


def test_a_read_only_folder_is_an_audit_error_that_names_it(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(AuditError, match="Read-only file system"):
        Journal(small_disk / "site" / "journal").append(TAGS, "a")


def test_a_disk_that_turns_read_only_while_writing_loses_no_acknowledged_event(small_disk):
    journal = Journal(small_disk / "site" / "journal")
    journal.append(TAGS, "a", sync=True, deadline=5)
    # A mount with an open writer cannot be made read-only: a read-only descriptor in its place refuses as well.
    (segment,) = journal.folder.glob("*/*.jsonl")
    read_only = os.open(segment, os.O_RDONLY)
    os.dup2(read_only, journal._writer._segment_fd)
    os.close(read_only)
    with pytest.raises(AuditError):
        journal.append(TAGS, "b")
    journal.close(5)
    assert [event["action"] for event in recorded(journal)] == ["journal.opened", "a"]
    assert verify(journal.folder).ok


def test_close_does_not_wait_longer_than_asked_for_a_disk_that_hangs(tmp_path):
    release = threading.Event()
    hang = threading.Event()

    def sync(fd):
        if hang.is_set():
            release.wait(30)
        os.fdatasync(fd)

    journal = Journal(tmp_path / "site" / "journal", disk=Disk(sync=sync))
    journal.append(TAGS, "a", sync=True, deadline=5)
    hang.set()
    journal.append(TAGS, "b")
    with pytest.raises(AuditError, match="not sealed"):
        journal.close(0.2)
    assert verify(journal.folder).tail > 0  # it came back while the disk still hangs
    release.set()
    until(lambda: verify(journal.folder).writers[0].tail == 0, what="the late seal")
