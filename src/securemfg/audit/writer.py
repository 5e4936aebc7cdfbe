"""One writer: the appending end of one process's journal folder, its durability thread and its checkpoints.

The calling thread redacts, hashes and writes one line to the page cache (survives the process). A daemon thread
asks the disk at most 20 ms later (survives the machine), keeps the Merkle tree, signs checkpoints and starts new
segments.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from securemfg.audit import checkpoint
from securemfg.audit.events import GENESIS, SCHEMA_VERSION, EventIds, encode, rfc3339
from securemfg.audit.merkle import Frontier
from securemfg.audit.segments import CHECKPOINTS, LOCK, make_private, segment_name, sync_folder, try_lock, unlock
from securemfg.errors import AuditError

__all__ = ["Closed", "Disk", "Limits", "ReentrantAppend", "Writer"]

_log = logging.getLogger(__name__)
_GATHER: Final = 0.02  # seconds that events gather before the disk is asked
_RETRY: Final = 0.1  # seconds between attempts while the disk refuses


class Closed(Exception):
    """The writer was closed meanwhile: the journal opens another. Callers never see it."""


class ReentrantAppend(AuditError):
    """A signal handler recorded an event while the same thread was writing one. Try again outside the handler."""


class Disk(NamedTuple):
    """The three calls that faults are injected into."""

    write: Callable[[int, Any, int], int] = os.pwrite
    sync: Callable[[int], None] = os.fdatasync
    truncate: Callable[[int, int], None] = os.ftruncate


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a checkpoint is due and a segment is full."""

    checkpoint_events: int = 1000
    checkpoint_interval: timedelta = timedelta(seconds=60)
    segment_bytes: int = 64 << 20


# The next event's seq, the end of the last event in the segment, its SHA-256. Replaced in one assignment, so that an
# interrupt never leaves half of it; a plain tuple, because a named one costs the calling thread 0.3 µs.
_State: TypeAlias = tuple[int, int, str]


@dataclass(kw_only=True)
class _Progress:
    """What is durable and what is asked for. Guarded by the writer's condition."""

    durable: int = 0  # events
    sealed: int = 0  # events
    note: str = ""  # the last checkpoint
    waiting: int = 0
    seal_target: int = 0  # a checkpoint over so many events was asked for
    failure: OSError | None = None
    retired: bool = False  # the thread has ended
    unsynced: list[bytes] = field(default_factory=list)  # written since the disk last said yes


