"""What the trail shows about access decisions (AC-3, AC-6, AC-24)."""

from __future__ import annotations

from collections.abc import Iterator

from securemfg.governance.checks.reading import at, ids, listed, many, names, observed_only, text
from securemfg.governance.findings import Coverage, Event, Evidence, Finding, State


def roles_enforced(evidence: Evidence) -> Iterator[Finding]:
    """Each step was decided before it ran, and no step ran against its decision.

    Roles that are only asserted, and assets open to every role, give at most partial coverage (trust rule 7).
    """
    started = evidence.having("step.started")
    denied = evidence.having("access.denied")
    decided = [e for e in started if isinstance(at(e, "decision", "allowed"), bool)]
    overruled = [e for e in decided if not at(e, "decision", "allowed")]
    observed = [e for e in denied if observed_only(e)]
    if bad := [*overruled, *observed]:
        yield Finding(
            control="SMFG-RBAC",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement=f"{many(len(bad), 'denied access', 'denied accesses')} went ahead: "
            f"{listed(text(e, 'step') for e in bad) or 'unnamed steps'}.",
            event_ids=ids(bad),
            remedy="Set mode = 'enforce', or grant the role in the catalog if the access is right.",
        )
        return
    restricted = [e for e in decided if _restricted(e)]
    if not restricted and not denied:
        yield Finding(
            control="SMFG-RBAC",
            state=State.NOT_ASSESSED,
            coverage=Coverage.NONE,
            statement=f"{many(len(started), 'step')}, none of them on an asset that declares roles: "
            "nothing was restricted.",
            event_ids=ids(decided),
            remedy="Declare roles on the assets in the catalog, then make the report again.",
        )
        return
    asserted = [e for e in restricted if _method(e) == "asserted"]
    parts = [f"{many(len(restricted), 'step')} allowed by role" if restricted else ""]
    parts.append(f"{len(asserted)} of them by a role that its caller only asserted" if asserted else "")
    parts.append(f"{many(len(denied), 'access', 'accesses')} denied" if denied else "")
    if len(restricted) < len(started):
        parts.append(f"{many(len(started) - len(restricted), 'step')} on assets open to every role")
    full = bool(restricted) and not asserted and len(restricted) == len(started)
    coverage = Coverage.FULL if full else Coverage.PARTIAL if restricted else Coverage.EVIDENCE_ONLY
    yield Finding(
        control="SMFG-RBAC",
        state=State.PASS,
        coverage=coverage,
        statement="; ".join(part for part in parts if part) + ".",
        event_ids=ids([*restricted, *denied]),
        remedy="Bind roles to a Vault, STS, mTLS or JWT identity." if asserted else None,
    )


def _method(event: Event) -> str:
    return text(event, "decision", "coverage") or text(event, "actor", "auth_method") or "asserted"


def _restricted(event: Event) -> bool:
    """Whether the decision rested on an asset that declares roles."""
    used = set(names(event, "decision", "assets"))
    return bool(used - set(names(event, "decision", "open_assets")))
