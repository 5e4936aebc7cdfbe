"""What became of one copy of a key: destroyed, destroyed from a date on, or something that nobody can prove."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


class State(StrEnum):
    """DONE: verified gone. SCHEDULED: gone from `until` on, and can be stopped before. FAILED: still there."""

    DONE = "done"
    SCHEDULED = "scheduled"
    NOT_PROVABLE = "not provable"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fate:
    """One copy, and what became of it."""

    what: str
    state: State
    remark: str
    until: datetime | None = None

    @classmethod
    def done(cls, what: str, remark: str) -> Fate:
        return cls(what=what, state=State.DONE, remark=remark)

    @classmethod
    def scheduled(cls, what: str, until: datetime, remark: str) -> Fate:
        return cls(what=what, state=State.SCHEDULED, until=until.astimezone(UTC), remark=remark)

    @classmethod
    def not_provable(cls, what: str, remark: str) -> Fate:
        return cls(what=what, state=State.NOT_PROVABLE, remark=remark)

    @classmethod
    def failed(cls, what: str, remark: str) -> Fate:
        return cls(what=what, state=State.FAILED, remark=remark)

    def __str__(self) -> str:
        when = f" until {self.until:%Y-%m-%d}" if self.until else ""
        return f"{self.what}: {self.state}{when} ({self.remark})"
