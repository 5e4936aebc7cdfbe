"""Which rule holds for tracked values, and which of MLflow's own tags stay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from securemfg.artifacts.state import STATE
from securemfg.labels import Sensitivity
from securemfg.settings import Tracking
from tests.unit.artifacts.test_keyring import rules

pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")

from securemfg.artifacts.tracking_calls import Rule, rule
from securemfg.artifacts.tracking_tags import brief_history, sealed_fields, stays

PUBLIC, INTERNAL, CONFIDENTIAL, PII = (
    Sensitivity.PUBLIC, Sensitivity.INTERNAL, Sensitivity.CONFIDENTIAL, Sensitivity.PII,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    yield
    STATE.protection = None


def at(sensitivity: Sensitivity, tracking: object) -> Rule:
    from dataclasses import replace

    STATE.protection = replace(rules(), sensitivity=lambda: sensitivity, tracking=tracking)
    return rule()


@pytest.mark.parametrize("tracking", [Tracking.SEAL, Tracking.REDACT])
@pytest.mark.parametrize("sensitivity", [INTERNAL, CONFIDENTIAL, PII])
def test_a_word_holds_from_the_sensitivity_that_is_encrypted(sensitivity: Sensitivity, tracking: Tracking) -> None:
    assert at(sensitivity, tracking) == Rule(tracking, strict=sensitivity >= CONFIDENTIAL)


def test_what_is_not_encrypted_is_not_sealed() -> None:
    assert at(PUBLIC, Tracking.SEAL).plain


def test_allow_stops_below_confidential_unless_that_level_is_named() -> None:
    assert at(INTERNAL, Tracking.ALLOW).plain
    assert at(CONFIDENTIAL, Tracking.ALLOW).tracking is Tracking.SEAL
    assert at(PII, Tracking.ALLOW).tracking is Tracking.SEAL
    assert at(CONFIDENTIAL, {CONFIDENTIAL: Tracking.ALLOW}).plain


def test_an_entry_of_a_table_holds_for_its_own_level_and_others_are_sealed() -> None:
    table = {PUBLIC: Tracking.REDACT, INTERNAL: Tracking.ALLOW}
    assert at(PUBLIC, table).redacts
    assert at(INTERNAL, table).plain
    assert at(CONFIDENTIAL, table).tracking is Tracking.SEAL


def test_names_are_replaced_where_they_are_confidential_or_redacted() -> None:
    assert not at(INTERNAL, Tracking.SEAL).names
    assert at(INTERNAL, Tracking.REDACT).names
    assert at(CONFIDENTIAL, Tracking.SEAL).names


def test_a_thread_without_a_step_is_held_to_the_strictest_rule() -> None:
    at(INTERNAL, Tracking.ALLOW)
    assert rule(carried=False) == Rule(Tracking.SEAL, strict=True)


def test_nothing_is_hidden_while_it_is_off() -> None:
    STATE.protection = None
    assert rule().plain


def test_what_a_user_wrote_never_stays() -> None:
    from securemfg.artifacts.marking import NOTE

    for key in (
        "owner",
        "mlflow.source.name",
        "mlflow.source.git.commit",
        "mlflow.project.entryPoint",
        "mlflow.prompt.text",
    ):
        assert not stays(key, "x")
    assert not stays("mlflow.note.content", "a recipe")
    ours = NOTE.format(id="0" * 32)
    assert stays("mlflow.note.content", ours)
    assert not stays("mlflow.note.content", f"{ours} and a recipe")
    assert stays("mlflow.data.context", "training")
    assert not stays("mlflow.data.context", "line 4, alloy 7")


def test_the_list_of_models_keeps_only_what_pages_show() -> None:
    entry = '{"artifact_path": "press", "run_id": "7", "flavors": {"sklearn": {"code": "secret"}}, "signature": {"inputs": "s"}}'
    assert brief_history(f"[{entry}]") == '[{"artifact_path": "press", "run_id": "7", "flavors": {"sklearn": {}}}]'
    assert brief_history("no JSON") == "[]"


@pytest.mark.parametrize(
    ("expression", "fields"),
    [
        ("metrics.loss < 1 AND attributes.status = 'FINISHED'", []),
        ("params.alloy = '7'", ["params.alloy"]),
        ("tags.`a shift` LIKE '%x%' and metrics.x > 1", ["tags.a shift"]),
        ("tags.mlflow.parentRunId = '0' and tag.`mlflow.prompt.is_prompt` = 'true'", []),
        ("attributes.run_name = 'best'", ["run_name"]),
        ("request_metadata.`mlflow.modelId` = 'm-0'", []),
        ("metadata.shift = 'x'", ["metadata.shift"]),
        ("trace.text LIKE '%x%'", ["trace.text"]),
        ("name = 'params.alloy' and run_id = \"tags.x\"", []),
        ("params.depth DESC", ["params.depth"]),
    ],
)
def test_a_filter_by_what_is_sealed_is_noticed(expression: str, fields: list[str]) -> None:
    assert sealed_fields(expression) == fields
