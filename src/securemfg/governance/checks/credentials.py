"""What the trail shows about credentials and secrets (IA-5, AC-2, AC-12)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from securemfg.governance.checks.reading import ids, lasting, listed, many, text, ttl
from securemfg.governance.findings import Coverage, Evidence, Finding, State

LONGEST: Final = timedelta(hours=12)  # the longest session that STS grants


def short_lived(evidence: Evidence) -> Iterator[Finding]:
    """Each leased credential ends by itself within 12 hours; which were revoked earlier is counted."""
    leased = [e for e in evidence.having("credential.leased") if text(e, "outcome") == "success"]
    ending = [e for e in leased if ttl(e) is not None]
    if not ending:
        if leased:
            yield Finding(
                control="SMFG-STS",
                state=State.NOT_ASSESSED,
                coverage=Coverage.NONE,
                statement=f"{many(len(leased), 'credential')} leased, none with a lifetime.",
                event_ids=ids(leased),
                remedy="Use a dynamic Vault engine or an STS role where the service allows it.",
            )
        return
    long = [e for e in ending if (ttl(e) or timedelta()) > LONGEST]
    if long:
        yield Finding(
            control="SMFG-STS",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement=f"{many(len(long), 'credential')} live longer than 12 hours: "
            f"{listed(text(e, 'resource', 'id') for e in long)}.",
            event_ids=ids(long),
            remedy="Lower 'ttl' of these credentials, or the maximum of the role that issues them.",
        )
        return
    ended = evidence.having("credential.revoked")
    revoked = [e for e in ended if text(e, "detail", "how") == "revoked"]
    denied = evidence.having("credential.denied")
    longest = max(life for e in ending if (life := ttl(e)) is not None)
    parts = [
        f"{many(len(ending), 'credential')} leased for at most {lasting(longest)}",
        f"{len(revoked)} revoked, {len(ended) - len(revoked)} left to expire",
    ]
    if len(ending) < len(leased):
        parts.append(f"{len(leased) - len(ending)} more without a lifetime, see SMFG-SEC")
    if denied:
        parts.append(f"{len(denied)} denied")
    whole = len(ending) == len(leased)
    yield Finding(
        control="SMFG-STS",
        state=State.PASS,
        coverage=Coverage.PARTIAL if whole else Coverage.EVIDENCE_ONLY,
        statement="; ".join(parts) + ".",
        event_ids=ids([*ending, *ended, *denied]),
        remedy=None if whole else "Replace secrets without a lifetime by dynamic ones.",
    )


def stored_secrets(evidence: Evidence) -> Iterator[Finding]:
    """Secrets came from a store. The trail does not show their rotation, so this never passes."""
    leased = [e for e in evidence.having("credential.leased") if text(e, "outcome") == "success"]
    if leased:
        stores = listed(text(e, "detail", "source") for e in leased) or "a store that is not named"
        yield Finding(
            control="SMFG-SEC",
            state=State.NOT_ASSESSED,
            coverage=Coverage.EVIDENCE_ONLY,
            statement=f"{many(len(leased), 'credential')} came from {stores}; "
            "the trail does not show when they were last rotated.",
            event_ids=ids(leased),
            remedy="Show the rotation settings of the secret store beside this report.",
        )
