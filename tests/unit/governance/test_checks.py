"""Checks say pass only for what was seen, and never for a gap."""

from __future__ import annotations

import pytest

from securemfg.config import Weakening
from securemfg.governance.checks import CHECKS, assess
from securemfg.governance.controls import controls
from securemfg.governance.findings import Coverage, State, TrailSummary
from tests.unit.governance import plant

SENSORS = ("production_sensor_data",)


@pytest.fixture
def catalog(own_place):
    return plant.catalog(own_place)


def findings(evidence, control):
    return [finding for finding in assess(evidence) if finding.control == control]


def only(evidence, control):
    found = findings(evidence, control)
    assert len(found) == 1, found
    return found[0]


def test_nothing_seen_is_never_a_pass():
    found = assess(plant.evidence())
    assert {finding.state for finding in found} == {State.NOT_ASSESSED}
    assert {finding.control for finding in found} == {control.id for control in controls()}


def test_every_pass_rests_on_events_that_are_in_the_evidence(own_place):
    evidence = plant.whole(own_place)
    known = {event["event_id"] for event in evidence.events}
    passed = [finding for finding in assess(evidence) if finding.state is State.PASS]
    assert {finding.control for finding in passed} >= {"SMFG-TLS", "SMFG-ENV", "SMFG-STS", "SMFG-RBAC", "SMFG-LOG"}
    assert all(finding.event_ids and set(finding.event_ids) <= known for finding in passed)


def test_settings_alone_never_pass(own_place):
    whole = plant.whole(own_place)
    declared = plant.evidence(known=whole.catalog, settings=whole.settings)
    assert not [finding for finding in assess(declared) if finding.state is State.PASS]


@pytest.mark.parametrize("check", CHECKS)
def test_no_check_breaks_on_events_of_any_shape(check, catalog):
    odd = [None, 7, "text", [], {}, {"id": {}}, {"allowed": "yes"}, float("nan")]
    actions = {event["action"] for event in plant.morning(catalog).events} | {"tls.refused", "key.destroyed"}
    fields = ("resource", "detail", "decision", "actor", "outcome", "event_id", "time", "step", "policy_version")
    events = [{"action": action, **dict.fromkeys(fields, value)} for action in sorted(actions) for value in odd]
    events += [{"action": value} for value in odd]
    events += [
        {"action": "credential.leased", "event_id": "x", "detail": {"ttl": ttl}}
        for ttl in (1e308, -1, "1e999", "nan", "15m", [])
    ]
    list(check(plant.evidence(events, catalog)))


def test_a_broken_check_is_an_error_and_hides_no_other():
    def broken(evidence):
        raise KeyError("odd")
        yield

    found = assess(plant.evidence(), [broken, *CHECKS])
    assert [finding.control for finding in found if finding.state is State.ERROR] == ["SMFG-REP"]
    assert "KeyError" in next(finding.statement for finding in found if finding.state is State.ERROR)


def test_one_connection_below_the_floor_fails_tls(catalog):
    made = plant.Morning(catalog)
    made.step("good", "training", SENSORS, "MLResearcher")
    made.step("old", "training", SENSORS, "MLResearcher", versions="TLSv1.3, TLSv1.2")
    finding = only(plant.evidence(made.events, catalog), "SMFG-TLS")
    assert finding.state is State.FAIL
    assert len(finding.event_ids) == 1


def test_connections_of_unknown_version_are_a_gap(catalog):
    made = plant.Morning(catalog)
    made.step("good", "training", SENSORS, "MLResearcher")
    made.step("unclear", "training", SENSORS, "MLResearcher", versions="")
    assert only(plant.evidence(made.events, catalog), "SMFG-TLS").state is State.NOT_ASSESSED


def test_a_refused_connection_is_evidence_only():
    made = plant.Morning()
    made.add("tls.refused", resource="old:80", outcome="denied")
    finding = only(plant.evidence(made.events), "SMFG-TLS")
    assert (finding.state, finding.coverage) == (State.PASS, Coverage.EVIDENCE_ONLY)


def test_a_refusal_that_was_only_observed_fails_tls():
    made = plant.Morning()
    made.add("tls.refused", resource="old:80", outcome="failure", detail={"mode": "observe"})
    assert only(plant.evidence(made.events), "SMFG-TLS").state is State.FAIL


def test_an_exception_beyond_this_machine_fails_tls_and_names_its_target(catalog):
    made = plant.Morning(catalog)
    made.step("good", "training", SENSORS, "MLResearcher")
    made.add("tls.exception_used", resource="historian:80", detail={"entry": "historian"})
    finding = only(plant.evidence(made.events, catalog), "SMFG-TLS")
    assert finding.state is State.FAIL
    assert "historian:80" in finding.statement


def test_plain_loopback_is_not_called_tls():
    made = plant.Morning()
    made.add("tls.exception_used", resource="127.0.0.1:5000", detail={"entry": "loopback"})
    assert only(plant.evidence(made.events), "SMFG-TLS").state is State.NOT_ASSESSED


