"""What the report does and does not show, in the same words in every format."""

from __future__ import annotations

from collections.abc import Iterator

from securemfg.governance.checks.reading import many
from securemfg.governance.controls import FRAMEWORKS
from securemfg.governance.report.model import Report


def strength(report: Report) -> str:
    """How far the trail can be trusted, in one sentence (trust rule 9)."""
    found = report.verification
    if found is None:
        return "not verified, so nothing shows that the events are the ones that were recorded."
    if not found.ok:
        return f"FAILED verification: {'; '.join(found.problems[:4]) or 'no reason given'}."
    tail = f" {many(found.tail, 'event')} after the last checkpoint." if found.tail else ""
    return f"{found.strength} ({found.meaning}).{tail}"


def limits(report: Report) -> Iterator[str]:
    """The statements of the last section."""
    yield (
        "A pass says that the control was seen to work in the cited events. It does not say that a requirement "
        "is fulfilled, nor that nothing else happened outside the steps."
    )
    yield "What is only declared, or leaves no event, is not assessed. A gap is never counted as a pass."
    yield (
        "Not seen: native TLS stacks, sockets that are not HTTP or TLS of this interpreter, other processes, "
        "and whoever controls this host after the last anchored checkpoint."
    )
    yield "A role that is only asserted by its caller gives at most partial coverage."
    if report.catalog_version:
        yield f"Catalog: {report.catalog_path}, SHA-256 {report.catalog_version}..."
    else:
        yield "Catalog: none."
    yield f"Control map: SHA-256 {report.mapping_version}..., {many(len(report.rows), 'control')}."
    for verdict in report.verdicts:
        framework = FRAMEWORKS[verdict.framework.key]
        doubt = f"; {many(verdict.unsure, 'id')} marked '?' may be wrong" if verdict.unsure else ""
        yield f"{framework.name}: {many(verdict.total, 'requirement')}, {framework.source}{doubt}."
