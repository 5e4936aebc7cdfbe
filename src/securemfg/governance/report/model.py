"""From evidence and findings to a Report: every control exactly once, and no gap called a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from securemfg.governance.catalog import Flow
from securemfg.governance.checks.reading import text
from securemfg.governance.controls import FRAMEWORKS, Control, Framework, controls, mapping_version
from securemfg.governance.findings import Coverage, Event, Evidence, Finding, State, TrailSummary
from securemfg.governance.report.drawing import Drawing, draw
from securemfg.governance.report.words import shown

__all__ = ["Change", "Cited", "Report", "Row", "Verdict", "build"]

# The first that any finding has is the row's. A gap outranks a pass, so a pass is never more than what was seen.
_ORDER: Final = (
    State.FAIL,
    State.ERROR,
    State.NOT_ASSESSED,
    State.WAIVED,
    State.PASS,
    State.NOT_APPLICABLE,
)
_COVERAGE: Final = (Coverage.NONE, Coverage.EVIDENCE_ONLY, Coverage.PARTIAL, Coverage.FULL)
_CITED_PER_ROW: Final = 12
_CITED: Final = 400  # rows of the appendix
_ID_LENGTH: Final = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One control: what was found about it, and on which events that rests.

    `statements` are all that was found, the worst first; `deciding` of them, and the first `deciding_events` events,
    led to the state.
    """

    control: Control
    state: State
    coverage: Coverage
    statements: tuple[str, ...]
    deciding: int
    remedies: tuple[str, ...]
    event_ids: tuple[str, ...]  # the first few, those of the deciding statements first; `events` counts all
    events: int
    deciding_events: int
    until: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One framework: how its mapped requirements stand. A requirement takes the worst state of its controls."""

    framework: Framework
    counts: Mapping[State, int]
    total: int
    unsure: int

    @property
    def word(self) -> str:
        """`Failing`, `Not shown` or `Seen to work`: never `compliant`, which is for an auditor to say."""
        if self.counts[State.FAIL] or self.counts[State.ERROR]:
            return "Failing"
        return "Not shown" if self.counts[State.NOT_ASSESSED] else "Seen to work"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A control whose state differs from the report before."""

    control: str
    before: State
    after: State


@dataclass(frozen=True, kw_only=True, slots=True)
class Cited:
    """An event that a finding rests on, as the appendix shows it."""

    event_id: str
    time: str
    action: str
    outcome: str
    step: str
    resource: str
    actor: str
    position: str  # writer and sequence number, where to find it in the journal