def test_an_artifact_under_a_suite_without_commitment_fails_encryption():
    made = plant.Morning()
    made.add("artifact.encrypted", resource="a", detail={"suite": "0x0478", "bytes": 1, "key": "k"})
    assert only(plant.evidence(made.events), "SMFG-ENV").state is State.PASS
    made.add("artifact.encrypted", resource="b", detail={"suite": "0x0014", "bytes": 1, "key": "k"})
    assert only(plant.evidence(made.events), "SMFG-ENV").state is State.FAIL


def test_a_plaintext_read_that_was_let_through_fails_encryption():
    made = plant.Morning()
    made.add("artifact.encrypted", resource="a", detail={"suite": "0x0478"})
    made.add("artifact.refused", resource="b", outcome="failure", reason="the key cannot be reached")
    assert only(plant.evidence(made.events), "SMFG-ENV").state is State.PASS
    made.add("artifact.refused", resource="b", outcome="failure", reason="plaintext was read (audit only)")
    assert only(plant.evidence(made.events), "SMFG-ENV").state is State.FAIL


def test_a_key_used_after_its_destruction_fails():
    made = plant.Morning()
    made.add("artifact.encrypted", resource="a", detail={"key": "k"})
    made.add("key.destroyed", resource="k")
    assert only(plant.evidence(made.events), "SMFG-KEY").state is State.NOT_ASSESSED
    made.add("artifact.encrypted", resource="b", detail={"key": "k"})
    assert only(plant.evidence(made.events), "SMFG-KEY").state is State.FAIL


@pytest.mark.parametrize(
    ("lifetimes", "state", "coverage"),
    [
        ([3600, "15m"], State.PASS, Coverage.PARTIAL),
        ([3600, None], State.PASS, Coverage.EVIDENCE_ONLY),
        ([None], State.NOT_ASSESSED, Coverage.NONE),
        ([3600, 86400], State.FAIL, Coverage.PARTIAL),
    ],
)
def test_short_lived_means_an_end_within_twelve_hours(lifetimes, state, coverage):
    made = plant.Morning()
    for ttl in lifetimes:
        made.add("credential.leased", resource="db", detail={"source": "vault", "ttl": ttl})
    finding = only(plant.evidence(made.events), "SMFG-STS")
    assert (finding.state, finding.coverage) == (state, coverage)


def test_asserted_roles_give_at_most_partial_coverage(catalog):
    for method, coverage in (("asserted", Coverage.PARTIAL), ("mtls", Coverage.FULL)):
        made = plant.Morning(catalog)
        made.step("train", "training", SENSORS, "MLResearcher", auth_method=method)
        finding = only(plant.evidence(made.events, catalog), "SMFG-RBAC")
        assert (finding.state, finding.coverage) == (State.PASS, coverage)


def test_steps_on_open_assets_restrict_nothing(catalog):
    made = plant.Morning(catalog)
    made.step("plan", "training", ("maintenance_calendar",), None)
    assert only(plant.evidence(made.events, catalog), "SMFG-RBAC").state is State.NOT_ASSESSED


def test_a_denial_that_was_only_observed_fails(catalog):
    made = plant.Morning(catalog)
    made.step("read", "training", ("press_recipes",), "MLResearcher")
    assert only(plant.evidence(made.events, catalog), "SMFG-RBAC").state is State.PASS
    made.events[-1]["detail"] = {"mode": "observe"}
    assert only(plant.evidence(made.events, catalog), "SMFG-RBAC").state is State.FAIL


def test_a_lease_that_was_not_granted_is_no_lease():
    made = plant.Morning()
    made.add("credential.leased", resource="db", outcome="failure", detail={"source": "vault", "ttl": 60})
    assert only(plant.evidence(made.events), "SMFG-STS").state is State.NOT_ASSESSED


def test_a_denied_step_that_ran_fails(catalog):
    made = plant.Morning(catalog)
    made.step("train", "training", SENSORS, "MLResearcher")
    made.add("step.started", step="sneaky", decision={"allowed": False, "reason": "no"})
    finding = only(plant.evidence(made.events, catalog), "SMFG-RBAC")
    assert finding.state is State.FAIL
    assert "sneaky" in finding.statement


def test_an_event_without_an_actor_fails_the_log():
    made = plant.Morning()
    made.add("model.predicted", resource="a")
    assert only(plant.evidence(made.events), "SMFG-LOG").state is State.PASS
    del made.add("model.predicted", resource="b")["actor"]
    finding = only(plant.evidence(made.events), "SMFG-LOG")
    assert finding.state is State.FAIL
    assert finding.event_ids == (made.events[-1]["event_id"],)


