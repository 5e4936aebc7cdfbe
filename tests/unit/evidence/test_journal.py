"""Evidence is what it was handed, in order."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from securemfg.config import load
from securemfg.errors import EvidenceError
from securemfg.evidence.journal import collect
from securemfg.governance.findings import TrailSummary


def test_events_come_in_time_order_and_settings_with_their_origins(own_place):
    events = [
        {"time": "2026-11-20T06:00:01Z", "writer": "b", "seq": 1},
        {"time": "2026-11-20T06:00:01Z", "writer": "a", "seq": 10},
        {"time": "2026-11-20T06:00:01Z", "writer": "a", "seq": 9},
        {"time": "2026-11-20T05:00:00Z", "writer": "z", "seq": 1},
    ]
    config = load(environment={"SECUREMFG_TLS__FLOOR": "1.2"}, folder=own_place)
    summary = TrailSummary(ok=True, strength="signed", events=4)
    at = datetime(2026, 11, 20, tzinfo=UTC)
    evidence = collect(iter(events), summary, config, None, host="gw", now=lambda: at)
    assert [(e["writer"], e["seq"]) for e in evidence.events] == [("z", 1), ("a", 9), ("a", 10), ("b", 1)]
    assert ("tls.floor", "1.2", "SECUREMFG_TLS__FLOOR") in evidence.settings
    assert [w.setting for w in evidence.weakenings] == ["tls.floor"]
    assert (evidence.host, evidence.collected_at, evidence.verification) == ("gw", at, summary)


def test_a_record_that_is_no_event_is_refused(own_place):
    with pytest.raises(EvidenceError, match="a journal record is str"):
        collect(["text"], None, load(environment={}, folder=own_place))
