"""What a step left behind: the events of a journal, and settings and catalogs to run one under."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CATALOG = """\
data_assets:
  - name: production_sensor_data
    sensitivity: confidential
    roles: {MLResearcher: [training, evaluation], Service: [inference]}
  - name: operator_feedback
    sensitivity: pii
    roles: {DataProtection: [preparation]}
  - name: maintenance_calendar
    sensitivity: internal
"""


def events(action: str = "", home: Path | str = ".securemfg") -> list[dict[str, Any]]:
    """The events of the journal below `home`, oldest first; those whose action begins with `action`."""
    from securemfg.audit.verification import read_events

    folder = Path(home) / "journal"
    found = read_events(folder) if folder.is_dir() else ()
    return [event for event in found if str(event["action"]).startswith(action)]


def actions(home: Path | str = ".securemfg") -> list[str]:
    """What happened, in order, without the journal's own events."""
    return [event["action"] for event in events(home=home) if not event["action"].startswith("journal.")]


def settings(text: str = "", folder: Path | str = ".", *, catalog: str | None = None) -> Path:
    """Write securemfg.toml (and the catalog it then names) into `folder`."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if catalog is not None:
        (place / "data_flow.yaml").write_text(catalog, encoding="utf-8")
        text = f'catalog = "data_flow.yaml"\n{text}'
    path = place / "securemfg.toml"
    path.write_text(text, encoding="utf-8")
    return path
