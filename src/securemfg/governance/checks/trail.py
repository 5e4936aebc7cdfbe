"""What the trail shows about itself (AU-3, AU-5, AU-9, AU-11)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from securemfg.governance.checks.reading import ids, listed, many, text
from securemfg.governance.findings import Coverage, Event, Evidence, Finding, State
from securemfg.settings import duration

_SIX_MONTHS: Final = timedelta(days=183)  # EU AI Act 26(6): the least that deployers of high-risk systems keep


def tagged(evidence: Evidence) -> Iterator[Finding]:
    """Each event says who, when, what, on what and with which outcome (AU-3)."""
    events = [e for e in evidence.events if not text(e, "action").startswith("journal.")]
    if not events:
        return
    lacking = [(e, missing) for e in events if (missing := _missing(e))]
    if lacking:
        yield Finding(
            control="SMFG-LOG",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement=f"{len(lacking)} of {many(len(events), 'event')} lack a tag: "
            f"{listed(tag for _, missing in lacking for tag in missing)}.",
            event_ids=ids(e for e, _ in lacking),
            remedy="Record these events inside a step, which adds the tags.",
        )
        return
    yield Finding(
        control="SMFG-LOG",
        state=State.PASS,
        coverage=Coverage.PARTIAL,
        statement=f"All {many(len(events), 'event')} name actor, time, action, resource and outcome. "
        "Whether someone reviews them is not in the trail.",
        event_ids=ids(events),
    )


def _missing(event: Event) -> list[str]:
    has = {
        "actor": text(event, "actor", "id"),
        "time": text(event, "time"),
        "action": text(event, "action"),
        "resource": text(event, "resource", "id") or text(event, "step"),
        "outcome": text(event, "outcome"),
    }
    return [tag for tag, value in has.items() if not value]


def intact(evidence: Evidence) -> Iterator[Finding]:
    """The journal verified. Only an anchored one holds against the host's own user (trust rule 9)."""
    found = evidence.verification
    marks = ids(evidence.having("journal.opened", "journal.closed") or evidence.events[-1:])
    if found is None or not evidence.events:
        return
    if not found.ok:
        yield Finding(
            control="SMFG-LOGINT",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement=f"Verification failed: {listed(found.problems, 4) or 'no reason given'}.",
            event_ids=marks,
            remedy="Keep the journal as it is, compare it with the shipped copy, find out who changed it.",
        )
        return
    tail = f"; {many(found.tail, 'event')} after the last checkpoint" if found.tail else ""
    proven = found.strength in {"anchored", "signed"}
    full = found.strength == "anchored" and not found.tail
    yield Finding(
        control="SMFG-LOGINT",
        state=State.PASS if proven else State.NOT_ASSESSED,
        coverage=Coverage.FULL if full else Coverage.PARTIAL if proven else Coverage.EVIDENCE_ONLY,
        statement=f"{many(found.events, 'event')} verified, {found.strength} ({found.meaning}){tail}.",
        event_ids=marks,
        remedy=None if full else "Keep a checkpoint in a second place and verify with it (--anchor).",
    )


def audit_failure(evidence: Evidence) -> Iterator[Finding]:
    """A step that ended because the trail could not be kept shows the fail policy at work; policies are declared."""
    ended = [e for e in evidence.having("step.failed") if text(e, "reason").endswith("AuditError")]
    if ended:
        yield Finding(
            control="SMFG-AUFAIL",
            state=State.PASS,
            coverage=Coverage.EVIDENCE_ONLY,
            statement=f"{many(len(ended), 'step')} ended because the audit trail could not be kept.",
            event_ids=ids(ended),
            remedy="Find out why the trail could not be kept at that time.",
        )
        return
    policies = [f"{n.rpartition('.')[2]}: {v}" for n, v, _ in evidence.settings if n.startswith("audit.on_failure.")]
    if policies:
        yield Finding(
            control="SMFG-AUFAIL",
            state=State.NOT_ASSESSED,
            coverage=Coverage.NONE,
            statement=f"Declared, and no failure was observed: {', '.join(policies)}.",
            remedy="Rehearse a failure of the trail (a full disk) and keep its events.",
        )


def retention(evidence: Evidence) -> Iterator[Finding]:
    """How long events are kept is declared; that it is done is for the log service to show."""
    periods = [(n.rpartition(".")[2], v) for n, v, _ in evidence.settings if n.startswith("audit.retention.")]
    if not periods:
        return
    short = [name for name, value in periods if _below_six_months(value)]
    note = f" Below the six months of EU AI Act 26(6) for high-risk systems: {listed(short)}." if short else ""
    yield Finding(
        control="SMFG-RET",
        state=State.NOT_ASSESSED,
        coverage=Coverage.NONE,
        statement=f"Declared: {', '.join(f'{name} {value}' for name, value in periods)}. "
        f"Nothing shows that it is applied.{note}",
        remedy="Show the retention of the log group beside this report.",
    )


def _below_six_months(value: str) -> bool:
    try:
        return duration(value) < _SIX_MONTHS
    except (ValueError, OverflowError):
        return False
