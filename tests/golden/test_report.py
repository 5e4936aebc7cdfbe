"""The Markdown report of a fixed morning, to the letter. Set UPDATE_GOLDEN=1 to accept a change, then read its diff."""

from __future__ import annotations

import os
from pathlib import Path

from securemfg.governance.checks import assess
from securemfg.governance.report import build, render_markdown
from tests.unit.governance import plant

GOLDEN = Path(__file__).with_name("report.md")


def test_the_markdown_report_of_a_morning_is_unchanged(own_place):
    evidence = plant.whole(own_place)
    text = render_markdown(build(evidence, assess(evidence)))
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
