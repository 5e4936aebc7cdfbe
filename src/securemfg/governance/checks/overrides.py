"""Weakened settings are findings, whether in force now or at any time in the trail (trust rule 6)."""

from __future__ import annotations

from collections.abc import Iterator

from securemfg.governance.checks.reading import ids, text
from securemfg.governance.findings import Coverage, Event, Evidence, Finding, State

_ENFORCEMENT = ("SMFG-TLS", "SMFG-ENV", "SMFG-RBAC")
# The longest prefix counts. `tls.allow` is judged by its use, in `transport.tls_only`.
_CONTROLS = {
    "SECUREMFG_DISABLED": (*_ENFORCEMENT, "SMFG-LOG"),
    "mode": _ENFORCEMENT,
    "tls.allow": (),
    "tls": ("SMFG-TLS",),
    "artifacts": ("SMFG-ENV",),
    "encryption": ("SMFG-ENV",),
    "audit.on_failure": ("SMFG-AUFAIL",),
}
_UNKNOWN = ("SMFG-REP",)


def weakened_settings(evidence: Evidence) -> Iterator[Finding]:
    """One finding per weakened setting and control it touches, with the events that recorded it."""
    now = {(w.setting, w.value, w.origin): w.meaning for w in evidence.weakenings}
    recorded: dict[tuple[str, str, str], list[Event]] = {}
    for event in evidence.having("settings.weakened"):
        setting = text(event, "resource", "id") or text(event, "detail", "setting")
        key = (setting, text(event, "detail", "value"), text(event, "detail", "origin"))
        recorded.setdefault(key, []).append(event)
    for key in dict.fromkeys([*now, *recorded]):
        setting, value, origin = key
        events = recorded.get(key, [])
        meaning = now.get(key) or next((r for e in events if (r := text(e, "reason"))), "")
        when = "is in force" if key in now else "was in force"
        for control in _touched(setting):
            yield Finding(
                control=control,
                state=State.FAIL,
                coverage=Coverage.PARTIAL,
                statement=f"{setting} = {value} ({origin or 'origin not recorded'}) {when}"
                + (f": {meaning}." if meaning else "."),
                event_ids=ids(events),
                remedy=f"Remove '{setting}' where it is set ({origin or 'origin not recorded'}), "
                "or record why it has to stay.",
            )


def _touched(setting: str) -> tuple[str, ...]:
    prefix = max((p for p in _CONTROLS if setting == p or setting.startswith(f"{p}.")), key=len, default="")
    return _CONTROLS.get(prefix, _UNKNOWN)
