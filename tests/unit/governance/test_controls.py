"""The control map says what it maps, and which of it nobody has verified."""

from __future__ import annotations

import json
import re

import pytest

from securemfg.governance.controls import FRAMEWORKS, controls
from tests.parts import shared


def test_every_control_maps_to_frameworks_by_whole_ids():
    assert len(controls()) == 18
    by_id = {control.id: control for control in controls()}
    tls = by_id["SMFG-TLS"]
    assert tls.mappings["iec"] == ("SR 1.2", "SR 1.8", "SR 3.1", "SR 3.1(1)", "SR 4.1", "SR 4.3")
    assert by_id["SMFG-LOG"].mappings["rmf"] == ("MEASURE 2.8", "MANAGE 4.1")
    assert by_id["SMFG-RET"].mappings["nis2"] == ()
    assert not any("?" in one or one == "-" for c in controls() for ids in c.mappings.values() for one in ids)


def test_an_unsure_id_is_shown_with_its_mark():
    tls = next(control for control in controls() if control.id == "SMFG-TLS")
    assert tls.unsure == {"ai": ("15(4)",)}
    assert tls.shown("ai") == ("15(4)?", "15(5)")


def test_only_nist_claims_to_be_verified():
    assert [f.name for f in FRAMEWORKS.values() if f.verified] == ["NIST SP 800-53 Rev. 5"]
    assert all("unverified" in f.source for f in FRAMEWORKS.values() if not f.verified)


@pytest.mark.shared
def test_every_nist_id_stands_in_the_catalog_and_is_not_withdrawn():
    catalog = json.loads(shared("nist_sp800-53r5_catalog.json").read_text(encoding="utf-8"))
    live = set()

    def collect(table):
        for control in table.get("controls", ()):
            if not any(p["name"] == "status" and p["value"] == "withdrawn" for p in control.get("props", ())):
                live.add(re.sub(r"\.(\d+)$", r"(\1)", control["id"]).upper())
            collect(control)

    for group in catalog["catalog"]["groups"]:
        collect(group)
    mapped = {one for control in controls() for one in control.mappings["nist"]}
    assert len(mapped) == 126
    assert mapped <= live
