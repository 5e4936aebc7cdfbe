"""Who may do what with which asset (NIST AC-3, AC-24). A decision is a value that the workflow obeys.

How stage and action relate: a step asks for its stage. `step("training", assets=["x"], role="MLResearcher")`
needs `roles: {MLResearcher: [training]}` on asset x. Verbs such as `read` or `export` are asked for by code
that calls `authorize(action, asset)`. Neither implies the other; `"*"` grants every action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from securemfg.context import Scalar
from securemfg.governance.catalog import Asset, Catalog
from securemfg.governance.fields import ANY_ACTION

__all__ = ["NO_POLICY", "Binding", "Decision", "decide"]

NO_POLICY: Final = "none"
_ASSERTED: Final = "asserted"


class Binding(StrEnum):
    """What stands behind the role: the caller's word, or an identity that a service vouches for."""

    ASSERTED = "asserted"
    BOUND = "bound"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The answer, why, and under which policy. `open_assets` declare no roles: every role may use them."""

    allowed: bool
    reason: str
    policy_version: str  # the catalog's SHA-256 in hex, or 'none'
    role: str | None
    action: str
    assets: tuple[str, ...]
    coverage: Binding
    open_assets: tuple[str, ...] = ()

    def plain(self) -> dict[str, Scalar]:
        """What an event keeps of it. The policy version is a field of the event itself."""
        return {
            "allowed": self.allowed,
            "reason": self.reason,
            "action": self.action,
            "role": self.role,
            "assets": ", ".join(self.assets),
            "open_assets": ", ".join(self.open_assets),
            "coverage": str(self.coverage),
        }


def decide(
    catalog: Catalog | None,
    *,
    role: str | None,
    action: str,
    assets: Sequence[str],
    auth_method: str = _ASSERTED,
) -> Decision:
    """Whether `role` may do `action` with every one of `assets`. One refusal refuses all.

    `auth_method` says what vouches for the role; anything but 'asserted' counts as bound to an identity.
    Raises CatalogError for an asset that the catalog does not have.
    """
    binding = Binding.ASSERTED if auth_method == _ASSERTED else Binding.BOUND
    names = tuple(dict.fromkeys(assets))
    if catalog is None:
        reason = "no catalog is set, so no asset restricts its roles" if names else "no asset is used"
        return Decision(
            allowed=True, reason=reason, policy_version=NO_POLICY, role=role, action=action, assets=names,
            coverage=binding, open_assets=names,
        )  # fmt: skip
    found = [catalog.asset(name) for name in names]
    refusals = [text for asset in found if (text := _refusal(asset, role, action)) is not None]
    open_assets = tuple(asset.name for asset in found if asset.roles is None)
    return Decision(
        allowed=not refusals,
        reason="; ".join(refusals) if refusals else _grant(role, action, names, open_assets),
        policy_version=catalog.digest,
        role=role,
        action=action,
        assets=names,
        coverage=binding,
        open_assets=open_assets,
    )


def _refusal(asset: Asset, role: str | None, action: str) -> str | None:
    """Why not, or None."""
    if asset.roles is None:
        return None
    if role is None:
        return f"asset {asset.name!r} is restricted to roles and none was given"
    granted = asset.roles.get(role)
    if granted is None:
        return f"role {role!r} is not listed on asset {asset.name!r}"
    if action in granted or ANY_ACTION in granted:
        return None
    only = ", ".join(granted) or "nothing"
    return f"role {role!r} may not do {action!r} with asset {asset.name!r}, only: {only}"


def _grant(role: str | None, action: str, names: tuple[str, ...], open_assets: tuple[str, ...]) -> str:
    if not names:
        return "no asset is used"
    restricted = [name for name in names if name not in open_assets]
    parts = []
    if restricted:
        parts.append(f"role {role!r} may do {action!r} with {', '.join(restricted)}")
    if open_assets:
        parts.append(f"open to every role, because no roles are declared: {', '.join(open_assets)}")
    return "; ".join(parts)
