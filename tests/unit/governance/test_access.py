"""Decisions: closed where roles are declared, open where none are, and honest about which is which."""

from __future__ import annotations

import pytest

from securemfg.errors import CatalogError
from securemfg.governance.access import NO_POLICY, Binding, decide
from tests.unit.governance import plant


@pytest.fixture
def catalog(own_place):
    return plant.catalog(own_place)


def test_a_listed_role_may_do_a_listed_action(catalog):
    decision = decide(catalog, role="MLResearcher", action="training", assets=["production_sensor_data"])
    assert decision.allowed
    assert decision.policy_version == catalog.digest
    assert decision.open_assets == ()


@pytest.mark.parametrize(
    ("role", "action", "part"),
    [
        ("MLResearcher", "inference", "may not do 'inference' with asset 'production_sensor_data', only: training"),
        ("Visitor", "training", "role 'Visitor' is not listed"),
        ("mlresearcher", "training", "is not listed"),
        (None, "training", "restricted to roles and none was given"),
        ("", "training", "is not listed"),
    ],
)
def test_anything_else_is_denied_with_its_reason(catalog, role, action, part):
    decision = decide(catalog, role=role, action=action, assets=["production_sensor_data"])
    assert not decision.allowed
    assert part in decision.reason


def test_a_star_grants_every_action(catalog):
    assert decide(catalog, role="ProcessEngineer", action="export", assets=["press_recipes"]).allowed


def test_a_stage_does_not_imply_a_verb(catalog):
    assert not decide(catalog, role="MLResearcher", action="read", assets=["production_sensor_data"]).allowed


def test_one_refused_asset_refuses_all(catalog):
    decision = decide(
        catalog, role="MLResearcher", action="training", assets=["production_sensor_data", "press_recipes"]
    )
    assert not decision.allowed
    assert "press_recipes" in decision.reason


def test_an_asset_without_roles_is_open_and_the_decision_says_so(catalog):
    decision = decide(catalog, role=None, action="training", assets=["maintenance_calendar"])
    assert decision.allowed
    assert decision.open_assets == ("maintenance_calendar",)
    assert "open to every role" in decision.reason


def test_empty_roles_close_an_asset_to_everyone(own_place):
    text = "data_assets:\n  - {name: a, sensitivity: pii, roles: {}}\n"
    assert not decide(plant.catalog(own_place, text), role="Any", action="read", assets=["a"]).allowed


def test_no_catalog_restricts_nothing_and_says_so():
    decision = decide(None, role="MLResearcher", action="training", assets=["x"])
    assert (decision.allowed, decision.policy_version) == (True, NO_POLICY)
    assert "no catalog is set" in decision.reason


def test_an_unknown_asset_is_an_error_not_a_decision(catalog):
    with pytest.raises(CatalogError, match="did you mean 'press_recipes'"):
        decide(catalog, role="ProcessEngineer", action="training", assets=["press_recipies"])


def test_only_a_vouched_role_counts_as_bound(catalog):
    asked = {"role": "Service", "action": "inference", "assets": ["production_sensor_data"]}
    assert decide(catalog, **asked).coverage is Binding.ASSERTED
    assert decide(catalog, **asked, auth_method="mtls").coverage is Binding.BOUND


def test_an_event_keeps_scalars_only(catalog):
    decision = decide(catalog, role="A", action="read", assets=["maintenance_calendar", "maintenance_calendar"])
    assert decision.assets == ("maintenance_calendar",)
    assert all(isinstance(value, str | bool) for value in decision.plain().values())
