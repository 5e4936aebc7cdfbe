"""What checks are given and what they answer: Evidence in, Findings out. All plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

from securemfg.config import Weakening
from securemfg.governance.catalog import Catalog

__all__ = ["Coverage", "Event", "Evidence", "Finding", "State", "TrailSummary"]

Event: TypeAlias = Mapping[str, Any]  # one audit event as the journal holds it; every value in it is hostile input


class State(StrEnum):
    """The answer of a check. Only `pass` says that a control was seen to work."""

    PASS = "pass"  # noqa: S105 - a result, not a password
    FAIL = "fail"
    ERROR = "error"
    NOT_ASSESSED = "not-assessed"
    NOT_APPLICABLE = "not-applicable"
    WAIVED = "waived-until"


class Coverage(StrEnum):
    """How much of the control the evidence speaks about."""

    FULL = "full"
    PARTIAL = "partial"
    EVIDENCE_ONLY = "evidence-only"  # something was seen, which alone does not show that the control holds
    NONE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check's answer about one control. `event_ids` are the events that it rests on."""

    control: str
    state: State
    coverage: Coverage
    statement: str
    event_ids: tuple[str, ...] = ()
    remedy: str | None = None
    until: date | None = None  # the last day of a waiver


@dataclass(frozen=True, kw_only=True, slots=True)
class TrailSummary:
    """What verifying the journal found.

    `strength` is `consistent` (hashes fit), `signed` (by this host's key) or `anchored` (a checkpoint kept
    elsewhere fits). `tail` counts events after the last checkpoint.
    """

    ok: bool
    strength: str
    events: int
    tail: int = 0
    writers: int = 0
    problems: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """What the strength is worth, in a few words."""
        return _MEANING.get(self.strength, "a strength that this version does not know")


_MEANING: Final = {
    "consistent": "hashes fit but nothing is signed, which whoever can write the files could arrange",
    "signed": "by this host's key, which its own user could use again",
    "anchored": "a checkpoint kept elsewhere fits",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything the checks may look at, collected at one moment."""

    events: tuple[Event, ...]  # in time order
    collected_at: datetime
    host: str
    verification: TrailSummary | None = None  # None: the journal was not verified
    settings: tuple[tuple[str, str, str], ...] = ()  # (setting, value, origin)
    weakenings: tuple[Weakening, ...] = ()
    catalog: Catalog | None = None

    def having(self, *actions: str) -> tuple[Event, ...]:
        """The events with one of these actions, in time order."""
        return tuple(event for event in self.events if event.get("action") in actions)

    def setting(self, name: str) -> str | None:
        return next((value for setting, value, _ in self.settings if setting == name), None)
