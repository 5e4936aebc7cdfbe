"""Turns the journal's events, their verification and the settings into Evidence for the checks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from securemfg.config import Weakening
from securemfg.errors import EvidenceError
from securemfg.governance.catalog import Catalog
from securemfg.governance.findings import Evidence, TrailSummary

__all__ = ["Settings", "collect"]


class Settings(Protocol):
    """What is asked of the settings; `config.Config` has it."""

    def shown(self) -> Iterable[tuple[str, str, str]]: ...

    def weakenings(self) -> Sequence[Weakening]: ...


def _now() -> datetime:
    return datetime.now(UTC)


def collect(
    events: Iterable[Mapping[str, Any]],
    verification: TrailSummary | None,
    settings: Settings,
    catalog: Catalog | None = None,
    *,
    host: str | None = None,
    now: Callable[[], datetime] = _now,
) -> Evidence:
    """The evidence at this moment. `events` are decoded journal records in any order.

    Raises EvidenceError when a record is no mapping: then the journal was not read as one.
    """
    records = []
    for event in events:
        if not isinstance(event, Mapping):
            raise EvidenceError(
                f"a journal record is {type(event).__name__}, not an event; run 'securemfg audit verify'"
            )
        records.append(event)
    return Evidence(
        events=tuple(sorted(records, key=_order)),
        collected_at=now(),
        host=host or socket.gethostname(),
        verification=verification,
        settings=tuple(settings.shown()),
        weakenings=tuple(settings.weakenings()),
        catalog=catalog,
    )


def _order(event: Mapping[str, Any]) -> tuple[str, str, int]:
    """By time, then by writer and number: events of one moment keep the order they were written in."""
    number = event.get("seq")
    return str(event.get("time", "")), str(event.get("writer", "")), number if isinstance(number, int) else 0
