from __future__ import annotations

import json
import os
import signal
import stat
import threading
from datetime import timedelta
from hashlib import sha256

import pytest

from securemfg.audit import Journal, Strength, read_events, verify
from securemfg.audit.events import GENESIS
from securemfg.audit.segments import is_live
from securemfg.audit.writer import Disk
from securemfg.errors import AuditError
from tests.parts import until
from tests.unit.audit.parts import TAGS, raw_lines, recorded


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / ".securemfg" / "journal")
    yield made
    made.close(5)


def test_making_a_journal_touches_nothing(tmp_path):
    Journal(tmp_path / "site" / "journal")
    assert not (tmp_path / "site").exists()


def test_each_event_names_the_hash_of_the_one_before(journal):
    for number in range(5):
        receipt = journal.append(TAGS, "model.predicted", resource=f"m{number}")
        assert receipt.seq == number + 1  # journal.opened is the first
    journal.close(5)
    previous = GENESIS
    for seq, line in enumerate(raw_lines(journal)):
        record = json.loads(line)
        assert (record["seq"], record["prev"], record["writer"]) == (seq, previous, journal.writer_ids[0])
        previous = sha256(line).hexdigest()
    actions = [record["action"] for record in recorded(journal)]
    assert actions == ["journal.opened", *["model.predicted"] * 5, "journal.closed"]


def test_local_files_are_private_and_ignored_by_git(journal):
    journal.append(TAGS, "a")
    home = journal.folder.parent
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert (home / ".gitignore").read_text() == "*\n"
    files = [path for path in home.rglob("*") if path.is_file() and path.suffix != ".pub" and path.name != ".gitignore"]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_closed_journal_is_sealed_over_everything_and_signed(journal):
    for _ in range(10):
        journal.append(TAGS, "a")
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    (writer,) = result.writers
    assert (writer.events, writer.sealed, writer.tail, writer.torn) == (12, 12, 0, 0)
    assert writer.closed
    assert not writer.live
    assert result.strength is Strength.SIGNED


def test_a_checkpoint_comes_after_so_many_events_and_after_so_much_time(tmp_path):
    counted = Journal(tmp_path / "a" / "journal", checkpoint_events=10)
    for _ in range(25):
        counted.append(TAGS, "a")
    until(lambda: verify(counted.folder).writers[0].sealed >= 10, what="a checkpoint by count")
    timed = Journal(tmp_path / "b" / "journal", checkpoint_interval=timedelta(milliseconds=50))
    timed.append(TAGS, "a")
    until(lambda: verify(timed.folder).writers[0].sealed == 2, what="a checkpoint by time")
    counted.close(5)
    timed.close(5)


def test_a_checkpoint_on_request_covers_every_event_until_now_and_serves_as_an_anchor(journal):
    journal.append(TAGS, "a")
    note = journal.checkpoint()
    journal.append(TAGS, "b")
    journal.flush(5)
    result = verify(journal.folder, anchor=note)
    assert result.ok, result.problems
    (writer,) = result.writers
    assert result.strength is Strength.ANCHORED
    assert writer.anchored.seq == 1
    assert (writer.sealed, writer.tail) == (2, 1)


def test_the_signed_notes_verify_with_an_independent_reading_of_the_specification(journal):
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from tests.unit.audit.test_merkle import naive

    for _ in range(7):
        journal.append(TAGS, "a")
    note = journal.checkpoint()
    body, _, signatures = note.partition("\n\n")
    dash, name, encoded = signatures.rstrip("\n").split(" ")
    blob = base64.b64decode(encoded)
    vkey_name, vkey_id, vkey = (journal.keys / "journal.ed25519.pub").read_text().strip().split("+", 2)
    public = base64.b64decode(vkey)
    assert (dash, name, blob[:4].hex(), public[0]) == ("—", vkey_name, vkey_id, 1)
    assert sha256(name.encode() + b"\n" + public).digest()[:4].hex() == vkey_id
    Ed25519PublicKey.from_public_bytes(public[1:]).verify(blob[4:], (body + "\n").encode())
    lines = raw_lines(journal)
    origin, size, root, *_ = body.split("\n")
    assert origin == f"securemfg/{journal.writer}"
    assert int(size) == len(lines) == 8
    assert base64.b64decode(root) == naive([sha256(line).digest() for line in lines])


