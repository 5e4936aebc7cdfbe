"""The checks, and what they say together.

A check is a function from evidence to findings. It says `pass` only for what was seen, with the ids of the
events that show it. What is only declared, and what nothing shows, is `not-assessed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from securemfg.governance.checks.access import roles_enforced
from securemfg.governance.checks.credentials import short_lived, stored_secrets
from securemfg.governance.checks.inventory import classified, flows_protected
from securemfg.governance.checks.overrides import weakened_settings
from securemfg.governance.checks.protection import envelope_encryption, erasure, key_lifecycle
from securemfg.governance.checks.trail import audit_failure, intact, retention, tagged
from securemfg.governance.checks.transport import tls_only
from securemfg.governance.controls import controls
from securemfg.governance.findings import Coverage, Evidence, Finding, State

__all__ = ["CHECKS", "Check", "assess"]

Check: TypeAlias = Callable[[Evidence], Iterator[Finding]]

CHECKS: Final[tuple[Check, ...]] = (
    tls_only,
    envelope_encryption,
    key_lifecycle,
    erasure,
    short_lived,
    stored_secrets,
    roles_enforced,
    tagged,
    intact,
    audit_failure,
    retention,
    classified,
    flows_protected,
    weakened_settings,
)

# Which control a check speaks about, for the row to carry its failure when the check itself breaks.
_SUBJECT: Final[dict[Check, str]] = {
    tls_only: "SMFG-TLS",
    envelope_encryption: "SMFG-ENV",
    key_lifecycle: "SMFG-KEY",
    erasure: "SMFG-ERASE",
    short_lived: "SMFG-STS",
    stored_secrets: "SMFG-SEC",
    roles_enforced: "SMFG-RBAC",
    tagged: "SMFG-LOG",
    intact: "SMFG-LOGINT",
    audit_failure: "SMFG-AUFAIL",
    retention: "SMFG-RET",
    classified: "SMFG-CLASS",
    flows_protected: "SMFG-FLOW",
}
_WHY_SILENT: Final = {
    "SMFG-REST": "The state of stores is for the cloud account to show; the trail does not hold it.",
    "SMFG-REP": "One report does not show that reporting is continuous.",
    "SMFG-EVID": "Versioning and signing of evidence is not in the trail.",
    "SMFG-MODEL": "No event about signed or verified models is read in this version.",
    "SMFG-PSEU": "Nothing in the trail shows how data was pseudonymised or minimised.",
}


def assess(evidence: Evidence, checks: Sequence[Check] = CHECKS) -> tuple[Finding, ...]:
    """Run every check. A control that none speaks about is `not-assessed`; a broken check is an `error`."""
    found: list[Finding] = []
    for check in checks:
        try:
            found.extend(check(evidence))
        except Exception as error:  # noqa: BLE001 - hostile evidence must not hide the other checks' answers
            found.append(_broken(check, error))
    spoken = {finding.control for finding in found}
    silent = (control for control in controls() if control.id not in spoken)
    found.extend(
        Finding(
            control=control.id,
            state=State.NOT_ASSESSED,
            coverage=Coverage.NONE,
            statement=_WHY_SILENT.get(control.id, "The trail holds no event about it."),
        )
        for control in silent
    )
    return tuple(found)


def _broken(check: Check, error: Exception) -> Finding:
    return Finding(
        control=_SUBJECT.get(check, "SMFG-REP"),
        state=State.ERROR,
        coverage=Coverage.NONE,
        statement=f"The check could not be completed: {type(error).__name__}: {error}",
        remedy="This is a defect or a damaged event: report it with the events of that time.",
    )
