"""The audit trail as a workflow holds it: the journal, the fail policy per sensitivity (NIST AU-5), and the shipper.

`degrade`     an event that cannot be written waits in memory, bounded, and is written when the journal works again
`block`       a write is tried again up to the deadline, then AuditError; `settle` waits until the disk has everything
`fail_closed` as block; the workflow asks for `durable=True` on `step.started`, so that the body runs only after it
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from securemfg.audit.events import Tags
from securemfg.audit.journal import Journal
from securemfg.audit.writer import ReentrantAppend
from securemfg.errors import AuditError
from securemfg.forking import forget_after_fork
from securemfg.labels import Sensitivity
from securemfg.settings import FailPolicy

if TYPE_CHECKING:
    from securemfg.audit.shipper import Shipper

__all__ = ["Summary", "Trail"]

_log = logging.getLogger(__name__)
_PAUSE: Final = 0.05  # seconds between attempts while an event waits
_DRAIN_EVERY: Final = 1.0  # seconds between attempts to write what waits in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """This process's events. Always: emitted = pending + shipped + lost."""

    emitted: int
    pending: int  # in the journal or in memory, not at the log service
    shipped: int
    lost: int  # refused to the caller, dropped from a full memory spool, or refused by the log service


class Trail:
    """Records events as the fail policy of their sensitivity asks. Thread-safe; fork-safe."""

    def __init__(
        self,
        journal: Journal,
        *,
        policy_for: Callable[[Sensitivity], FailPolicy],
        deadline: timedelta = timedelta(seconds=5),
        shipper: Shipper | None = None,
        spool_events: int = 10_000,
    ) -> None:
        self.journal = journal
        self.shipper = shipper
        self._policies = {level: policy_for(level) for level in Sensitivity}
        self._deadline = deadline.total_seconds()
        self._spool: deque[dict[str, Any]] = deque()
        self._spool_events = spool_events
        self._spool_lock = threading.RLock()  # a signal handler may record too
        self._next_drain = 0.0
        self._draining = False
        self._warned = False
        self._lost = 0
        self._shipping = shipper is None
        forget_after_fork(self)

    def record(
        self,
        tags: Tags,
        action: str,
        *,
        resource: str | None = None,
        kind: str | None = None,
        outcome: str = "success",
        reason: str | None = None,
        detail: Mapping[str, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
        durable: bool = False,
    ) -> str | None:
        """Record one event and return its id, or None when it waits in memory.

        `durable` returns when the disk has it. Raises AuditError under `block` and `fail_closed`, after the deadline.
        """
        strict = self._policies[tags.sensitivity] is not FailPolicy.DEGRADE
        if self._shipping and not (self._spool or strict or durable):  # nearly always
            try:
                return self.journal.append(
                    tags,
                    action,
                    resource=resource,
                    kind=kind,
                    outcome=outcome,
                    reason=reason,
                    detail=detail,
                    fields=fields,
                ).event_id
            except AuditError:
                pass  # again below, at length
        if self._spool:
            self._drain()
        event: dict[str, Any] = {
            "tags": tags,
            "action": action,
            "resource": resource,
            "kind": kind,
            "outcome": outcome,
            "reason": reason,
            "detail": detail,
            "fields": fields,
        }
        if self._spool and not strict:  # keep their order: what is waiting goes first
            self._keep(event)
            return None
        end = time.monotonic() + self._deadline if strict or durable else 0.0
        event_id: str | None = None
        while event_id is None:
            try:
                event_id = self.journal.append(**event).event_id
            except ReentrantAppend:
                self._keep(event)
                return None
            except AuditError as error:
                if not strict:
                    self._warn(error)
                    self._keep(event)
                    return None
                if time.monotonic() >= end:
                    with self._spool_lock:
                        self._lost += 1
                    raise
                time.sleep(_PAUSE)
        if not self._shipping:
            self._start_shipping()
        if durable:
            try:
                self.journal.flush(max(0.0, end - time.monotonic()))
            except AuditError as error:
                if strict:
                    raise
                self._warn(error)
        return event_id

    def settle(self, sensitivity: Sensitivity) -> None:
        """At the end of a step: `block` and `fail_closed` wait until the disk has every event. Raises AuditError."""
        if self._spool:
            self._drain(now=True)
        if self._policies[sensitivity] is not FailPolicy.DEGRADE:
            self.journal.flush(self._deadline)

    def close(self, deadline: float = 1.0) -> None:
        """Write what waits, seal the journal, give the shipper what is left of `deadline` (seconds). Never raises."""
        end = time.monotonic() + deadline
        if self._spool:
            self._drain(now=True)
        try:
            self.journal.close(max(0.1, end - time.monotonic()))
        except AuditError as error:
            _log.warning("%s", error)
        if self._spool:
            _log.warning("%d audit events end with the process: the journal could not be written", len(self._spool))
        if self.shipper is not None:
            self.shipper.stop(max(0.0, end - time.monotonic()))
            self._shipping = False

    def summary(self) -> Summary:
        """The account of this process's events. Raises AuditError when the shipper's cursors cannot be read."""
        with self._spool_lock:
            waiting, lost = len(self._spool), self._lost
        written = self.journal.emitted
        shipped = refused = 0
        if self.shipper is not None:
            for writer in self.journal.writer_ids:
                sent, poison = self.shipper.account(writer)
                shipped += sent
                refused += poison
        return Summary(
            emitted=written + waiting + lost,
            pending=max(0, written - shipped - refused) + waiting,
            shipped=shipped,
            lost=lost + refused,
        )

    def _keep(self, event: dict[str, Any]) -> None:
        """Hold the event in memory with the time it happened."""
        event.setdefault("at", time.time_ns())
        if event["detail"] is not None:
            event["detail"] = dict(event["detail"])
        with self._spool_lock:
            self._spool.append(event)
            if len(self._spool) > self._spool_events:
                self._spool.popleft()
                self._lost += 1

    def _drain(self, *, now: bool = False) -> None:
        """Write what waits in memory, in order, as far as the journal takes it."""
        if not now and time.monotonic() < self._next_drain:
            return
        if not self._spool_lock.acquire(blocking=False):
            return  # another thread is at it
        if self._draining:  # and so is this one, below a signal handler
            self._spool_lock.release()
            return
        try:
            self._draining = True
            self._next_drain = time.monotonic() + _DRAIN_EVERY
            while self._spool:
                with suppress(AuditError):
                    self.journal.append(**self._spool[0])
                    self._spool.popleft()
                    continue
                return
        finally:
            self._draining = False
            self._spool_lock.release()
        self._warned = False

    def _warn(self, error: AuditError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s. Work goes on; events wait in memory (fail policy 'degrade')", error)

    def _start_shipping(self) -> None:
        self._shipping = True
        if self.shipper is not None:
            self.shipper.start()

    def forget(self) -> None:
        """The parent writes what waits in its memory; the child starts with nothing."""
        self._spool = deque()
        self._spool_lock = threading.RLock()  # a signal handler may record too
        self._lost = 0
        self._draining = self._warned = False
        self._shipping = self.shipper is None
