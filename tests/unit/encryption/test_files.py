"""File to file: whole or not at all, on one thread or several."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from securemfg.encryption import frames, stream, target
from securemfg.encryption.stream import decrypt_bytes, decrypt_file, encrypt_bytes, encrypt_file, inspect_file
from securemfg.errors import DecryptionError, EncryptionError, KeyUnavailable
from tests.unit.encryption.parts import FRAME, Unreachable, a_key, folder_holds, message_of

KEY = a_key()
CONTEXT = {"asset": "press-7", "größe": "groß"}
SIZES = [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 5 * FRAME + 1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(params=[True, False], ids=["into-buffers", "copying"])
def cryptography_is_new(request, monkeypatch) -> bool:
    """Both paths: cryptography from 50 on, which works into buffers in threads, and the one below it."""
    if request.param and not frames.parallel():
        pytest.skip("needs cryptography 50 or newer for the path that works into buffers")
    monkeypatch.setattr(frames, "parallel", lambda: request.param)
    return request.param


@pytest.mark.parametrize("size", SIZES)
def test_file_makes_the_round_trip(tmp_path: Path, out: Path, size: int, cryptography_is_new: bool) -> None:
    plaintext = os.urandom(size)
    (tmp_path / "plain").write_bytes(plaintext)
    written = encrypt_file(tmp_path / "plain", out / "x.esdk", key=KEY, context=CONTEXT)
    assert written.plaintext_length == size
    assert written.message_length == (out / "x.esdk").stat().st_size
    assert inspect_file(out / "x.esdk") == written
    read = decrypt_file(out / "x.esdk", out / "x", key=KEY, context=CONTEXT)
    assert (out / "x").read_bytes() == plaintext
    assert (read.frames, read.recipients, read.context) == (written.frames, ("tests/test",), CONTEXT)
    assert folder_holds(out) == ["x", "x.esdk"]
    assert decrypt_bytes((out / "x.esdk").read_bytes(), key=KEY) == plaintext


def test_a_large_file_is_worked_on_by_several_threads_and_a_small_one_is_not(monkeypatch) -> None:
    monkeypatch.setattr(frames, "parallel", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert [frames.workers_for(n) for n in (0, 4 * FRAME - 1, 4 * FRAME)] == [1, 1, 4]
    monkeypatch.setattr(frames, "parallel", lambda: False)
    assert frames.workers_for(1 << 30) == 1


def test_release_of_cryptography_decides_about_threads(monkeypatch) -> None:
    for version, expected in (("46.0.7", False), ("49.0.0", False), ("50.0.2", True), ("101.0.0", True)):
        monkeypatch.setattr(frames, "cryptography_version", version)
        frames.parallel.cache_clear()
        assert frames.parallel() is expected
    monkeypatch.undo()
    frames.parallel.cache_clear()


def test_frames_are_drawn_by_every_thread_and_each_once() -> None:
    drawn: list[int] = []
    names: set[str] = set()
    everyone = threading.Barrier(3)

    def work(draw) -> None:
        names.add(threading.current_thread().name + str(threading.get_ident()))
        everyone.wait(10)
        while (index := draw()) is not None:
            drawn.append(index)

    frames.run_shared(work, 500, 3)
    assert sorted(drawn) == list(range(500))
    assert len(names) == 3


def test_error_in_a_thread_is_raised_in_the_callers_and_stops_the_others() -> None:
    together = threading.Barrier(3)
    done: list[int] = []

    def work(draw) -> None:
        together.wait(10)
        while (index := draw()) is not None:
            if threading.current_thread() is not threading.main_thread():
                raise DecryptionError("frame 2 was changed")
            done.append(index)

    with pytest.raises(DecryptionError, match="frame 2 was changed"):
        frames.run_shared(work, 1 << 30, 3)
    assert len(done) < 1 << 30


def test_interrupt_while_threads_work_is_raised_only_after_they_ended() -> None:
    ended = threading.Event()
    started = threading.Event()

    def work(draw) -> None:
        if threading.current_thread() is threading.main_thread():
            started.wait(10)
            raise KeyboardInterrupt
        started.set()
        while draw() is not None:
            pass
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        frames.run_shared(work, 1 << 40, 2)
    assert ended.is_set()


def test_interrupt_while_the_caller_waits_for_the_threads_stops_them_first(monkeypatch) -> None:
    ended = threading.Event()
    join = threading.Thread.join
    interrupts = iter([KeyboardInterrupt()])

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        for interrupt in interrupts:
            raise interrupt
        join(thread, timeout)

    def work(draw) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        while draw() is not None:
            pass
        ended.set()

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        frames.run_shared(work, 1 << 40, 2)
    assert ended.is_set()


def test_work_is_done_even_where_no_thread_can_be_started(monkeypatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    drawn: list[int] = []

    def work(draw) -> None:
        while (index := draw()) is not None:
            drawn.append(index)

    frames.run_shared(work, 5, 4)
    assert drawn == [0, 1, 2, 3, 4]


def test_many_recipients_open_one_file(source: Path, out: Path) -> None:
    keys = [a_key(str(n)) for n in range(5)]
    encrypt_file(source, out / "x.esdk", key=keys)
    for key in keys:
        decrypt_file(out / "x.esdk", out / "x", key=[Unreachable("tests", "0", bytes(32)), key])
        assert (out / "x").read_bytes() == source.read_bytes()


def test_recipient_that_cannot_wrap_stops_the_encryption(source: Path, out: Path) -> None:
    class Down(Unreachable):
        def wrap(self, data_key, context):
            raise KeyUnavailable("the service is down")

    with pytest.raises(KeyUnavailable, match="is down"):
        encrypt_file(source, out / "x.esdk", key=[KEY, Down("tests", "down", bytes(32))])
    assert folder_holds(out) == []


@pytest.mark.parametrize("verb", [encrypt_file, decrypt_file])
@pytest.mark.parametrize("way", ["path", "other spelling", "hard link", "symbolic link"])
def test_source_is_never_its_own_target(source: Path, verb, way: str) -> None:
    before = source.read_bytes()
    other = source.with_name("other")
    if way == "path":
        other = source
    elif way == "other spelling":
        other = source.parent / ".." / source.parent.name / source.name
    elif way == "hard link":
        other.hardlink_to(source)
    else:
        other.symlink_to(source)
    with pytest.raises(EncryptionError, match="source and target are the same file"):
        verb(source, other, key=KEY)
    assert source.read_bytes() == before


@pytest.mark.parametrize("verb", [encrypt_file, decrypt_file])
def test_missing_source_folder_source_and_pipe_are_typed_errors(tmp_path: Path, out: Path, verb) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, says in (
        ("none", "cannot be read: No such file"),
        (".", "not a regular file"),
        ("pipe", "not a regular"),
    ):
        with pytest.raises(EncryptionError, match=says):
            verb(tmp_path / name, out / "x", key=KEY)
    assert folder_holds(out) == []


def test_target_that_cannot_be_is_a_typed_error(source: Path, out: Path) -> None:
    for name, says in (
        (".", "is a folder"),
        ("none/x", "cannot be written: No such"),
        ("n" * 300, "cannot be written"),
    ):
        with pytest.raises(EncryptionError, match=says):
            encrypt_file(source, out / name, key=KEY)
    with pytest.raises(EncryptionError, match="cannot be written"):
        encrypt_file(source, source / "below-a-file", key=KEY)
    assert folder_holds(out) == []


def test_existing_target_is_replaced_only_when_that_is_asked_for(source: Path, out: Path) -> None:
    (out / "x.esdk").write_bytes(b"old")
    with pytest.raises(EncryptionError, match=r"exists already: .*--force"):
        encrypt_file(source, out / "x.esdk", key=KEY, overwrite=False)
    assert (out / "x.esdk").read_bytes() == b"old"
    encrypt_file(source, out / "x.esdk", key=KEY)
    assert decrypt_bytes((out / "x.esdk").read_bytes(), key=KEY) == source.read_bytes()
    assert folder_holds(out) == ["x.esdk"]


def test_dangling_link_counts_as_existing_and_is_replaced_not_followed(source: Path, out: Path) -> None:
    (out / "x.esdk").symlink_to(out / "elsewhere")
    with pytest.raises(EncryptionError, match="exists already"):
        encrypt_file(source, out / "x.esdk", key=KEY, overwrite=False)
    encrypt_file(source, out / "x.esdk", key=KEY)
    assert not (out / "x.esdk").is_symlink()
    assert folder_holds(out) == ["x.esdk"]


@pytest.mark.parametrize("unnamed", [True, False], ids=["O_TMPFILE", "named"])
def test_target_made_meanwhile_is_not_overwritten(source: Path, out: Path, monkeypatch, unnamed: bool) -> None:
    if not unnamed:
        monkeypatch.setattr(target, "_unnamed", lambda folder: None)
    seal = stream.seal

    def slowly(*args, **kwargs):
        (out / "x.esdk").write_bytes(b"somebody else's")
        return seal(*args, **kwargs)

    monkeypatch.setattr(stream, "seal", slowly)
    with pytest.raises(EncryptionError, match="exists already"):
        encrypt_file(source, out / "x.esdk", key=KEY, overwrite=False)
    assert (out / "x.esdk").read_bytes() == b"somebody else's"
    assert folder_holds(out) == ["x.esdk"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_file_systems_without_unnamed_files_work_too(source: Path, out: Path, monkeypatch, overwrite: bool) -> None:
    monkeypatch.setattr(target, "_unnamed", lambda folder: None)
    encrypt_file(source, out / "x.esdk", key=KEY, overwrite=overwrite)
    decrypt_file(out / "x.esdk", out / "x", key=KEY, overwrite=overwrite)
    assert (out / "x").read_bytes() == source.read_bytes()
    with pytest.raises(DecryptionError):
        decrypt_file(out / "x.esdk", out / "y", key=a_key())
    whole = (out / "x.esdk").read_bytes()
    (out / "x.esdk").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DecryptionError):
        decrypt_file(out / "x.esdk", out / "y", key=KEY)
    assert folder_holds(out) == ["x", "x.esdk"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_mode_is_kept_both_ways(source: Path, out: Path, mode: int) -> None:
    source.chmod(mode)
    encrypt_file(source, out / "x.esdk", key=KEY)
    decrypt_file(out / "x.esdk", out / "x", key=KEY)
    assert [(out / name).stat().st_mode & 0o7777 for name in ("x.esdk", "x")] == [mode, mode]


def test_set_uid_and_set_gid_are_not_handed_on(source: Path, out: Path) -> None:
    source.chmod(0o6755)
    encrypt_file(source, out / "x.esdk", key=KEY)
    assert (out / "x.esdk").stat().st_mode & 0o7777 == 0o755


def test_plaintext_is_private_until_it_is_whole(source: Path, out: Path, monkeypatch) -> None:
    encrypt_file(source, out / "x.esdk", key=KEY)
    modes: list[int] = []
    opened = stream.open_frame

    def looking(*args, **kwargs):
        modes.extend(os.stat(f"/proc/self/fd/{fd}").st_mode & 0o777 for fd in _open_below(out))
        return opened(*args, **kwargs)

    monkeypatch.setattr(stream, "open_frame", looking)
    decrypt_file(out / "x.esdk", out / "x", key=KEY)
    assert 0o600 in modes


def _open_below(folder: Path) -> list[int]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            where = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if where.startswith(str(folder)) and not where.endswith("x.esdk"):
            found.append(int(fd))
    return found


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_durable_syncs_the_file_before_it_gets_its_name_and_then_the_folder(
    source: Path, out: Path, monkeypatch, durable: bool, exists: bool
) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync
    if exists:
        (out / "x.esdk").write_bytes(b"old")

    def counted(fd: int) -> None:
        what = "folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"
        there = (out / "x.esdk").exists() and (out / "x.esdk").read_bytes() != b"old"
        synced.append((what, there))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", counted)
    encrypt_file(source, out / "x.esdk", key=KEY, durable=durable)
    assert synced == ([("file", False), ("folder", True)] if durable else [])


def test_context_that_is_asked_for_must_be_the_messages(source: Path, out: Path) -> None:
    encrypt_file(source, out / "x.esdk", key=KEY, context=CONTEXT)
    with pytest.raises(
        DecryptionError, match=r"'asset' = 'press-7', not 'press-8': it was moved or swapped"
    ) as refused:
        decrypt_file(out / "x.esdk", out / "x", key=KEY, context={"asset": "press-8"})
    assert str(out / "x.esdk") in str(refused.value)
    with pytest.raises(DecryptionError, match="not bound to 'line': it is not the one that was asked for"):
        decrypt_file(out / "x.esdk", out / "x", key=KEY, context={"line": "7"})
    with pytest.raises(DecryptionError, match="moved or swapped"):
        decrypt_bytes((out / "x.esdk").read_bytes(), key=KEY, context={"asset": "press-8"})
    decrypt_file(out / "x.esdk", out / "x", key=KEY, context={"asset": "press-7"})
    decrypt_file(out / "x.esdk", out / "x", key=KEY)
    assert folder_holds(out) == ["x", "x.esdk"]


def test_frames_of_any_length_are_read(out: Path) -> None:
    plaintext = os.urandom(1000)
    for frame_length in (1, 16, 999, 1000, 1001, 1 << 26):
        message = message_of(plaintext, KEY, frame_length)
        (out / "x.esdk").write_bytes(message)
        decrypt_file(out / "x.esdk", out / "x", key=KEY)
        assert (out / "x").read_bytes() == plaintext == decrypt_bytes(message, key=KEY)


def test_plaintext_and_empty_files_are_not_messages(source: Path, out: Path) -> None:
    (out / "empty").touch()
    for path, says in ((source, "this is not a version 2 message"), (out / "empty", "is empty")):
        with pytest.raises(DecryptionError, match=says):
            inspect_file(path)
        with pytest.raises(DecryptionError, match=says) as refused:
            decrypt_file(path, out / "x", key=KEY)
        assert str(path) in str(refused.value)
    assert folder_holds(out) == ["empty"]


def test_inspect_names_recipients_and_sizes_without_a_key(source: Path, out: Path) -> None:
    encrypt_file(source, out / "x.esdk", key=[KEY, a_key("second")], context=CONTEXT)
    seen = inspect_file(out / "x.esdk")
    assert seen.recipients == ("tests/test", "tests/second")
    assert (seen.suite, seen.frame_length, seen.frames, seen.plaintext_length) == (0x0478, FRAME, 1, 7000)
    with pytest.raises(EncryptionError, match="cannot be read"):
        inspect_file(out / "none")


def test_header_longer_than_the_first_read_is_read_on(source: Path, out: Path) -> None:
    encrypt_file(source, out / "x.esdk", key=KEY, context={"long": "x" * 60000})
    assert len(inspect_file(out / "x.esdk").context["long"]) == 60000
    decrypt_file(out / "x.esdk", out / "x", key=KEY)
    assert (out / "x").read_bytes() == source.read_bytes()


def test_bytes_and_files_are_the_same_messages(out: Path) -> None:
    plaintext = os.urandom(2 * FRAME + 7)
    (out / "x.esdk").write_bytes(encrypt_bytes(plaintext, key=KEY))
    decrypt_file(out / "x.esdk", out / "x", key=KEY, durable=False)
    assert (out / "x").read_bytes() == plaintext


def test_texts_and_keys_may_be_mixed(source: Path, out: Path, tmp_path: Path) -> None:
    from securemfg.encryption import create_local_key

    create_local_key(tmp_path / "dev.key")
    encrypt_file(str(source), str(out / "x.esdk"), key=[f"local:{tmp_path / 'dev.key'}", KEY])
    decrypt_file(out / "x.esdk", out / "x", key=f"local:{tmp_path / 'dev.key'}")
    assert (out / "x").read_bytes() == source.read_bytes()


def test_room_loads_nothing_heavy_until_a_name_is_used() -> None:
    import subprocess
    import sys

    code = (
        "import sys, securemfg.encryption as e; assert 'cryptography' not in sys.modules; "
        "e.encrypt_file; assert 'cryptography' in sys.modules; "
        "assert all(hasattr(e, name) for name in e.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("size", [0, 5, FRAME, 2 * FRAME + 9])
def test_a_message_that_does_not_end_with_its_final_frame_is_not_inspected(tmp_path: Path, size: int) -> None:
    (tmp_path / "plain").write_bytes(os.urandom(size))
    encrypt_file(tmp_path / "plain", tmp_path / "x", key=KEY)
    message = (tmp_path / "x").read_bytes()
    for harmed in (message[:-1], message + b"x"):
        (tmp_path / "x").write_bytes(harmed)
        with pytest.raises(DecryptionError, match="cut off"):
            inspect_file(tmp_path / "x")