def test_events_of_many_threads_form_one_chain(journal):
    def work(name: int) -> None:
        for number in range(200):
            journal.append(TAGS, "a", resource=f"{name}/{number}", sync=number % 50 == 0, deadline=10)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    assert result.events == 8 * 200 + 2 == journal.emitted
    resources = [record["resource"]["id"] for record in recorded(journal)]
    assert len(set(resources)) == 8 * 200 + 1  # opened and closed name the writer
    ids = [record["event_id"] for record in recorded(journal)]
    assert ids == sorted(set(ids))


def test_a_forked_child_writes_its_own_journal_and_the_parent_s_lock_is_its_own(journal):
    journal.append(TAGS, "before")
    parent = journal.writer
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            journal.append(TAGS, "child", sync=True, deadline=5)
            code = 0 if journal.writer != parent and journal.emitted == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    journal.append(TAGS, "after")
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    by_writer = {writer.writer: writer for writer in result.writers}
    assert len(by_writer) == 2
    assert by_writer[parent].events == 4
    child = next(writer for name, writer in by_writer.items() if name != parent)
    assert (child.events, child.live, child.closed) == (2, False, False)


def test_a_child_that_outlives_its_parent_does_not_hold_the_parent_s_lock(journal):
    journal.append(TAGS, "before")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)  # lives on until the test ends it
        os._exit(0)
    os.close(read)
    folder = journal.folder / journal.writer
    try:
        assert is_live(folder)
        journal.close(5)
        assert not is_live(folder)
    finally:
        os.close(write)
        os.waitpid(pid, 0)


def test_close_releases_the_lock_even_when_a_copy_of_its_descriptor_lives_on(journal):
    journal.append(TAGS, "a")
    copy = os.dup(journal._writer._lock_fd)  # as a child has it that was forked without Python's hooks
    journal.close(5)
    try:
        assert not is_live(journal.folder / journal.writer_ids[0])
    finally:
        os.close(copy)


def test_an_event_after_close_opens_a_new_writer_that_names_the_old_one(journal):
    journal.append(TAGS, "a")
    journal.close(5)
    journal.append(TAGS, "b")
    first, second = journal.writer_ids
    opened = recorded(journal)[3]
    assert opened["action"] == "journal.opened"
    assert opened["detail"]["previous_writer"] == first
    assert opened["detail"]["previous_size"] == 3
    assert opened["detail"]["previous_head"] == sha256(raw_lines(journal)[2]).hexdigest()
    assert opened["writer"] == second


def test_segments_follow_each_other_and_verify_as_one(tmp_path):
    journal = Journal(tmp_path / "site" / "journal", segment_bytes=4096)
    for number in range(40):
        journal.append(TAGS, "a", resource=f"r{number}", sync=True, deadline=5)
    until(lambda: len(list(journal.folder.glob("*/*.jsonl"))) > 2, what="a third segment")
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    assert result.events == 42
    assert [record["seq"] for record in read_events(journal.folder)] == list(range(42))


def test_sync_returns_only_after_the_disk_was_asked(tmp_path):
    asked = []
    gate = threading.Event()

    def sync(fd: int) -> None:
        gate.wait(10)
        asked.append(fd)
        os.fdatasync(fd)

    journal = Journal(tmp_path / "site" / "journal", disk=Disk(sync=sync))
    journal.append(TAGS, "fast")
    assert not asked  # the fast class did not wait
    with pytest.raises(AuditError, match="not made durable in time"):
        journal.append(TAGS, "sync", sync=True, deadline=0.05)
    gate.set()
    journal.append(TAGS, "sync", sync=True, deadline=10)
    assert asked
    journal.close(5)