@pytest.mark.parametrize(
    ("summary", "state", "coverage"),
    [
        (None, State.NOT_ASSESSED, Coverage.NONE),
        (
            TrailSummary(ok=False, strength="signed", events=1, problems=("seq 3 changed",)),
            State.FAIL,
            Coverage.PARTIAL,
        ),
        (TrailSummary(ok=True, strength="consistent", events=1), State.NOT_ASSESSED, Coverage.EVIDENCE_ONLY),
        (TrailSummary(ok=True, strength="signed", events=1), State.PASS, Coverage.PARTIAL),
        (TrailSummary(ok=True, strength="anchored", events=1, tail=1), State.PASS, Coverage.PARTIAL),
        (TrailSummary(ok=True, strength="anchored", events=1), State.PASS, Coverage.FULL),
        (TrailSummary(ok=True, strength="blessed", events=1), State.NOT_ASSESSED, Coverage.EVIDENCE_ONLY),
    ],
)
def test_a_journal_is_worth_what_its_verification_says(summary, state, coverage):
    made = plant.Morning()
    made.add("journal.opened", resource="w")
    finding = only(plant.evidence(made.events, verification=summary), "SMFG-LOGINT")
    assert (finding.state, finding.coverage) == (state, coverage)


def test_a_step_ended_for_want_of_a_trail_shows_the_fail_policy_at_work():
    made = plant.Morning()
    made.add("step.failed", step="a", outcome="failure", reason="ValueError")
    assert only(plant.evidence(made.events), "SMFG-AUFAIL").state is State.NOT_ASSESSED
    made.add("step.failed", step="b", outcome="failure", reason="securemfg.errors.AuditError")
    finding = only(plant.evidence(made.events), "SMFG-AUFAIL")
    assert (finding.state, finding.coverage) == (State.PASS, Coverage.EVIDENCE_ONLY)


def test_inference_logs_below_six_months_are_said_to_be():
    settings = (("audit.retention.inference", "90d", "built-in"), ("audit.retention.audit", "365d", "built-in"))
    finding = only(plant.evidence(settings=settings), "SMFG-RET")
    assert finding.state is State.NOT_ASSESSED
    assert finding.statement.endswith("high-risk systems: inference.")


def test_a_step_on_an_undeclared_asset_fails_classification(catalog):
    made = plant.Morning(catalog)
    made.step("train", "training", SENSORS, "MLResearcher")
    assert only(plant.evidence(made.events, catalog), "SMFG-CLASS").state is State.PASS
    made.add("step.started", step="stray", decision={"allowed": True, "assets": "camera_images"})
    finding = only(plant.evidence(made.events, catalog), "SMFG-CLASS")
    assert finding.state is State.FAIL
    assert "camera_images" in finding.statement


def test_a_step_below_the_sensitivity_of_its_asset_fails_classification(catalog):
    made = plant.Morning(catalog)
    made.step("train", "training", SENSORS, "MLResearcher", sensitivity="internal")
    assert only(plant.evidence(made.events, catalog), "SMFG-CLASS").state is State.FAIL


def test_a_confidential_flow_declared_without_tls_fails(own_place):
    text = plant.CATALOG + "  - {from: press, to: historian, data: production_sensor_data, tls: none}\n"
    finding = only(plant.evidence(known=plant.catalog(own_place, text)), "SMFG-FLOW")
    assert finding.state is State.FAIL
    assert f"press to historian (line {text.count(chr(10))})" in finding.statement


def weakening(setting, value="x"):
    return Weakening(setting=setting, value=value, origin="pyproject.toml", meaning="weaker")


@pytest.mark.parametrize(
    ("setting", "failed"),
    [
        ("SECUREMFG_DISABLED", {"SMFG-TLS", "SMFG-ENV", "SMFG-RBAC", "SMFG-LOG"}),
        ("mode", {"SMFG-TLS", "SMFG-ENV", "SMFG-RBAC"}),
        ("tls.floor", {"SMFG-TLS"}),
        ("tls.allow", set()),
        ("artifacts.encrypt_from", {"SMFG-ENV"}),
        ("audit.on_failure.pii", {"SMFG-AUFAIL"}),
        ("modest.new_setting", {"SMFG-REP"}),
    ],
)
def test_a_weakened_setting_fails_what_it_weakens(setting, failed):
    found = assess(plant.evidence(weakenings=(weakening(setting),)))
    assert {finding.control for finding in found if finding.state is State.FAIL} == failed


def test_a_weakening_in_the_past_is_still_found_once_with_its_events():
    made = plant.Morning()
    for _ in range(3):
        made.add("settings.weakened", resource="tls.floor", detail={"value": "1.2", "origin": "SECUREMFG_TLS__FLOOR"})
    finding = next(f for f in findings(plant.evidence(made.events), "SMFG-TLS") if f.state is State.FAIL)
    assert len(finding.event_ids) == 3
    assert "was in force" in finding.statement
    assert "SECUREMFG_TLS__FLOOR" in (finding.remedy or "")
