"""What the trail shows about the catalog: whether what was used is what was declared (CM-12, CM-13, RA-2)."""

from __future__ import annotations

from collections.abc import Iterator

from securemfg.errors import ConfigError
from securemfg.governance.catalog import Catalog, Flow
from securemfg.governance.checks.reading import assets, ids, listed, many, text
from securemfg.governance.findings import Coverage, Event, Evidence, Finding, State
from securemfg.labels import Sensitivity


def classified(evidence: Evidence) -> Iterator[Finding]:
    """Every asset that a step used is in the catalog, and the step ran at least at its sensitivity.

    At most partial: that the catalog names all the data there is cannot be seen from here.
    """
    catalog = evidence.catalog
    if catalog is None:
        yield Finding(
            control="SMFG-CLASS",
            state=State.NOT_ASSESSED,
            coverage=Coverage.NONE,
            statement="No catalog is set: nothing says which data is sensitive.",
            remedy="Write a data-flow catalog and name it in the setting 'catalog'.",
        )
        return
    started = evidence.having("step.started")
    using = [e for e in started if assets(e)]
    unknown = [e for e in using if any(name not in catalog.assets for name in assets(e))]
    low = [e for e in using if e not in unknown and _ran_low(e, catalog)]
    if bad := [*unknown, *low]:
        strange = listed(name for e in unknown for name in assets(e) if name not in catalog.assets)
        parts = [f"Steps used assets that the catalog does not have: {strange}" if unknown else ""]
        parts.append(
            f"{many(len(low), 'step')} ran below the sensitivity of their assets: "
            f"{listed(text(e, 'step') for e in low)}"
            if low
            else ""
        )
        yield Finding(
            control="SMFG-CLASS",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement="; ".join(part for part in parts if part) + ".",
            event_ids=ids(bad),
            remedy="Declare these assets in the catalog, with their sensitivity.",
        )
        return
    if not using:
        yield Finding(
            control="SMFG-CLASS",
            state=State.NOT_ASSESSED,
            coverage=Coverage.NONE,
            statement=f"The catalog declares {many(len(catalog.assets), 'asset')}; no step named one.",
            remedy="Name the assets on each step: step(..., assets=[...]).",
        )
        return
    used = {name for e in using for name in assets(e)}
    other = [e for e in using if text(e, "policy_version") != catalog.digest]
    parts = [f"{many(len(using), 'step')} used {many(len(used), 'asset')}, every one in the catalog"]
    if len(using) < len(started):
        parts.append(f"{many(len(started) - len(using), 'step')} named no asset")
    if other:
        parts.append(f"{many(len(other), 'step')} ran under another version of it")
    yield Finding(
        control="SMFG-CLASS",
        state=State.PASS,
        coverage=Coverage.PARTIAL,
        statement="; ".join(parts) + ".",
        event_ids=ids(using),
        remedy="Name the assets on every step." if len(using) < len(started) else None,
    )


def _ran_low(event: Event, catalog: Catalog) -> bool:
    if text(event, "policy_version") != catalog.digest:
        return False  # another version of the catalog may have said something else
    try:
        ran = Sensitivity.parse(text(event, "sensitivity"))
    except ConfigError:
        return True
    return any(catalog.assets[name].sensitivity > ran for name in assets(event))


def flows_protected(evidence: Evidence) -> Iterator[Finding]:
    """No flow of confidential data is declared below TLS 1.3. A declaration alone never passes."""
    catalog = evidence.catalog
    if catalog is None or not catalog.flows:
        return
    weak = [flow for flow in catalog.flows if flow.tls in {"none", "1.2"} and _confidential(flow, catalog)]
    if weak:
        yield Finding(
            control="SMFG-FLOW",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement=f"{many(len(weak), 'flow')} of confidential data declared below TLS 1.3: "
            + listed(f"{flow.source} to {flow.target} (line {flow.line})" for flow in weak)
            + ".",
            remedy="Move these flows to TLS 1.3 and say so in the catalog.",
        )
        return
    yield Finding(
        control="SMFG-FLOW",
        state=State.NOT_ASSESSED,
        coverage=Coverage.NONE,
        statement=f"{many(len(catalog.flows), 'flow')} declared; this version does not compare them with "
        "what was seen.",
    )


def _confidential(flow: Flow, catalog: Catalog) -> bool:
    """Whether the flow carries confidential data; one that names no data is assumed to."""
    return not flow.data or any(catalog.assets[d].sensitivity >= Sensitivity.CONFIDENTIAL for d in flow.data)
