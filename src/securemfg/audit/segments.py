"""Where a writer's files lie and how they are read. One folder per writer below the journal's root:

    <UTC start>-<host>-<boot>-<pid>-<nonce>/
        lock                     held exclusively while the writer lives
        000000000000.jsonl       a segment: one canonical event per line; named after its first event
        checkpoints              signed notes, each followed by an empty line
        cursor, ship.lock        how far the shipper has come, and who ships

A line without its newline is torn: it was never acknowledged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from securemfg.audit.events import MAX_EVENT, decode
from securemfg.errors import AuditError

__all__ = ["CHECKPOINTS", "Head", "Line", "is_live", "last_head", "lines", "segments", "try_lock", "unlock", "writers"]

CHECKPOINTS: Final = "checkpoints"
LOCK: Final = "lock"
SUFFIX: Final = ".jsonl"
CHUNK: Final = 1 << 20  # bytes read at once


class Head(NamedTuple):
    """How far a writer has come: its id, its number of events, the last one's SHA-256 in hex."""

    writer: str
    size: int
    head: str


class Line(NamedTuple):
    data: bytes  # without its newline
    end: int  # offset in the segment behind the newline


def segment_name(first: int) -> str:
    return f"{first:012d}{SUFFIX}"


def writers(root: Path) -> list[Path]:
    """Every writer's folder, oldest first. A folder still being made starts with a dot and is none."""
    try:
        return sorted(
            Path(entry.path)
            for entry in os.scandir(root)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AuditError(f"the journal {root} cannot be read: {error.strerror}; check its owner and mode") from error


def segments(folder: Path) -> list[Path]:
    """A writer's segments in order."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []


def lines(segment: Path, start: int = 0) -> Iterator[Line]:
    """The complete lines of a segment from offset `start`. The file is not held open between chunks."""
    rest = b""
    position = start
    while True:
        with open(segment, "rb", buffering=0, opener=_no_follow) as file:
            file.seek(position + len(rest))
            chunk = file.read(CHUNK)
        if not chunk:
            return
        parts = (rest + chunk).split(b"\n")
        rest = parts.pop()
        for data in parts:
            position += len(data) + 1
            yield Line(data, position)


def torn_bytes(segment: Path) -> int:
    """How many bytes behind the last newline a segment has."""
    size = segment.stat().st_size
    end = 0
    with open(segment, "rb", opener=_no_follow) as file:
        position = size
        while position > 0:
            step = min(CHUNK, position)
            position -= step
            file.seek(position)
            found = file.read(step).rfind(b"\n")
            if found >= 0:
                end = position + found + 1
                break
    return size - end


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def last_head(folder: Path) -> Head | None:
    """The last complete event of a writer, made durable first, so that naming it cannot outlive it."""
    for segment in reversed(segments(folder)):
        fd = os.open(segment, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
            size = os.fstat(fd).st_size
            tail = os.pread(fd, 2 * MAX_EVENT + 2, max(0, size - 2 * MAX_EVENT - 2))
        finally:
            os.close(fd)
        complete = tail[: tail.rfind(b"\n")] if b"\n" in tail else b""
        data = complete[complete.rfind(b"\n") + 1 :]
        record = decode(data) if data else None
        if record is not None and isinstance(record.get("seq"), int):
            return Head(folder.name, record["seq"] + 1, sha256(data).hexdigest())
    return None


def try_lock(path: Path) -> int | None:
    """A descriptor that holds `path` exclusively, or None when another one does. Close it with `unlock`."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        os.close(fd)
        raise
    return fd


def unlock(fd: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave it to a forked child's copy
    with contextlib.suppress(OSError):
        os.close(fd)


def is_live(folder: Path) -> bool:
    """Whether the writer's process still holds its lock."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        unlock(fd)
    return False


def make_private(folder: Path) -> None:
    """Make `folder` and what is missing above it, readable by its owner only."""
    if folder.is_dir():
        return
    missing = [folder]
    while not missing[-1].parent.is_dir():
        missing.append(missing[-1].parent)
    for part in reversed(missing):
        with contextlib.suppress(FileExistsError):
            part.mkdir(mode=0o700)
            sync_folder(part.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
