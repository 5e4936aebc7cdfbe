"""`securemfg report`: what the journal proves, control by control."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from securemfg.cli.output import Exit, Json, ends_well

if TYPE_CHECKING:
    from securemfg.config import Config
    from securemfg.governance.catalog import Catalog
    from securemfg.governance.report.model import Report


def add_to(root: typer.Typer) -> None:
    root.command("report")(report)


def make(config: Config, journal: Path, catalog: Catalog | None, anchor: Path | None = None) -> Report:
    """The report on one journal. Raises AuditError when it cannot be read."""
    from securemfg.audit.verification import read_events, verify
    from securemfg.evidence.journal import collect
    from securemfg.governance.checks import assess
    from securemfg.governance.findings import TrailSummary
    from securemfg.governance.report import build

    verified = verify(journal, anchor=anchor)
    summary = TrailSummary(
        ok=verified.ok,
        strength=verified.strength.name.lower(),
        events=verified.events,
        tail=verified.tail,
        writers=len(verified.writers),
        problems=tuple(f"{problem.writer}: {problem.text}" for problem in verified.problems),
    )
    evidence = collect(read_events(journal), summary, config, catalog)
    return build(evidence, assess(evidence))


def report(
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the report.")] = Path(
        "securemfg-report"
    ),
    journal: Annotated[
        Path | None, typer.Option(help="The journal's folder. Built in: the one of the settings.")
    ] = None,
    anchor: Annotated[Path | None, typer.Option(help="A checkpoint note kept elsewhere.")] = None,
    as_json: Json = False,
) -> None:
    """Write the compliance report: one self-contained HTML page and Markdown. Ends with 1 when a control fails."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.cli.audit import journal_folder
        from securemfg.governance.findings import State
        from securemfg.governance.report import write
        from securemfg.workflow import default_workflow

        workflow = default_workflow()
        made = make(workflow.config, journal_folder(journal), workflow.catalog, anchor)
        page, text = write(made, output)
        counts = {state.value: sum(row.state is state for row in made.rows) for state in State}
        if as_json:
            rows = [{"control": r.control.id, "state": r.state, "coverage": r.coverage} for r in made.rows]
            speaker.json({"html": page, "markdown": text, "controls": counts, "rows": rows})
        else:
            shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            speaker.say(f"{len(made.rows)} controls: {shown}")
            speaker.say(f"wrote {page} and {text}")
        if counts["fail"] or counts["error"]:
            raise typer.Exit(int(Exit.FINDINGS))
