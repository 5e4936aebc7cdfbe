"""The world fails in the middle: sources that change, disks that fill up, processes that are killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from securemfg.encryption import stream, target
from securemfg.encryption.keys import create_local_key
from securemfg.encryption.stream import decrypt_file, encrypt_file
from securemfg.errors import DecryptionError, EncryptionError
from tests.parts import until
from tests.unit.encryption.parts import FRAME, Meddling, a_key, folder_holds

KEY = a_key()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(2 * FRAME + 5))
    os.utime(path, ns=(0, 0))  # long ago: a write in the same tick of the clock would not be seen
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "x").write_bytes(b"old")
    return folder


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "grows": (grow, "changed while it was read"),
    "shrinks": (lambda path: os.truncate(path, FRAME + 1), "became shorter while it was read"),
    "is emptied": (lambda path: os.truncate(path, 0), "became shorter while it was read"),
    "is overwritten in place": (overwrite_in_place, "changed while it was read"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_source_that_changes_while_it_is_encrypted_is_refused(source: Path, out: Path, change: str) -> None:
    act, says = CHANGES[change]
    with pytest.raises(EncryptionError, match=says) as refused:
        encrypt_file(source, out / "x", key=Meddling(lambda: act(source)))
    assert str(source) in str(refused.value)
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


@pytest.mark.parametrize("change", CHANGES)
def test_small_source_that_changes_is_refused(tmp_path: Path, out: Path, change: str) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"some bytes")
    os.utime(small, ns=(0, 0))
    act = {"shrinks": lambda path: os.truncate(path, 3)}.get(change, CHANGES[change][0])
    with pytest.raises(EncryptionError, match=CHANGES[change][1]):
        encrypt_file(small, out / "x", key=Meddling(lambda: act(small)))
    assert folder_holds(out) == ["x"]
    assert (out / "x").read_bytes() == b"old"


@pytest.mark.parametrize("change", CHANGES)
def test_message_that_changes_while_it_is_decrypted_is_refused(source: Path, out: Path, change: str) -> None:
    acts: list[Callable[[], object]] = []
    key = Meddling(lambda: [act() for act in acts])
    message = source.with_name("model.esdk")
    encrypt_file(source, message, key=key)
    os.utime(message, ns=(0, 0))
    acts.append(lambda: CHANGES[change][0](message))
    with pytest.raises(EncryptionError, match="changed|shorter") as refused:
        decrypt_file(message, out / "x", key=key)
    assert str(message) in str(refused.value)
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


def test_source_replaced_by_another_file_does_not_matter(source: Path, out: Path) -> None:
    before = source.read_bytes()
    other = source.with_name("other")
    other.write_bytes(b"other")
    key = Meddling(lambda: os.replace(other, source) if other.exists() else None)
    encrypt_file(source, out / "x", key=key)
    decrypt_file(out / "x", out / "y", key=key)
    assert (out / "y").read_bytes() == before


def test_disk_error_while_reading_names_the_source(source: Path, out: Path, monkeypatch) -> None:
    def broken(fd: int, buffers: object, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    for verb in (encrypt_file, decrypt_file):
        with pytest.raises(EncryptionError, match="cannot be read at byte 0: Input/output error") as refused:
            verb(source, out / "x", key=KEY)
        assert str(source) in str(refused.value)
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


@pytest.mark.parametrize("unnamed", [True, False], ids=["O_TMPFILE", "named"])
@pytest.mark.parametrize("call", ["pwrite", "fchmod", "fsync"])
def test_full_disk_at_any_call_leaves_the_target_and_no_temporary_file(
    source: Path, out: Path, monkeypatch, call: str, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.setattr(target, "_unnamed", lambda folder: None)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(EncryptionError, match="cannot be written: No space left on device; it was left as it was"):
        encrypt_file(source, out / "x", key=KEY)
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


def test_short_writes_and_reads_are_completed(source: Path, out: Path, monkeypatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: max(1, len(data) // 2)], at))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: preadv(fd, [into[0][: max(1, len(into[0]) // 2)]], at))
    encrypt_file(source, out / "x", key=KEY)
    decrypt_file(out / "x", out / "y", key=KEY)
    assert (out / "y").read_bytes() == source.read_bytes()


LIMITED = """
import resource, signal, sys
from securemfg.encryption import decrypt_file, encrypt_file
from securemfg.errors import EncryptionError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
verb = {"encrypt": encrypt_file, "decrypt": decrypt_file}[sys.argv[1]]
try:
    verb(sys.argv[2], sys.argv[3], key=sys.argv[4])
except EncryptionError as error:
    print(error)
"""


@pytest.mark.parametrize("verb", ["encrypt", "decrypt"])
def test_real_limit_of_the_system_is_reported_and_leaves_nothing(
    source: Path, out: Path, tmp_path: Path, verb: str
) -> None:
    key = f"local:{create_local_key(tmp_path / 'dev.key').path}"
    message = tmp_path / "model.esdk"
    encrypt_file(source, message, key=key)
    given = source if verb == "encrypt" else message
    said = subprocess.run(
        [sys.executable, "-c", LIMITED, verb, given, out / "x", key],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "cannot be written: File too large; it was left as it was" in said.stdout, said.stderr
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


def test_full_file_system_leaves_the_target_and_nothing_else(source: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system; the size limit above covers the same way")
    try:
        (small / "x").write_bytes(b"old")
        with pytest.raises(EncryptionError, match="No space left on device; it was left as it was"):
            encrypt_file(source, small / "x", key=KEY)
        assert (small / "x").read_bytes() == b"old"
        assert folder_holds(small) == ["x"]
        assert os.statvfs(small).f_bavail > 200  # what was written is given back
    finally:
        subprocess.run(["umount", small], check=True)


KILLED = """
import os, sys, time
from pathlib import Path
from securemfg.encryption import decrypt_file, stream
write = stream.write_at
def slowly(fd, data, offset):
    write(fd, data, offset)
    Path(sys.argv[4]).touch()
    time.sleep(60)
stream.write_at = slowly
decrypt_file(sys.argv[1], sys.argv[2], key=sys.argv[3])
"""


def test_killed_in_the_middle_of_a_decryption_leaves_no_file_at_all(source: Path, tmp_path: Path) -> None:
    key = f"local:{create_local_key(tmp_path / 'dev.key').path}"
    encrypt_file(source, tmp_path / "model.esdk", key=key)
    empty = tmp_path / "empty"
    empty.mkdir()
    wrote = tmp_path / "wrote"
    child = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "model.esdk", empty / "model", key, wrote])
    try:
        until(lambda: wrote.exists() or child.poll() is not None, what="the first frame")
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    if target._unnamed(tmp_path) is None:
        pytest.skip("needs a file system with O_TMPFILE to leave nothing after SIGKILL")
    assert folder_holds(empty) == []


def test_interrupt_leaves_the_target_and_no_temporary_file(source: Path, out: Path, monkeypatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "seal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encrypt_file(source, out / "x", key=KEY)
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


def test_no_descriptor_is_left_open_after_success_or_failure(source: Path, out: Path) -> None:
    encrypt_file(source, out / "x", key=KEY)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        encrypt_file(source, out / "x", key=KEY)
        decrypt_file(out / "x", out / "y", key=KEY)
        with pytest.raises(DecryptionError):
            decrypt_file(out / "x", out / "z", key=a_key())
        with pytest.raises(EncryptionError):
            encrypt_file(source, source, key=KEY)
        with pytest.raises(EncryptionError):
            encrypt_file(source, out / ("n" * 300), key=KEY)
    assert len(os.listdir("/proc/self/fd")) == before