@dataclass(frozen=True, kw_only=True, slots=True)
class Override:
    setting: str
    value: str
    origin: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is rendered. All text in it is plain and unescaped; each renderer escapes for its own format."""

    collected_at: datetime
    host: str
    first: str
    last: str
    events: int
    verification: TrailSummary | None
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    changes: tuple[Change, ...] | None  # None: there is no report before this one
    drawing: Drawing | None
    flows: tuple[Flow, ...]
    cited: tuple[Cited, ...]
    not_listed: int  # cited events beyond the appendix
    overrides: tuple[Override, ...]
    catalog_path: str
    catalog_version: str
    mapping_version: str

    def having(self, *states: State) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.state in states)

    def count(self, state: State) -> int:
        return len(self.having(state))


def build(evidence: Evidence, findings: Iterable[Finding], *, previous: Mapping[str, State] | None = None) -> Report:
    """The report on `findings`. `previous` maps control ids to their states in the report before.

    Raises ValueError for a finding about a control that the mapping does not have.
    """
    by_control: dict[str, list[Finding]] = {control.id: [] for control in controls()}
    for finding in findings:
        if finding.control not in by_control:
            raise ValueError(f"a finding names control {finding.control!r}, which the control map does not have")
        by_control[finding.control].append(finding)
    rows = tuple(_row(control, by_control[control.id]) for control in controls())
    times = sorted(time for event in evidence.events if (time := text(event, "time")))
    cited_ids = {one for row in rows for one in row.event_ids}
    cited = [event for event in evidence.events if shown(text(event, "event_id"), _ID_LENGTH) in cited_ids]
    catalog = evidence.catalog
    return Report(
        collected_at=evidence.collected_at,
        host=shown(evidence.host),
        first=times[0] if times else "",
        last=times[-1] if times else "",
        events=len(evidence.events),
        verification=evidence.verification,
        rows=rows,
        verdicts=tuple(_verdict(framework, rows) for framework in FRAMEWORKS.values()),
        changes=None if previous is None else _changes(rows, previous),
        drawing=draw(evidence),
        flows=catalog.flows if catalog else (),
        cited=tuple(_cite(event) for event in cited[:_CITED]),
        not_listed=max(0, len(cited) - _CITED),
        overrides=tuple(
            Override(setting=w.setting, value=w.value, origin=w.origin, meaning=w.meaning) for w in evidence.weakenings
        ),
        catalog_path=catalog.path.name if catalog else "",
        catalog_version=catalog.digest[:12] if catalog else "",
        mapping_version=mapping_version(),
    )


def _row(control: Control, findings: Sequence[Finding]) -> Row:
    if not findings:
        nothing = "No check speaks about this control."
        return Row(
            control=control, state=State.NOT_ASSESSED, coverage=Coverage.NONE, statements=(nothing,), deciding=1,
            remedies=(), event_ids=(), events=0, deciding_events=0,
        )  # fmt: skip
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.state))
    ids = tuple(dict.fromkeys(one for finding in ordered for one in finding.event_ids))
    until = max((finding.until for finding in ordered if finding.until), default=None)
    state = ordered[0].state
    deciding = [finding for finding in ordered if finding.state is state]
    if state is State.PASS and not ids:
        state = State.NOT_ASSESSED  # a pass without an event that shows it is only a claim
    statements = tuple(dict.fromkeys(shown(finding.statement, 2000) for finding in ordered))
    return Row(
        control=control,
        state=state,
        coverage=min((finding.coverage for finding in ordered), key=_COVERAGE.index),
        statements=statements,
        deciding=len({finding.statement for finding in deciding}),
        deciding_events=len({one for finding in deciding for one in finding.event_ids}),
        remedies=tuple(dict.fromkeys(shown(finding.remedy) for finding in ordered if finding.remedy)),
        event_ids=tuple(shown(one, _ID_LENGTH) for one in ids[:_CITED_PER_ROW]),
        events=len(ids),
        until=until.isoformat() if until else "",
    )


def _verdict(framework: Framework, rows: Sequence[Row]) -> Verdict:
    worst: dict[str, State] = {}
    unsure: set[str] = set()
    for row in rows:
        for requirement in row.control.mappings[framework.key]:
            before = worst.get(requirement, row.state)
            worst[requirement] = min(before, row.state, key=_ORDER.index)
        unsure.update(row.control.unsure.get(framework.key, ()))
    counts = dict.fromkeys(State, 0)
    for state in worst.values():
        counts[state] += 1
    return Verdict(framework=framework, counts=counts, total=len(worst), unsure=len(unsure))


def _changes(rows: Sequence[Row], previous: Mapping[str, State]) -> tuple[Change, ...]:
    return tuple(
        Change(control=row.control.id, before=before, after=row.state)
        for row in rows
        if (before := previous.get(row.control.id)) is not None and before is not row.state
    )


def _cite(event: Event) -> Cited:
    writer, number = text(event, "writer"), text(event, "seq")
    return Cited(
        event_id=shown(text(event, "event_id"), _ID_LENGTH),
        time=shown(text(event, "time"), 40),
        action=shown(text(event, "action"), 60),
        outcome=shown(text(event, "outcome"), 20),
        step=shown(text(event, "step"), 80),
        resource=shown(text(event, "resource", "id"), 120),
        actor=shown(text(event, "actor", "id"), 80),
        position=shown(f"{writer} #{number}" if number else writer, 120),
    )