def test_the_chain_survives_a_clock_that_steps_back_an_hour(tmp_path):
    clock = iter([10**18 + step * 3_600_000_000_000 * (-1) ** step for step in range(10_000)])
    journal = Journal(tmp_path / "site" / "journal", now=lambda: next(clock))
    for _ in range(10):
        journal.append(TAGS, "a")
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    ids = [record["event_id"] for record in recorded(journal)]
    assert ids == sorted(ids)


def test_an_interrupt_between_the_write_and_its_bookkeeping_leaves_the_chain_whole(tmp_path):
    interrupt = threading.Event()

    def write(fd: int, data: bytes, offset: int) -> int:
        written = os.pwrite(fd, data, offset)
        if interrupt.is_set():
            interrupt.clear()
            raise KeyboardInterrupt
        return written

    journal = Journal(tmp_path / "site" / "journal", disk=Disk(write=write))
    journal.append(TAGS, "long", resource="x" * 500)
    interrupt.set()
    with pytest.raises(KeyboardInterrupt):
        journal.append(TAGS, "interrupted", resource="y" * 900)
    journal.append(TAGS, "next")
    journal.close(5)
    result = verify(journal.folder)
    assert result.ok, result.problems
    assert [record["action"] for record in recorded(journal)][2:4] == ["interrupted", "next"]


def test_a_signal_handler_that_records_while_an_event_is_written_neither_hangs_nor_breaks_the_chain(tmp_path):
    raised = []

    def write(fd: int, data: bytes, offset: int) -> int:
        if b'"outer"' in data:
            signal.raise_signal(signal.SIGUSR1)
        return os.pwrite(fd, data, offset)

    journal = Journal(tmp_path / "site" / "journal", disk=Disk(write=write))

    def handler(*_) -> None:
        try:
            journal.append(TAGS, "inner")
        except AuditError as error:
            raised.append(error)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        journal.append(TAGS, "outer")
    finally:
        signal.signal(signal.SIGUSR1, before)
    journal.close(5)
    assert len(raised) == 1
    assert verify(journal.folder).ok


@pytest.mark.parametrize("damage", ["mode", "length", "link", "folder"])
def test_a_signing_key_that_is_not_private_is_refused(tmp_path, damage):
    journal = Journal(tmp_path / "site" / "journal")
    journal.append(TAGS, "a")
    journal.close(5)
    key = journal.keys / "journal.ed25519"
    if damage == "mode":
        key.chmod(0o644)
    elif damage == "length":
        key.write_bytes(b"short")
    elif damage == "link":
        key.rename(key.with_name("elsewhere"))
        key.symlink_to("elsewhere")
    else:
        journal.keys.chmod(0o777)
    with pytest.raises(AuditError, match="signing key"):
        journal.append(TAGS, "b")


def test_a_verifier_key_of_another_signing_key_is_refused(tmp_path):
    first, second = Journal(tmp_path / "a" / "journal"), Journal(tmp_path / "b" / "journal")
    for journal in (first, second):
        journal.append(TAGS, "a")
        journal.close(5)
    (first.keys / "journal.ed25519.pub").write_bytes((second.keys / "journal.ed25519.pub").read_bytes())
    with pytest.raises(AuditError, match="does not belong"):
        first.append(TAGS, "b")


def test_two_journals_that_make_the_key_at_once_use_the_same(tmp_path):
    journals = [Journal(tmp_path / "site" / "journal") for _ in range(8)]
    threads = [threading.Thread(target=journal.append, args=(TAGS, "a")) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for journal in journals:
        journal.close(5)
    result = verify(tmp_path / "site" / "journal")
    assert result.ok, result.problems
    assert len(result.writers) == 8
    assert result.strength is Strength.SIGNED
