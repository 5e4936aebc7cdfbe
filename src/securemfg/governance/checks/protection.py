"""What the trail shows about encrypted artifacts and their keys (SC-12, SC-28)."""

from __future__ import annotations

from collections.abc import Iterator

from securemfg.governance.checks.reading import ids, listed, many, number, observed_only, text
from securemfg.governance.findings import Coverage, Event, Evidence, Finding, State

_COMMITTING_SUITES = frozenset({"0x0478", "0x0578", "478", "0478", "1144"})  # as hex or as the decimal of 0x0478


def envelope_encryption(evidence: Evidence) -> Iterator[Finding]:
    """Artifacts were encrypted before they left the process; no plaintext was read in their place.

    At most partial: the trail shows what was encrypted, not what else was written.
    """
    sealed = evidence.having("artifact.encrypted")
    refused = evidence.having("artifact.refused")
    weak = [e for e in sealed if (suite := _suite(e)) and suite not in _COMMITTING_SUITES]
    let_through = [e for e in refused if observed_only(e)]
    if bad := [*weak, *let_through]:
        parts = [
            f"{many(len(weak), 'artifact')} encrypted under {listed(map(_suite, weak))}, "
            "which does not commit to its key"
            if weak
            else "",
            f"{many(len(let_through), 'unprotected artifact')} read, only observed" if let_through else "",
        ]
        yield Finding(
            control="SMFG-ENV",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement="; ".join(part for part in parts if part) + ".",
            event_ids=ids(bad),
            remedy="Encrypt what is still plaintext, then set artifacts.plaintext_reads = 'refuse'.",
        )
        return
    if not sealed:
        yield Finding(
            control="SMFG-ENV",
            state=State.NOT_ASSESSED,
            coverage=Coverage.EVIDENCE_ONLY if refused else Coverage.NONE,
            statement="No artifact was encrypted"
            + (f"; {many(len(refused), 'operation')} refused." if refused else " in these events."),
            event_ids=ids(refused),
            remedy="Log an artifact inside a step, then make the report again.",
        )
        return
    keys = {key for e in sealed if (key := text(e, "detail", "key"))}
    volume = sum(number(e, "detail", "bytes") for e in sealed)
    parts = [f"{many(len(sealed), 'artifact')} ({volume:,} bytes) encrypted under {many(len(keys), 'key')}"]
    if refused:
        parts.append(f"{many(len(refused), 'operation')} refused")
    yield Finding(
        control="SMFG-ENV",
        state=State.PASS,
        coverage=Coverage.PARTIAL,
        statement="; ".join(parts) + ".",
        event_ids=ids([*sealed, *refused]),
    )


def key_lifecycle(evidence: Evidence) -> Iterator[Finding]:
    """No key was used after it was destroyed. Rotation leaves no mark in the trail, so this never passes."""
    created = evidence.having("key.created")
    run_keys = [e for e in created if text(e, "resource", "type") == "run-key"]
    of_runs = f" ({len(run_keys)} of them for runs)" if run_keys else ""
    destroyed = evidence.having("key.destroyed")
    gone: set[str] = set()
    after: list[Event] = []
    for event in evidence.events:
        key = text(event, "resource", "id")
        if event.get("action") == "key.destroyed" and text(event, "outcome") == "success":
            gone.add(key)
        elif event.get("action") == "artifact.encrypted" and text(event, "detail", "key") in gone:
            after.append(event)
    if after:
        yield Finding(
            control="SMFG-KEY",
            state=State.FAIL,
            coverage=Coverage.PARTIAL,
            statement=f"{many(len(after), 'artifact')} encrypted under a key recorded as destroyed: "
            f"{listed(text(e, 'detail', 'key') for e in after)}.",
            event_ids=ids([*destroyed, *after]),
            remedy="Find out where the key still exists: it was not destroyed everywhere.",
        )
    elif created or destroyed:
        yield Finding(
            control="SMFG-KEY",
            state=State.NOT_ASSESSED,
            coverage=Coverage.EVIDENCE_ONLY,
            statement=f"{many(len(created), 'key')} created{of_runs}, "
            f"{len(destroyed)} destroyed; "
            "the trail does not show when keys were rotated.",
            event_ids=ids([*created, *destroyed]),
            remedy="Show the rotation settings of the key service beside this report.",
        )


def erasure(evidence: Evidence) -> Iterator[Finding]:
    """Keys were destroyed. Whether copies remain is for the key service to show, so this never passes."""
    destroyed = evidence.having("key.destroyed")
    if destroyed:
        yield Finding(
            control="SMFG-ERASE",
            state=State.NOT_ASSESSED,
            coverage=Coverage.EVIDENCE_ONLY,
            statement=f"{many(len(destroyed), 'key')} destroyed; backups and copies are not in the trail.",
            event_ids=ids(destroyed),
            remedy="Show the key service's own record of the destruction and the backup policy.",
        )


def _suite(event: Event) -> str:
    return text(event, "detail", "suite").lower()
