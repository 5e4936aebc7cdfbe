"""From a writer's files to batches that CloudWatch takes: 1 MiB, 10,000 events, 24 hours at most, in order of time."""

from __future__ import annotations

import calendar
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from securemfg.audit import checkpoint, segments
from securemfg.audit.cloudwatch import (
    BATCH_BYTES,
    BATCH_EVENTS,
    BATCH_SPAN_MS,
    EVENT_OVERHEAD,
    NEWEST_MS,
    OLDEST_MS,
)
from securemfg.audit.cursor import Cursor
from securemfg.audit.events import decode, dumps

__all__ = ["Batch", "Item", "marker", "next_batch"]

_MARGIN_MS: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One message: an event's exact bytes, a checkpoint note, or a marker."""

    moment: int  # milliseconds since 1970, as the service will file it
    message: str
    size: int  # bytes, overhead included
    event: bool  # counts in the account
    late: bool = False  # filed under the time of shipping: the service takes no older ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    items: tuple[Item, ...]  # in order of time
    after: Cursor  # where to go on once these are acknowledged

    @property
    def events(self) -> int:
        return sum(item.event for item in self.items)


def next_batch(folder: Path, cursor: Cursor, now_ms: int) -> Batch | None:
    """What comes after `cursor`, or None when nothing is pending. Only complete lines and notes are read."""
    items: list[Item] = []
    size, low, high = 0, now_ms, now_ms
    after = cursor

    def fits(item: Item) -> bool:
        nonlocal size, low, high
        first, last = (min(low, item.moment), max(high, item.moment)) if items else (item.moment,) * 2
        if items and (
            size + item.size > BATCH_BYTES or len(items) >= BATCH_EVENTS or last - first >= BATCH_SPAN_MS - _MARGIN_MS
        ):
            return False
        items.append(item)
        size, low, high = size + item.size, first, last
        return True

    sent_markers = 0
    for text in cursor.markers:
        if not fits(_item(text.encode(), now_ms, event=False)):
            break
        sent_markers += 1
    after = after.advanced(markers=cursor.markers[sent_markers:])
    full = False
    for segment, line in _lines_from(folder, cursor):
        if not fits(_event(line.data, now_ms)):
            full = True
            break
        after = after.advanced(segment=segment, offset=line.end)
    if not full:
        for note, end in _notes_from(folder, cursor.notes):
            if not fits(_item(dumps({"checkpoint": note}), now_ms, event=False)):
                break
            after = after.advanced(notes=end)
    if not items:
        return None
    late = [item for item in items if item.late]
    if late:
        after = after.advanced(markers=(*after.markers, marker(folder.name, late, "filed late")))
    return Batch(items=tuple(sorted(items, key=lambda item: item.moment)), after=after)


def marker(writer: str, items: list[Item], what: str, reason: str = "") -> str:
    """A message about events that were lost or filed late, by sequence number and hash."""
    named = []
    for item in items[:100]:
        record = decode(item.message.encode())
        named.append(
            {"seq": record.get("seq") if record else None, "sha256": sha256(item.message.encode()).hexdigest()}
        )
    content = {"marker": what, "writer": writer, "count": len(items), "events": named}
    return dumps(content | ({"reason": reason} if reason else {})).decode()


def _lines_from(folder: Path, cursor: Cursor) -> Iterator[tuple[str, segments.Line]]:
    for segment in segments.segments(folder):
        if segment.name < cursor.segment:
            continue
        start = cursor.offset if segment.name == cursor.segment else 0
        for line in segments.lines(segment, start):
            yield segment.name, line


def _notes_from(folder: Path, start: int) -> Iterator[tuple[str, int]]:
    try:
        content = (folder / segments.CHECKPOINTS).read_bytes()[start:].decode("utf-8", "replace")
    except FileNotFoundError:
        return
    end = start
    for note in checkpoint.notes(content):
        end += len(note.encode()) + 1
        yield note, end


def _event(data: bytes, now_ms: int) -> Item:
    record = decode(data)
    moment = _milliseconds(record.get("time") if record else None, now_ms)
    late = not now_ms - OLDEST_MS <= moment <= now_ms + NEWEST_MS
    return _item(data, now_ms if late else moment, event=True, late=late)


def _item(data: bytes, moment: int, *, event: bool, late: bool = False) -> Item:
    message = data.decode("utf-8", "replace")
    return Item(moment=moment, message=message, size=len(message.encode()) + EVENT_OVERHEAD, event=event, late=late)


def _milliseconds(text: object, default: int) -> int:
    try:
        return _second(text[:19]) * 1000 + int(text[20:23]) if isinstance(text, str) else default
    except ValueError:
        return default


@functools.lru_cache(maxsize=16)
def _second(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