class Writer:
    """Appends to one folder. Made by `Writer.open`; used by one process only."""

    def __init__(
        self,
        folder: Path,
        signer: checkpoint.Signer,
        lock_fd: int,
        *,
        now: Callable[[], int],
        disk: Disk,
        limits: Limits,
    ) -> None:
        self.folder = folder
        self.id = folder.name
        self._signer = signer
        self._now = now
        self._disk = disk
        self._write = disk.write
        self._limits = limits
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread inside the lock, to notice a signal handler re-entering
        self._state: _State = (0, 0, GENESIS)
        self._pending: bytes | None = None  # a write whose end was not seen
        self._fresh: list[tuple[Any, bytes]] = []  # (hashlib object, line) that the thread has not taken yet
        self._constant = {"pid": os.getpid(), "schema_version": SCHEMA_VERSION, "writer": folder.name}
        self._ids = EventIds()
        self._lock_fd = lock_fd
        self._segment_fd = -1
        self._segment_start = 0  # offset up to which the segment is durable
        self._notes_fd = -1
        self._notes_end = 0
        self._previous_note = GENESIS
        self._tree = Frontier()
        self._tree_head = GENESIS
        self._progress = _Progress()
        self._changed = threading.Condition()
        self._dirty = False
        self._closing = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(
        cls, root: Path, signer: checkpoint.Signer, *, now: Callable[[], int], disk: Disk, limits: Limits
    ) -> Writer:
        """Make a new writer's folder below `root` and take its lock. Raises OSError."""
        make_private(root)
        name = _writer_id(now())
        building = root / f".{name}"
        building.mkdir(mode=0o700)
        lock_fd = -1
        try:
            fd = try_lock(building / LOCK)
            if fd is None:
                raise OSError(f"{building} is locked by another process")
            lock_fd = fd
            folder = building.rename(root / name)  # others see it only when it is locked
            writer = cls(folder, signer, lock_fd, now=now, disk=disk, limits=limits)
            writer._segment_fd = _new_file(folder / segment_name(0))
            writer._notes_fd = _new_file(folder / CHECKPOINTS)
            sync_folder(folder)
            sync_folder(root)
        except OSError:
            if lock_fd >= 0:
                unlock(lock_fd)
            raise
        return writer

    def start(self) -> None:
        """Start the durability thread. Raises RuntimeError when the interpreter is ending."""
        self._thread = threading.Thread(target=self._run, name="securemfg-journal", daemon=True)
        self._thread.start()

    def append(self, record: dict[str, Any], at: int | None = None) -> tuple[str, int]:
        """Write `record` as the next event; returns its id and sequence number.

        Raises OSError when the line could not be written whole (nothing of it is left), Closed, ReentrantAppend.
        """
        me = threading.get_ident()
        if self._owner == me:
            raise ReentrantAppend("an event was recorded by a signal handler while another was being written")
        with self._lock:
            self._owner = me
            try:
                if self._closing:
                    raise Closed
                if self._pending is not None:
                    self._settle()
                moment = self._now()
                seq, offset, head = self._state
                event_id = self._ids.next(moment)
                record.update(self._constant)
                record["event_id"] = event_id
                record["time"] = rfc3339(moment if at is None else at)
                record["seq"] = seq
                record["prev"] = head
                data = encode(record)
                digest = sha256(data)
                line = data + b"\n"
                self._pending = line
                try:
                    written = self._write(self._segment_fd, line, offset)
                    if written != len(line):  # a full disk cuts short without an error
                        self._complete(line, offset, written)
                except OSError:
                    self._pending = b""  # not acknowledged: nothing of it may stay
                    with suppress(OSError):
                        self._settle()
                    raise
                self._fresh.append((digest, line))
                self._state = (seq + 1, offset + len(line), digest.hexdigest())
                self._pending = None
            finally:
                self._owner = None
        if not self._dirty:
            self._dirty = True
            self._wake.set()
        return event_id, seq

    def _complete(self, line: bytes, offset: int, written: int) -> None:
        while written < len(line):
            more = self._write(self._segment_fd, line[written:], offset + written)
            if more <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += more

    def _settle(self) -> None:
        """After a write whose end was not seen: keep the line when it is whole, else take it away. Raises OSError."""
        line, (seq, offset, _) = self._pending, self._state
        size = os.fstat(self._segment_fd).st_size
        if line and size == offset + len(line):  # an interrupt (Ctrl-C) came between the write and its bookkeeping
            digest = sha256(line[:-1])
            if not (self._fresh and self._fresh[-1][1] is line):
                self._fresh.append((digest, line))
            self._state = (seq + 1, size, digest.hexdigest())
        elif size != offset:
            self._disk.truncate(self._segment_fd, offset)
        self._pending = None

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    @property
    def size(self) -> int:
        """Events written."""
        return self._state[0]

    def wait_durable(self, size: int, deadline: float | None) -> None:
        """Return when the first `size` events are on the disk. `deadline` is in seconds. Raises AuditError."""
        self._await(lambda p: p.durable >= size, deadline, "made durable")

    def seal(self, deadline: float | None) -> str:
        """Sign a checkpoint over everything written until now, and return the last note. Raises AuditError."""
        size = self.size
        with self._changed:
            self._progress.seal_target = max(self._progress.seal_target, size)
        self._await(lambda p: p.sealed >= size, deadline, "sealed by a checkpoint")
        return self._progress.note

    def ask_seal(self) -> None:
        """Have a checkpoint signed soon, without waiting for it."""
        with self._changed:
            self._progress.seal_target = max(self._progress.seal_target, self.size)
        self._hurry.set()
        self._wake.set()

    def _await(self, done: Callable[[_Progress], bool], deadline: float | None, what: str) -> None:
        end = None if deadline is None else time.monotonic() + deadline
        with self._changed:
            self._progress.waiting += 1
            try:
                while not done(self._progress):
                    self._hurry.set()
                    self._wake.set()
                    left = None if end is None else end - time.monotonic()
                    alive = self._thread is not None and not self._progress.retired
                    if not alive or (left is not None and left <= 0):
                        why = self._progress.failure
                        raise AuditError(
                            f"audit events were not {what} in time in {self.folder}: "
                            f"{why.strerror or why if why else 'the disk did not answer'}; free or replace the disk"
                        ) from why
                    self._changed.wait(left)
            finally:
                self._progress.waiting -= 1

    def close(self, deadline: float) -> bool:
        """Take no more events, make all durable, seal, release. False when `deadline` (seconds) was too short."""
        with self._held():
            self._closing = True
        self._hurry.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(deadline)
        return self._progress.retired and self._progress.failure is None

    def discard(self) -> None:
        """Release a writer whose thread never started."""
        with self._held():
            self._closing = True
        self._release()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's descriptors, without releasing what the parent holds."""
        for fd in (self._segment_fd, self._notes_fd, self._lock_fd):
            with suppress(OSError):
                os.close(fd)

    # The durability thread. Only it closes descriptors, so none is closed while in use.

    def _run(self) -> None:
        interval = self._limits.checkpoint_interval.total_seconds()
        due = time.monotonic() + interval
        while True:
            self._wake.wait(max(0.0, min(due - time.monotonic(), 3600.0)))
            self._wake.clear()
            if not self._closing and not self._progress.waiting:
                self._hurry.wait(_GATHER)
            self._hurry.clear()
            ending = self._closing
            failure: OSError | None = None
            try:
                self._sync()
                unsealed = self._tree.size - self._progress.sealed
                late = time.monotonic() >= due
                asked = ending or late or self._progress.sealed < self._progress.seal_target
                if unsealed >= self._limits.checkpoint_events or (unsealed and asked):
                    self._sign()
                if late:
                    due = time.monotonic() + interval
                if self._state[1] >= self._limits.segment_bytes and not ending:
                    self._rotate()
            except OSError as error:
                failure = error
                if self._progress.failure is None:
                    _log.warning("the audit journal %s cannot be made durable: %s; will retry", self.folder, error)
            with self._changed:
                self._progress.failure = failure
                if ending:
                    self._progress.retired = True
                self._changed.notify_all()
            if ending:
                self._release()
                return
            if failure is not None:
                self._dirty = True
                time.sleep(_RETRY)
                self._wake.set()

    def _take(self) -> int:
        """With the lock held: move what was written into the tree; returns the number of events."""
        self._dirty = False
        if self._pending is not None:
            self._settle()
        fresh, self._fresh = self._fresh, []
        for digest, line in fresh:
            self._tree.append(digest.digest())
            self._progress.unsynced.append(line)
        if fresh:
            self._tree_head = fresh[-1][0].hexdigest()
        return self._state[0]

    def _sync(self) -> None:
        with self._held():
            size = self._take()
        if self._progress.durable < size:
            self._make_durable(size)

    def _make_durable(self, size: int) -> None:
        progress = self._progress
        if progress.failure is not None:
            # After a failed sync the kernel may count the pages as clean: write the same bytes again.
            self._write_all(self._segment_fd, b"".join(progress.unsynced), self._segment_start)
        self._disk.sync(self._segment_fd)
        self._segment_start += sum(map(len, progress.unsynced))
        progress.unsynced.clear()
        with self._changed:
            progress.durable = size
            progress.failure = None
            self._changed.notify_all()

    def _write_all(self, fd: int, data: bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            written = self._write(fd, memoryview(data)[done:], offset + done)
            if written <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += written

    def _sign(self) -> None:
        """Append a checkpoint over the tree, whose events are all durable by now. Raises OSError."""
        size = self._tree.size
        note = self._signer.sign(
            checkpoint.text(
                writer=self.id,
                size=size,
                root=self._tree.root(),
                head=self._tree_head,
                previous=self._previous_note,
                time=rfc3339(self._now()),
            )
        )
        data = f"{note}\n".encode()
        try:
            self._write_all(self._notes_fd, data, self._notes_end)
            self._disk.sync(self._notes_fd)
        except OSError:
            with suppress(OSError):
                self._disk.truncate(self._notes_fd, self._notes_end)
            raise
        self._notes_end += len(data)
        self._previous_note = sha256(note.encode()).hexdigest()
        with self._changed:
            self._progress.sealed = size
            self._progress.note = note
            self._changed.notify_all()

    def _rotate(self) -> None:
        """Go on in a new segment. Appending waits: the old one must be durable before it is left."""
        with self._held():
            size = self._take()
            if self._progress.durable < size:
                self._make_durable(size)
            fd = _new_file(self.folder / segment_name(size))
            sync_folder(self.folder)
            old, self._segment_fd = self._segment_fd, fd
            self._state = (size, 0, self._state[2])
            self._segment_start = 0
        os.close(old)

    def _release(self) -> None:
        with self._held():
            fds = (self._segment_fd, self._notes_fd)
            self._segment_fd = self._notes_fd = -1
        for fd in fds:
            with suppress(OSError):
                os.close(fd)
        unlock(self._lock_fd)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def host_name() -> str:
    """This host, in letters that a log stream, a key name and a folder can hold."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", platform.node()).strip("-.")[:64] or "host"


def _writer_id(nanoseconds: int) -> str:
    """Sorted by start: time, host, boot, process, nonce."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    start = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        boot = "noboot"
    return f"{start}{rest // 1000:06d}Z-{host_name()}-{boot}-{os.getpid()}-{os.urandom(4).hex()}"
