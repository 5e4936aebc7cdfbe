"""The journal: this process's durable local log. Opens its writer on the first event, again after a fork or a close.

Every writer begins with `journal.opened`, which names the newest other writer with its size and head: a whole
writer that goes missing is noticed by the next one's opening event. It ends with `journal.closed` and a checkpoint
over all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from securemfg.audit import segments
from securemfg.audit.checkpoint import Signer
from securemfg.audit.events import Tags, body
from securemfg.audit.writer import Closed, Disk, Limits, ReentrantAppend, Writer, host_name
from securemfg.errors import AuditError
from securemfg.forking import forget_after_fork

__all__ = ["Journal", "Receipt"]


class Receipt(NamedTuple):
    """Where an event was written."""

    event_id: str  # UUIDv7
    seq: int  # its position in the writer


class Journal:
    """One process's writer below `folder`, and what is needed to open it. Thread-safe; fork-safe.

    `keys` holds the signing key (built in: `keys` beside `folder`). `now` gives nanoseconds since 1970. `disk`
    holds the system calls, for fault injection.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keys: Path | None = None,
        checkpoint_events: int = 1000,
        checkpoint_interval: timedelta = timedelta(seconds=60),
        segment_bytes: int = 64 << 20,
        now: Callable[[], int] = time.time_ns,
        disk: Disk | None = None,
    ) -> None:
        self.folder = folder
        self.keys = keys or folder.parent / "keys"
        self._limits = Limits(
            checkpoint_events=checkpoint_events,
            checkpoint_interval=checkpoint_interval,
            segment_bytes=segment_bytes,
        )
        self._now = now
        self._disk = disk or Disk()
        self._writer: Writer | None = None
        self._opening = threading.RLock()
        self._finished = 0  # events in writers of this process that are closed
        self._lost = 0
        self.writer_ids: tuple[str, ...] = ()  # of this process, oldest first
        forget_after_fork(self)

    @property
    def writer(self) -> str | None:
        """The open writer's id."""
        writer = self._writer
        return writer.id if writer else None

    @property
    def emitted(self) -> int:
        """Events written by this process, the journal's own included."""
        writer = self._writer
        return self._finished + (writer.size if writer else 0)

    @property
    def lost(self) -> int:
        """Calls of `append` that ended in an AuditError with nothing written."""
        return self._lost

    def append(
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
        sync: bool = False,
        deadline: float | None = None,
        at: int | None = None,
    ) -> Receipt:
        """Write one event (NIST AU-3, AU-9). It survives this process on return, the machine 20 ms later.

        `sync` returns when the disk has it, at most `deadline` seconds later. `fields` holds other fields of the
        schema (see `events.OPTIONAL`); `at` is when it happened, when that is not now. Raises AuditError: nothing
        was written, or, with `sync`, not durable in time.
        """
        record = body(
            tags,
            action,
            resource=resource,
            kind=kind,
            outcome=outcome,
            reason=reason,
            detail=detail,
            fields=fields,
        )
        while True:
            writer = self._writer or self._open()
            try:
                receipt = tuple.__new__(Receipt, writer.append(record, at))  # half the cost of calling it
            except Closed:
                self._forget(writer)
                continue
            except OSError as error:
                self._lost += 1
                raise AuditError(
                    f"an audit event could not be written to {writer.folder}: {error.strerror or error}; "
                    "free space or mend the disk"
                ) from error
            if sync:
                writer.wait_durable(receipt.seq + 1, deadline)
            return receipt

    def flush(self, deadline: float | None = None) -> None:
        """Return when everything written is durable. `deadline` is in seconds. Raises AuditError."""
        writer = self._writer
        if writer is not None:
            writer.wait_durable(writer.size, deadline)

    def checkpoint(self, deadline: float | None = 5.0) -> str:
        """Sign a checkpoint over every event until now and return the note: keep it elsewhere, and it is an anchor.

        Raises AuditError.
        """
        writer = self._writer or self._open()
        return writer.seal(deadline)

    def close(self, deadline: float = 1.0) -> None:
        """End the writer: `journal.closed`, everything durable, a checkpoint over all. A later event opens a new one.

        Raises AuditError when that took longer than `deadline` seconds.
        """
        with self._opening:
            writer = self._writer
            if writer is None:
                return
            with suppress(OSError, ReentrantAppend):
                writer.append(body(_own_tags(), "journal.closed", resource=writer.id, kind="journal"))
            ended = writer.close(deadline)
            self._forget(writer)
        if not ended:
            raise AuditError(
                f"the audit journal {writer.folder} was not sealed within {deadline:g} s: its tail is unsealed"
            )

    def _forget(self, writer: Writer) -> None:
        with self._opening:
            if self._writer is writer:
                self._finished += writer.size
                self._writer = None

    def _open(self) -> Writer:
        with self._opening:
            if self._writer is not None:
                return self._writer
            try:
                writer = self._begin()
            except AuditError:
                self._lost += 1
                raise
            except (OSError, RuntimeError) as error:  # RuntimeError: no new thread while the interpreter ends
                self._lost += 1
                raise AuditError(
                    f"the audit journal {self.folder} cannot be opened: {getattr(error, 'strerror', None) or error}; "
                    "check its owner, its mode and the space left"
                ) from error
            self._writer = writer
            self.writer_ids = (*self.writer_ids, writer.id)
            return writer

    def _begin(self) -> Writer:
        _make_home(self.folder.parent)
        signer = Signer.load(self.keys, host_name())
        before = _newest_head(self.folder)
        writer = Writer.open(self.folder, signer, now=self._now, disk=self._disk, limits=self._limits)
        try:
            detail: dict[str, Any] = {"key": str(signer.verifier)}
            if before is not None:
                detail |= {
                    "previous_writer": before.writer,
                    "previous_size": before.size,
                    "previous_head": before.head,
                }
            writer.append(body(_own_tags(), "journal.opened", resource=writer.id, kind="journal", detail=detail))
            writer.start()
        except (OSError, RuntimeError):
            writer.discard()
            raise
        writer.ask_seal()
        return writer

    def forget(self) -> None:
        """The child writes its own journal: nothing of the parent's is used."""
        writer, self._writer = self._writer, None
        self._opening = threading.RLock()
        self._finished = self._lost = 0
        self.writer_ids = ()
        if writer is not None:
            writer.abandon()


def _own_tags() -> Tags:
    return Tags.of(actor="securemfg", actor_type="system")


def _newest_head(root: Path) -> segments.Head | None:
    for folder in reversed(segments.writers(root)):
        head = segments.last_head(folder)
        if head is not None:
            return head
    return None


def _make_home(home: Path) -> None:
    """The folder of local things: private, and ignored by git."""
    if not home.is_dir():
        segments.make_private(home)
        with suppress(FileExistsError), (home / ".gitignore").open("x", encoding="ascii") as file:
            file.write("*\n")
