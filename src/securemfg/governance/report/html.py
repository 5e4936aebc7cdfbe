"""The report as one HTML page: no script, no font, no image and no address outside it (CSP default-src 'none')."""

from __future__ import annotations

from importlib.resources import files

from securemfg.governance.controls import FRAMEWORKS
from securemfg.governance.findings import State
from securemfg.governance.report import words
from securemfg.governance.report.limits import limits, strength
from securemfg.governance.report.model import Report


def render_html(report: Report) -> str:
    """The page. Every value is escaped by the template engine; the style sheet is the only trusted insert."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(shown=words.shown, moment=words.moment, short_time=words.short_time, series=words.series)
    here = files("securemfg.governance.report")
    template = environment.from_string(here.joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        css=Markup(here.joinpath("report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        frameworks=FRAMEWORKS,
        labels=words.STATE_LABELS,
        coverage_labels=words.COVERAGE_LABELS,
        anchors={event.event_id: f"e{number}" for number, event in enumerate(report.cited, 1)},
        limits=limits,
        strength=strength,
        report=report,
        State=State,
    )
