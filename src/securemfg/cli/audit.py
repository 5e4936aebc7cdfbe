"""`securemfg audit show|verify|ship`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from securemfg.cli.output import Exit, Json, Speaker, ends_well
from securemfg.errors import AuditError, ConfigError, EvidenceError

Place = Annotated[Path | None, typer.Argument(help="The journal's folder. Built in: the one of the settings.")]


def add_to(root: typer.Typer) -> None:
    group = typer.Typer(help="Look at, verify and ship the audit trail.", no_args_is_help=True)
    group.command("show")(show)
    group.command("verify")(verify)
    group.command("checkpoint")(checkpoint)
    group.command("ship")(ship)
    root.add_typer(group, name="audit")


def journal_folder(path: Path | None) -> Path:
    """The journal meant by an argument: itself, a home that holds one, or that of the settings. Raises ConfigError."""
    if path is None:
        from securemfg.config import load

        path = load().home / "journal"
        if not path.is_dir():
            raise ConfigError(f"there is no audit journal in {path} yet: run a step first, or name its folder")
    elif (path / "journal").is_dir():
        path = path / "journal"
    elif not path.is_dir():
        raise ConfigError(f"there is no folder {path}: name the journal's folder")
    return path


def show(
    path: Place = None,
    *,
    action: Annotated[str | None, typer.Option(help="Only this action; 'credential.*' for a family.")] = None,
    step: Annotated[str | None, typer.Option(help="Only events of this step.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only events from this UTC time on.")] = None,
    last: Annotated[int | None, typer.Option("-n", "--last", min=1, help="Only the last N.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON event per line, exactly as kept.")] = False,
) -> None:
    """The events of the journal, oldest first."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.audit.verification import read_events

        events = _chosen(read_events(journal_folder(path)), action, step, since)
        if last is not None:
            from collections import deque

            events = iter(deque(events, maxlen=last))
        if as_json:
            import sys

            import orjson

            for event in events:
                sys.stdout.write(orjson.dumps(event, option=orjson.OPT_SORT_KEYS).decode() + "\n")
            return
        colours = {"denied": "red", "failure": "yellow"}
        for event in events:
            line = Text(str(event.get("time", ""))[:23].replace("T", " "), style="dim")
            outcome = str(event.get("outcome"))
            line.append(f" {event.get('action')}", style=f"bold {colours.get(outcome, '')}".strip())
            if outcome != "success":
                line.append(f" {outcome}", style=colours.get(outcome, ""))
            for name, value in _shown(event):
                line.append(f" {name}=", style="dim")
                line.append(value)
            speaker.out.print(line, soft_wrap=True)


def _shown(event: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a line says of an event besides time, action and outcome."""
    for name in ("step", "stage", "sensitivity"):
        if event.get(name):
            yield name, str(event[name])
    resource = event.get("resource") or {}
    if resource.get("id"):
        yield str(resource.get("type", "resource")), str(resource["id"])
    for name, value in (event.get("detail") or {}).items():
        yield str(name), str(value)
    if event.get("reason"):
        yield "reason", str(event["reason"])


def _chosen(
    events: Iterator[dict[str, Any]], action: str | None, step: str | None, since: datetime | None
) -> Iterator[dict[str, Any]]:
    from fnmatch import fnmatchcase

    start = since.strftime("%Y-%m-%dT%H:%M:%S") if since is not None else ""
    for event in events:
        if action is not None and not fnmatchcase(str(event.get("action")), action):
            continue
        if step is not None and event.get("step") != step:
            continue
        if str(event.get("time", "")) >= start:
            yield event


def verify(
    path: Place = None,
    *,
    anchor: Annotated[
        Path | None, typer.Option(help="A checkpoint note kept elsewhere: the only proof against this host's own user.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The verifier key to trust instead of the one beside the journal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that nothing was changed, inserted, reordered or removed. Ends with 1 when something was."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.audit.verification import verify as check

        found = check(journal_folder(path), anchor=anchor, key=key)
        if as_json:
            whole = {"ok": found.ok, "strength": found.strength, "events": found.events, "unsealed_tail": found.tail}
            speaker.json({**whole, "torn_bytes": found.torn, "writers": found.writers, "problems": found.problems})
        else:
            _tell(speaker, found)
        if not found.ok:
            raise typer.Exit(int(Exit.FINDINGS))


def _tell(speaker: Speaker, found: Any) -> None:
    speaker.table(
        ("writer", "events", "sealed", "tail", "strength", "problems"),
        [(w.writer, w.events, w.sealed, w.tail, w.strength, len(w.problems) or "none") for w in found.writers],
    )
    for problem in found.problems:
        at = "" if problem.seq is None else f" at event {problem.seq}"
        speaker.say(f"{problem.kind}{at} in {problem.writer}: {problem.text}")
    if not found.ok:
        speaker.say(f"NOT intact: {len(found.problems)} problems")
        return
    speaker.say(f"intact: {found.events} events; {found.strength}")
    if found.tail:
        speaker.say(f"unsealed tail: {found.tail} events after the last checkpoint, whose removal would not be noticed")
    if found.strength != "anchored":
        speaker.note("proof against this host's own user needs a checkpoint kept elsewhere: --anchor")


def checkpoint(*, as_json: Json = False) -> None:
    """Seal the trail of this call and print its signed note. Keep it elsewhere: it is an anchor for 'verify'."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.workflow import default_workflow

        workflow = default_workflow()
        workflow.audit("journal.anchored", kind="journal", reason="a checkpoint was asked for")
        note = workflow.trail.journal.checkpoint()
        if as_json:
            speaker.json({"checkpoint": note})
        else:
            import sys

            sys.stdout.write(note)


def ship(
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Stay, and ship what comes.")] = False,
    deadline: Annotated[float | None, typer.Option(help="Give up after so many seconds.", min=0.1)] = None,
    as_json: Json = False,
) -> None:
    """Send what is pending to CloudWatch Logs, and end."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.workflow import default_workflow

        workflow = default_workflow()
        shipper = workflow.trail.shipper
        if shipper is None:
            raise ConfigError("nowhere to ship to: set audit.cloudwatch.log_group")
        total = 0
        workflow.enforce_tls()
        try:
            while True:
                shipped = shipper.ship_pending(deadline)
                total += shipped.events
                if not follow:
                    break
                time.sleep(1.0)
        except AuditError as error:
            raise EvidenceError(str(error)) from error
        finally:
            workflow.release_tls()
        if as_json:
            speaker.json({"shipped": total, "pending": shipped.pending, "problem": shipped.problem})
        else:
            speaker.say(f"shipped {total} events; {shipped.pending} pending")
            if shipped.problem:
                speaker.note(f"not done: {shipped.problem}")
        if shipped.pending:
            raise typer.Exit(int(Exit.OUT_OF_REACH))
