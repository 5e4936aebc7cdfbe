from __future__ import annotations

import json
import uuid

import pytest

from securemfg import Secret
from securemfg.audit.events import MAX_EVENT, EventIds, Tags, body, encode, rfc3339, uuid7
from securemfg.context import StepContext
from securemfg.labels import Sensitivity, Stage
from tests.unit.audit.parts import TAGS


def encoded(**arguments) -> dict:
    return json.loads(encode(body(TAGS, "model.predicted", **arguments)))


def test_ids_are_version_7_uuids_of_their_time_and_rise_even_when_the_clock_steps_back():
    ids = EventIds()
    moments = [1_700_000_000_000_000_000] * 50 + [1_600_000_000_000_000_000] * 50 + [1_700_000_000_001_000_000] * 50
    made = [ids.next(moment) for moment in moments]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    for text in made:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)
    assert uuid.UUID(made[0]).int >> 80 == 1_700_000_000_000
    assert uuid.UUID(uuid7()).version == 7


def test_time_has_nine_digits_and_is_utc():
    assert rfc3339(0) == "1970-01-01T00:00:00.000000000Z"
    assert rfc3339(1_763_885_700_000_000_001) == "2025-11-23T08:15:00.000000001Z"


def test_canonical_bytes_have_sorted_keys_and_no_absent_field():
    data = encode(body(TAGS, "a", resource="r", kind="k", detail={"b": 1, "a": 2}))
    record = json.loads(data)
    assert data == json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    assert "reason" not in record
    assert "stage" not in record
    assert record["resource"] == {"id": "r", "type": "k"}


def test_tags_hold_what_the_step_says_and_an_unbound_role_is_asserted():
    step = StepContext(
        step_id="s", name="serve", stage=Stage.INFERENCE, sensitivity=Sensitivity.PII, role="MLResearcher"
    )
    fields = Tags.of(step, actor="alice", host="h", site="plant-1").fields
    assert fields["actor"] == {"type": "user", "id": "alice", "auth_method": "asserted", "role": "MLResearcher"}
    assert (fields["stage"], fields["step"], fields["session"]) == ("inference", "serve", "s")
    assert (fields["sensitivity"], fields["retention_class"], fields["site"]) == ("pii", "inference", "plant-1")


def test_optional_fields_of_the_schema_are_kept_and_others_are_left_out_and_named():
    record = encoded(
        resource="m",
        fields={
            "decision": {"allowed": True},
            "policy_version": "v",
            "resource_sha256": "ab",
            "salary": 1,
            "model": None,
        },
    )
    assert record["decision"] == {"allowed": True}
    assert record["resource"] == {"id": "m", "sha256": "ab"}
    assert "salary" not in json.dumps({k: v for k, v in record.items() if k != "redactions"})
    assert record["redactions"] == ["salary (not in the schema)"]


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        object(),
        b"raw",
        1 << 80,
        -(1 << 70),
        "lone \ud800 surrogate",
        {1: {2: {3: {4: {5: 6}}}}},
    ],
    ids=["nan", "inf", "object", "bytes", "huge", "negative", "surrogate", "deep"],
)
def test_a_value_that_cannot_be_kept_is_replaced_and_named_and_the_event_stays(value):
    record = encoded(detail={"value": value, "other": 1})
    assert record["detail"]["other"] == 1
    assert any(name.startswith("detail.value") for name in record["redactions"])


def test_a_lone_surrogate_anywhere_does_not_lose_the_event():
    record = json.loads(encode(body(TAGS, "a\udcff", resource="b\udcff", reason="c\udcff", detail={"d\udcff": "e"})))
    assert record["action"] == "a\\udcff"
    assert {"action", "resource.id", "reason"} <= set(record["redactions"])


def test_an_object_s_own_text_never_enters_an_event():
    class Leaky:
        def __repr__(self) -> str:
            return "hunter2"

        __str__ = __repr__

    assert "hunter2" not in json.dumps(encoded(detail={"value": Leaky(), "list": [Leaky()]}))


def test_a_secret_never_appears():
    record = encoded(detail={"value": Secret("hunter2"), "nested": {"deep": [Secret("hunter2")]}})
    assert "hunter2" not in json.dumps(record)
    assert record["detail"]["value"] == "[secure]"


@pytest.mark.parametrize("filler", ["x", "\x00", "é", "😀"])
def test_an_event_is_never_too_large_to_ship(filler):
    data = encode(
        body(
            TAGS,
            "a" + filler * 400_000,
            resource=filler * 400_000,
            reason=filler * 400_000,
            detail={f"k{n}": filler * 9000 for n in range(200)},
        )
    )
    assert len(data) <= MAX_EVENT
    assert json.loads(data)["redactions"]


def test_the_face_hands_an_event_to_the_default_workflow(monkeypatch):
    from securemfg import audit, context

    class Recorder:
        def audit(self, action, **fields):
            return f"{action} {fields['resource']} {fields['outcome']}"

    monkeypatch.setattr(context, "_provider", Recorder)
    assert audit.event("model.predicted", "press-failure", outcome="failure") == "model.predicted press-failure failure"


def test_importing_the_room_stays_light():
    import subprocess
    import sys

    heavy = ("orjson", "boto3", "cryptography", "structlog", "pydantic")
    code = f"import sys, securemfg.audit; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
