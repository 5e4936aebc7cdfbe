"""Reads fields of events, whose shapes nothing guarantees: what is absent or odd reads as nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from securemfg.governance.findings import Event
from securemfg.settings import duration


def at(event: Event, *path: str) -> Any:
    """The value at a path of keys, or None."""
    value: Any = event
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def text(event: Event, *path: str) -> str:
    """The value there as text, empty when there is none."""
    value = at(event, *path)
    return "" if value is None or isinstance(value, Mapping | list) else str(value)


def number(event: Event, *path: str) -> int:
    """The whole number there, 0 when there is none."""
    value = at(event, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def names(event: Event, *path: str) -> tuple[str, ...]:
    """The names there: a list, or text with commas."""
    value = at(event, *path)
    parts = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(stripped for part in parts if (stripped := str(part).strip()))


def assets(event: Event) -> tuple[str, ...]:
    """The data assets that a step event names."""
    return names(event, "decision", "assets") or names(event, "detail", "assets")


def observed_only(event: Event) -> bool:
    """Whether what this event refused went ahead all the same, as mode observe and audited reads let it."""
    return (
        text(event, "detail", "mode") in {"observe", "audit"}
        or (text(event, "action") == "tls.refused" and text(event, "outcome") != "denied")
        or text(event, "reason").startswith("plaintext was read")
    )


def ttl(event: Event) -> timedelta | None:
    """How long a leased credential lives; None when it has no end."""
    value = at(event, "detail", "ttl")
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if 0 < seconds < timedelta.max.total_seconds():
        return timedelta(seconds=seconds)
    try:
        return duration(value) or None
    except (ValueError, OverflowError):
        return None


def lasting(period: timedelta) -> str:
    """`15 min`, `1 h`, `1 h 30 min`, `40 s`."""
    minutes, seconds = divmod(int(period.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"


def ids(events: Iterable[Event]) -> tuple[str, ...]:
    """The ids of these events, each once."""
    return tuple(dict.fromkeys(found for event in events if (found := text(event, "event_id"))))


def many(count: int, noun: str, plural: str | None = None) -> str:
    """`1 event`, `3 events`."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def listed(values: Iterable[str], limit: int = 6) -> str:
    """The distinct values, at most `limit` of them, and how many more there are."""
    found = list(dict.fromkeys(value for value in values if value))
    rest = len(found) - limit
    return ", ".join(found[:limit]) + (f" and {rest} more" if rest > 0 else "")
