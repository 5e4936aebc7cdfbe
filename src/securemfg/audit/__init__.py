"""The audit trail: events, the journal that keeps them, the shipper that delivers them, and verification.

Light to import: every name below loads its module on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from securemfg import context

if TYPE_CHECKING:
    from securemfg.audit.events import Tags
    from securemfg.audit.journal import Journal, Receipt
    from securemfg.audit.shipper import Shipped, Shipper
    from securemfg.audit.trail import Summary, Trail
    from securemfg.audit.verification import Problem, Strength, Verification, read_events, verify

__all__ = [
    "Journal",
    "Problem",
    "Receipt",
    "Shipped",
    "Shipper",
    "Strength",
    "Summary",
    "Tags",
    "Trail",
    "Verification",
    "event",
    "read_events",
    "verify",
]

_HOMES = {
    "Tags": "events",
    "Journal": "journal",
    "Receipt": "journal",
    "Shipped": "shipper",
    "Shipper": "shipper",
    "Summary": "trail",
    "Trail": "trail",
    "Problem": "verification",
    "Strength": "verification",
    "Verification": "verification",
    "read_events": "verification",
    "verify": "verification",
}


def event(
    action: str,
    resource: str | None = None,
    *,
    kind: str | None = None,
    outcome: str = "success",
    reason: str | None = None,
    detail: Mapping[str, context.Scalar] | None = None,
) -> str | None:
    """Record one event of the user's own in the default workflow's audit trail (NIST AU-2, AU-3, AU-12).

    `resource` names the thing acted on, `kind` its type; `outcome` is `success`, `failure` or `denied`. `detail`
    holds a few chosen scalars. Returns the event's id, or None when it waits in memory for a journal that cannot be
    written. Raises AuditError as the fail policy of the current step's sensitivity says.
    """
    recorded: str | None = context.default_workflow().audit(
        action, resource=resource, kind=kind, outcome=outcome, reason=reason, detail=detail
    )
    return recorded


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
