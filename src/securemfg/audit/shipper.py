"""Delivers the journal to CloudWatch Logs: every writer below the root, at least once, without ever giving up.

Any shipper ships any writer whose shipping lock is free: its own process's, and what crashed, forked or
short-lived processes left behind. The cursor moves only after the service's answer is on the disk; a lost answer
means the batch is sent again, so readers drop doubles by (writer, seq). Nothing here raises into user code.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from securemfg.audit import segments
from securemfg.audit.batches import Item, marker, next_batch
from securemfg.audit.cloudwatch import BatchRefused, CloudWatchLogs
from securemfg.audit.cursor import Cursor
from securemfg.errors import AuditError
from securemfg.forking import forget_after_fork

__all__ = ["Shipped", "Shipper"]

_log = logging.getLogger(__name__)
_SHIP_LOCK: Final = "ship.lock"
_ATTEMPTS: Final = 5  # in a row without progress, when no deadline was given


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipped:
    """What one call of `ship_pending` did."""

    events: int  # acknowledged by this call
    writers: int  # that had something to ship
    pending: int  # events still to ship, in any writer
    problem: str | None = None  # why something is still pending


class Shipper:
    """Ships what is below `root` to `log_group`, in its own daemon thread.

    `client_factory` makes the CloudWatch Logs client (see `cloudwatch.logs_client`), in the thread. `guard` is
    entered around every call to it. `now` gives nanoseconds since 1970. The constructor does no I/O.
    """

    def __init__(
        self,
        root: Path,
        client_factory: Callable[[], Any],
        log_group: str,
        *,
        create: bool = True,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
        interval: timedelta = timedelta(seconds=1),
        backoff: tuple[float, float] = (0.2, 30.0),
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.root = root
        self._make_logs = functools.partial(CloudWatchLogs, client_factory, log_group, create=create, guard=guard)
        self._logs = self._make_logs()
        self._interval = interval.total_seconds()
        self._base, self._cap = backoff  # seconds
        self._now = now
        self._done: set[str] = set()  # dead writers with nothing left
        self._unsaved: dict[str, Cursor] = {}
        self._pass_lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._final: float | None = None  # monotonic end of the last pass
        self._thread: threading.Thread | None = None
        self._held: set[int] = set()  # descriptors of shipping locks, for a forked child to let go
        self._warned = False
        forget_after_fork(self)

    def start(self) -> None:
        """Begin shipping in the background and return at once."""
        if self._thread is not None and self._thread.is_alive() and not self._stopping.is_set():
            return
        self._stopping = threading.Event()  # each thread its own: an old one may still be ending
        self._wake = threading.Event()
        self._final = None
        self._thread = threading.Thread(
            target=self._run, args=(self._stopping, self._wake), name="securemfg-shipper", daemon=True
        )
        with suppress(RuntimeError):  # the interpreter is ending: the next process ships it
            self._thread.start()

    def stop(self, deadline: float = 1.0) -> None:
        """Ship what can be shipped within `deadline` (seconds), then end. What is left stays pending in the journal."""
        thread = self._thread
        self._final = time.monotonic() + deadline
        self._stopping.set()
        self._wake.set()
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(deadline)

    def ship_pending(self, deadline: float | None = None) -> Shipped:
        """Ship what is pending now and return what became of it; for `securemfg audit ship`.

        Tries again with backoff until `deadline` (seconds); without one, until five attempts in a row bring nothing.
        """
        end = None if deadline is None else time.monotonic() + deadline
        failures = events = 0
        busy: set[str] = set()
        problem: str | None = None
        while True:
            with self._pass_lock:
                sent, error = self._pass(busy, end)
            events += sent
            failures = 0 if sent else failures + 1
            problem = str(error) if error else None
            left = None if end is None else end - time.monotonic()
            if error is None and sent and self.pending() and (left is None or left > 0):
                continue  # what was recorded meanwhile, by this very delivery perhaps
            if error is None or (left is None and failures >= _ATTEMPTS) or (left is not None and left <= 0):
                break
            pause = self._pause(failures)
            time.sleep(pause if left is None else min(pause, max(0.0, left)))
        pending = self.pending()
        if pending and problem is None:
            problem = "another process is shipping these writers"
        return Shipped(events=events, writers=len(busy), pending=pending, problem=problem)

    def pending(self) -> int:
        """Events below the root that were neither shipped nor marked lost. Raises AuditError."""
        total = 0
        for folder in segments.writers(self.root):
            cursor = Cursor.load(folder)
            for segment in segments.segments(folder):
                if segment.name >= cursor.segment:
                    start = cursor.offset if segment.name == cursor.segment else 0
                    total += sum(1 for _ in segments.lines(segment, start))
        return total

    def account(self, writer: str) -> tuple[int, int]:
        """(shipped, marked lost) of one writer. Raises AuditError."""
        cursor = Cursor.load(self.root / writer)
        return cursor.shipped, cursor.lost

    # The thread.

    def _run(self, stop: threading.Event, wake: threading.Event) -> None:
        failures = 0
        while True:
            stopping = stop.is_set()
            try:
                with self._pass_lock:
                    sent, error = self._pass(set(), self._final if stopping else None)
            except Exception as unexpected:  # noqa: BLE001 - a thread that dies ships nothing any more
                sent, error = 0, AuditError(f"the shipper failed: {unexpected!r}")
            failures = 0 if error is None or sent else failures + 1
            self._report(error)
            if stopping and (error is None or time.monotonic() >= (self._final or 0)):
                return
            pause = self._interval if error is None else self._pause(failures)
            if stopping:
                time.sleep(min(pause, 0.05))
            else:
                wake.wait(pause)

    def _pause(self, failures: int) -> float:
        """Exponential backoff with full jitter, in seconds."""
        return random.uniform(0.0, min(self._cap, self._base * 2.0 ** min(failures, 20)))  # noqa: S311

    def _report(self, error: AuditError | None) -> None:
        if error is not None and not self._warned:
            _log.warning("%s. Audit events stay in the journal and are sent later", error)
        self._warned = error is not None

    def _pass(self, busy: set[str], end: float | None) -> tuple[int, AuditError | None]:
        """Ship every writer that is free. Returns the events acknowledged, and what stood in the way."""
        events = 0
        problem: AuditError | None = None
        try:
            folders = [folder for folder in segments.writers(self.root) if folder.name not in self._done]
        except AuditError as error:
            return 0, error
        for folder in folders:
            dead = not segments.is_live(folder)  # asked before reading: nothing can be added after
            fd: int | None = None
            try:
                fd = segments.try_lock(folder / _SHIP_LOCK)
                if fd is None:
                    continue
                self._held.add(fd)
                sent, hindrance = self._ship(folder, busy, end)
                events += sent
                problem = problem or hindrance
                if dead and hindrance is None:
                    self._done.add(folder.name)
            except AuditError as error:  # a damaged cursor: the other writers go on
                problem = problem or error
            except OSError as error:
                problem = problem or AuditError(f"{folder} cannot be shipped: {error.strerror or error}")
            finally:
                if fd is not None:
                    self._held.discard(fd)
                    segments.unlock(fd)
            if end is not None and time.monotonic() >= end:
                break
        return events, problem

    def _ship(self, folder: Path, busy: set[str], end: float | None) -> tuple[int, AuditError | None]:
        cursor = self._unsaved.get(folder.name)
        if cursor is None:
            cursor = Cursor.load(folder)
        else:  # acknowledged, but the disk did not take the cursor: sending it again would double it
            self._save(folder, cursor)
        events = 0
        while (batch := next_batch(folder, cursor, self._now() // 1_000_000)) is not None:
            if end is not None and time.monotonic() >= end:
                return events, AuditError("the time given was over")
            busy.add(folder.name)
            try:
                lost = self._deliver(folder.name, batch.items)
            except AuditError as error:
                return events, error
            gone = sum(len(items) for _, items in lost)
            markers = tuple(marker(folder.name, items, "lost", reason) for reason, items in lost if items)
            cursor = batch.after.advanced(
                shipped=cursor.shipped + batch.events - gone,
                lost=cursor.lost + gone,
                markers=batch.after.markers + markers,
            )
            self._save(folder, cursor)
            events += batch.events - gone
        return events, None

    def _save(self, folder: Path, cursor: Cursor) -> None:
        self._unsaved[folder.name] = cursor
        cursor.save(folder)
        del self._unsaved[folder.name]

    def _deliver(self, stream: str, items: Sequence[Item]) -> list[tuple[str, list[Item]]]:
        """Send one batch. Returns what the service will never take, and why. Raises AuditError to try again later."""
        try:
            rejected = self._logs.put(stream, [(item.moment, item.message) for item in items])
        except BatchRefused as error:
            if len(items) > 1:  # halve until the poison event stands alone
                middle = len(items) // 2
                return self._deliver(stream, items[:middle]) + self._deliver(stream, items[middle:])
            self._confirm(stream, items[0], error)
            return [("refused by the service", _events(items))]
        if rejected is None:
            return []
        return [(rejected.reason, _events(items[position] for position in sorted(rejected.positions)))]

    def _confirm(self, stream: str, item: Item, error: BatchRefused) -> None:
        """An event is poison only when the service takes another in its place: else the service or a setting is ill."""
        probe = marker(stream, [item], "refused")
        try:
            self._logs.put(stream, [(self._now() // 1_000_000, probe)])
        except BatchRefused:
            raise AuditError(str(error)) from error

    def forget(self) -> None:
        """The child starts its own thread when it records; the parent's locks are let go, not released."""
        self._thread = None
        self._pass_lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._final = None
        self._logs = self._make_logs()
        self._unsaved = {}
        for fd in self._held:
            with suppress(OSError):
                os.close(fd)
        self._held = set()


def _events(items: Iterable[Item]) -> list[Item]:
    """Without notes and markers: a marker about a marker would never end."""
    return [item for item in items if item.event]
