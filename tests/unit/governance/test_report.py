"""The report: every control once, no gap called a pass, nothing hostile gets through, nothing loads from outside."""

from __future__ import annotations

import re
import stat
from datetime import date
from html.parser import HTMLParser

import pytest

from securemfg.errors import ConfigError
from securemfg.governance.checks import assess
from securemfg.governance.controls import controls
from securemfg.governance.findings import Coverage, Finding, State
from securemfg.governance.report import build, render_html, render_markdown, write
from securemfg.governance.report.markdown import escaped
from tests.unit.governance import plant

HOSTILE = "<script>alert(1)</script>|`x`\n# [a](https://evil.example) ![b](//evil.example/p.png)\u202e\x1b[31m{{7*7}}"


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.handlers, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "action", "data", "srcset", "xlink:href", "poster"}:
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        self.text.append(data)


def finding(state, *, coverage=Coverage.PARTIAL, control="SMFG-TLS", ids=("e",), **fields):
    return Finding(control=control, state=state, coverage=coverage, statement=str(state), event_ids=ids, **fields)


def row(*found):
    report = build(plant.evidence(), found)
    return next(row for row in report.rows if row.control.id == "SMFG-TLS")


@pytest.fixture
def report(own_place):
    evidence = plant.whole(own_place)
    return build(evidence, assess(evidence))


@pytest.fixture
def hostile(own_place):
    made = plant.Morning()
    made.add("step.started", step=HOSTILE, stage=HOSTILE, decision={"allowed": True, "assets": [HOSTILE]})
    made.add("tls.refused", resource=HOSTILE, outcome="failure", reason=HOSTILE, writer=HOSTILE, event_id=HOSTILE)
    made.add("settings.weakened", resource=HOSTILE, detail={"value": HOSTILE, "origin": HOSTILE}, reason=HOSTILE)
    evidence = plant.evidence(made.events, host=HOSTILE)
    return build(evidence, assess(evidence))


def test_every_control_has_exactly_one_row(report):
    assert [row.control.id for row in report.rows] == [control.id for control in controls()]
    empty = build(plant.evidence(), ())
    assert {row.state for row in empty.rows} == {State.NOT_ASSESSED}
    assert len(empty.rows) == 18


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((State.PASS, State.FAIL), State.FAIL),
        ((State.PASS, State.ERROR), State.ERROR),
        ((State.PASS, State.NOT_ASSESSED), State.NOT_ASSESSED),
        ((State.PASS, State.WAIVED), State.WAIVED),
        ((State.PASS, State.NOT_APPLICABLE), State.PASS),
        ((State.NOT_APPLICABLE,), State.NOT_APPLICABLE),
    ],
)
def test_the_worst_finding_is_the_rows(states, expected):
    assert row(*map(finding, states)).state is expected


def test_coverage_is_the_least_of_the_findings():
    found = row(finding(State.PASS, coverage=Coverage.FULL), finding(State.PASS, coverage=Coverage.EVIDENCE_ONLY))
    assert found.coverage is Coverage.EVIDENCE_ONLY


def test_a_pass_without_an_event_is_not_assessed():
    assert row(finding(State.PASS, ids=())).state is State.NOT_ASSESSED


def test_a_finding_about_no_known_control_is_refused():
    with pytest.raises(ValueError, match="SMFG-NEW"):
        build(plant.evidence(), [finding(State.PASS, control="SMFG-NEW")])


def test_a_waiver_shows_its_last_day():
    report = build(plant.evidence(), [finding(State.WAIVED, until=date(2027, 1, 31))])
    assert "Waived until 2027-01-31" in render_html(report)
    assert "Waived until 2027-01-31" in render_markdown(report)


def test_a_requirement_takes_the_worst_state_of_its_controls(report):
    nist = next(verdict for verdict in report.verdicts if verdict.framework.key == "nist")
    assert sum(nist.counts.values()) == nist.total == 126
    assert nist.counts[State.FAIL] == 6  # those of SMFG-ENV, shared with controls that passed or not
    assert nist.word == "Failing"
    assert {verdict.word for verdict in build(plant.evidence(), ()).verdicts} == {"Not shown"}


def test_changes_name_what_was_and_what_is(own_place):
    evidence = plant.whole(own_place)
    changed = build(evidence, assess(evidence), previous={"SMFG-ENV": State.PASS, "SMFG-TLS": State.PASS})
    assert [(c.control, c.before, c.after) for c in changed.changes] == [("SMFG-ENV", State.PASS, State.FAIL)]
    assert "SMFG-ENV: pass, now fail" in render_markdown(changed)


def test_the_first_report_has_nothing_to_compare_with(report):
    assert "there is no earlier report" in render_html(report)


def test_the_page_loads_nothing_and_runs_nothing(report):
    page = render_html(report)
    seen = Page(page)
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & set(seen.tags)
    assert all(address.startswith("#") for address in seen.addresses)
    assert not seen.handlers
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_each_link_leads_to_one_place(report):
    seen = Page(render_html(report))
    assert len(seen.ids) == len(set(seen.ids))
    assert {address[1:] for address in seen.addresses} <= set(seen.ids)


def test_states_are_words_not_colours_alone(report):
    text = " ".join(Page(render_html(report)).text)
    assert all(label in text for label in ("Fail", "Not assessed", "Pass", "Failing"))


def test_hostile_names_stay_text_in_the_page(hostile):
    page = render_html(hostile)
    seen = Page(page)
    assert not {"script", "img"} & set(seen.tags)
    assert all(address.startswith("#") for address in seen.addresses)
    assert "&lt;script&gt;" in page
    assert "{{7*7}}" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "\\u202e" in page


def test_hostile_names_stay_text_in_markdown(hostile):
    text = render_markdown(hostile)
    assert "<script>" not in text
    assert not re.search(r"https?://|(?<!\\)`x|(?<!\\)\[a|(?<!\\)!?\[b", text)
    assert not {"\x1b", "\u202e"} & set(text)
    rows = [line for line in text.splitlines() if line.startswith("| SMFG-")]
    assert len(rows) == 18
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in rows)
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# Compliance report"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("1.3", "1.3"),
        ("---", r"\---"),
        ("a\r\n\n| b", r"a \| b"),
        ("\\|", r"\\\|"),
        ("www.evil.example", "www&#46;evil.example"),
        (None, ""),
    ],
)
def test_markdown_escapes_what_would_be_markup(value, expected):
    assert escaped(value) == expected


def test_a_large_journal_gives_a_bounded_page(own_place):
    made = plant.Morning()
    for number in range(5000):
        made.add("artifact.encrypted", resource=f"a{number}", detail={"suite": "0x0478", "bytes": 1, "key": "k"})
        made.add("step.started", step=f"step-{number}", decision={"allowed": True, "assets": f"asset-{number}"})
    evidence = plant.evidence(made.events)
    report = build(evidence, assess(evidence))
    assert len(render_html(report)) < 200_000
    assert report.drawing is not None
    assert report.drawing.left_out == 9940


def test_the_files_are_written_whole_and_private(own_place, report):
    page, text = write(report, own_place / "out" / "deep")
    assert page.read_text(encoding="utf-8") == render_html(report)
    assert text.read_text(encoding="utf-8") == render_markdown(report)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (page, text)} == {0o600}
    assert sorted(path.name for path in page.parent.iterdir()) == ["compliance-report.html", "compliance-report.md"]


def test_a_folder_that_cannot_be_made_is_named(own_place, report):
    (own_place / "file").write_text("")
    with pytest.raises(ConfigError, match="the report cannot be written to"):
        write(report, own_place / "file" / "out")
