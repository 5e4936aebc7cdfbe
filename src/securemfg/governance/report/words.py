"""Text fit to be shown: what came from a journal or a catalog can neither hide nor reorder what stands around it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from securemfg.governance.findings import Coverage, State

LONGEST: Final = 400  # characters of one shown value
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, bidi marks, surrogates, line ends

STATE_LABELS: Final = {
    State.FAIL: "Fail",
    State.ERROR: "Error",
    State.NOT_ASSESSED: "Not assessed",
    State.WAIVED: "Waived",
    State.PASS: "Pass",
    State.NOT_APPLICABLE: "Not applicable",
}
COVERAGE_LABELS: Final = {
    Coverage.FULL: "full",
    Coverage.PARTIAL: "partial",
    Coverage.EVIDENCE_ONLY: "evidence only",
    Coverage.NONE: "none",
}


def shown(value: object, limit: int = LONGEST) -> str:
    """The value as one line: line ends become spaces, invisible characters their code points, long text is cut."""
    text = " ".join(str(value).split()) if value is not None else ""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isascii() and c.isprintable() else _visible(c) for c in text)


def _visible(character: str) -> str:
    return f"\\u{ord(character):04x}" if unicodedata.category(character) in _INVISIBLE else character


def moment(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short_time(value: object) -> str:
    """An event's RFC 3339 time to the second, as written when it is something else."""
    text = shown(value, 40)
    return f"{text[:10]} {text[11:19]}" if len(text) > 19 and text[10:11] == "T" else text


def series(values: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(values[:-1]), *values[-1:]) if part)
