"""The report as Markdown: for terminals, reviews and version control. Same order and same facts as the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from securemfg.governance.controls import FRAMEWORKS
from securemfg.governance.findings import State
from securemfg.governance.report.limits import limits, strength
from securemfg.governance.report.model import Report, Row
from securemfg.governance.report.words import COVERAGE_LABELS, STATE_LABELS, moment, series, short_time, shown

_SPECIAL: Final = str.maketrans({c: f"\\{c}" for c in "\\`*[]|~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
_UNDERSCORE: Final = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # within a word it is only itself
_BLOCK: Final = re.compile(r"^(\d{0,9})([#+=.)-])(?=[#=-]*(?:\s|$))")  # what would start a heading or a list


def render_markdown(report: Report) -> str:
    """The text, ending in one line end. Every value from outside is escaped for Markdown and for HTML in it."""
    return "\n".join(_lines(report)) + "\n"


def escaped(value: object) -> str:
    """The value as inline text: nothing in it is markup, a link, a table cell's end or a new line."""
    text = _UNDERSCORE.sub(r"\\_", shown(value, 2000).translate(_SPECIAL))
    text = _BLOCK.sub(r"\1\\\2", text, count=1)
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")  # no automatic links


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _lines(report: Report) -> Iterator[str]:
    yield from _heading(report)
    yield from _verdicts(report)
    yield from _changes(report)
    yield from _failing(report)
    yield from _flows(report)
    yield from _controls(report)
    yield from _appendix(report)
    yield from _scope(report)


def _heading(report: Report) -> Iterator[str]:
    yield "# Compliance report"
    yield ""
    yield f"- Made: {moment(report.collected_at)} on {escaped(report.host)}"
    if report.events:
        yield f"- Events: {report.events}, {escaped(short_time(report.first))} to {escaped(short_time(report.last))}"
    else:
        yield "- Events: none"
    yield f"- Trail: {escaped(strength(report))}"
    counts = (f"{report.count(state)} {label.lower()}" for state, label in STATE_LABELS.items() if report.count(state))
    yield f"- Controls: {len(report.rows)}: {', '.join(counts)}"
    yield ""


def _verdicts(report: Report) -> Iterator[str]:
    yield "## Verdict per framework"
    yield ""
    yield "Requirements that a control here speaks to. No count says that a requirement is fulfilled."
    yield ""
    yield from _table(
        ("Framework", "Verdict", "Requirements", "Fail or error", "Not assessed", "Seen to work", "Ids"),
        (
            (
                verdict.framework.name,
                verdict.word,
                str(verdict.total),
                str(verdict.counts[State.FAIL] + verdict.counts[State.ERROR]),
                str(verdict.counts[State.NOT_ASSESSED]),
                str(verdict.counts[State.PASS]),
                "verified" if verdict.framework.verified else "from memory",
            )
            for verdict in report.verdicts
        ),
    )


def _changes(report: Report) -> Iterator[str]:
    yield "## What changed"
    yield ""
    if report.changes is None:
        yield "Not applicable: there is no earlier report to compare with."
    elif not report.changes:
        yield "No control changed its state since the report before."
    for change in report.changes or ():
        yield f"- {change.control}: {STATE_LABELS[change.before].lower()}, now {STATE_LABELS[change.after].lower()}"
    yield ""


def _failing(report: Report) -> Iterator[str]:
    yield "## Failing controls"
    yield ""
    rows = report.having(State.FAIL, State.ERROR)
    if not rows:
        yield "None failed. See the controls that were not assessed."
        yield ""
    for row in rows:
        yield f"### {row.control.id}: {escaped(row.control.title)}"
        yield ""
        yield from (f"- {escaped(statement)}" for statement in row.statements[: row.deciding])
        yield from (f"- **To do:** {escaped(remedy)}" for remedy in row.remedies)
        yield ""


def _flows(report: Report) -> Iterator[str]:
    yield "## Data flow"
    yield ""
    drawing = report.drawing
    if drawing is None:
        yield "No catalog and no step: there is nothing to show."
    else:
        yield f"Seen: {drawing.summary}."
        yield ""
        yield from (f"- {escaped(edge.title)}" for edge in drawing.edges)
    yield ""
    if report.flows:
        yield from _table(
            ("Declared from", "To", "Data", "TLS", "Purpose"),
            (
                tuple(
                    escaped(value) or "-"
                    for value in (flow.source, flow.target, ", ".join(flow.data), flow.tls, flow.purpose)
                )
                for flow in report.flows
            ),
        )


def _controls(report: Report) -> Iterator[str]:
    yield "## Controls and evidence"
    yield ""
    yield from _table(
        ("Control", "State", "Coverage", "What the evidence says", "Events", "NIST SP 800-53"),
        (
            (
                f"{row.control.id}: {escaped(row.control.title)}",
                f"**{_state(row)}**",
                COVERAGE_LABELS[row.coverage],
                " ".join(escaped(statement) for statement in row.statements),
                str(row.events),
                ", ".join(escaped(one) for one in row.control.shown("nist")),
            )
            for row in report.rows
        ),
    )
    yield "### Other frameworks"
    yield ""
    yield "From memory, unverified; `?` marks an id that may be wrong."
    yield ""
    others = [framework for framework in FRAMEWORKS.values() if not framework.verified]
    for row in report.rows:
        mapped = (
            f"{framework.name}: {', '.join(escaped(one) for one in row.control.shown(framework.key))}"
            for framework in others
            if row.control.mappings[framework.key]
        )
        yield f"- {row.control.id}: {'; '.join(mapped)}"
    yield ""


def _state(row: Row) -> str:
    label = STATE_LABELS[row.state]
    return f"{label} until {row.until}" if row.state is State.WAIVED and row.until else label


def _appendix(report: Report) -> Iterator[str]:
    yield "## Evidence"
    yield ""
    yield f"Events that findings rest on. Trail: {escaped(strength(report))}"
    yield ""
    if report.cited:
        yield from _table(
            ("Event", "Time (UTC)", "Action", "Outcome", "Step", "Resource", "In the journal"),
            (
                tuple(
                    escaped(value) or "-"
                    for value in (
                        event.event_id,
                        short_time(event.time),
                        event.action,
                        event.outcome,
                        event.step,
                        event.resource,
                        event.position,
                    )
                )
                for event in report.cited
            ),
        )
    if report.not_listed:
        yield f"{report.not_listed} more are in the journal."
        yield ""


def _scope(report: Report) -> Iterator[str]:
    yield "## Scope and limits"
    yield ""
    yield from (f"- {escaped(line)}" for line in limits(report))
    yield ""
    yield "Settings that weaken the built-in protection:"
    yield ""
    if not report.overrides:
        yield "- none"
    for override in report.overrides:
        yield "- " + ": ".join(
            (
                escaped(f"{override.setting} = {override.value}"),
                series([escaped(override.meaning), escaped(f"set by {override.origin}")]),
            )
        )
