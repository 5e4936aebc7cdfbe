"""The face as users write it, for type checkers only: mypy and pyright must both find it right. Never run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, assert_type

import httpx

import securemfg
from securemfg import Secret, Sensitivity, Stage, Step, Workflow
from securemfg.encryption import Message, decrypt_file, encrypt_file, open_key


@securemfg.step(Stage.TRAINING, assets=["production_sensor_data"], role="MLResearcher", credentials=["features-db"])
def train(epochs: int = 20) -> float:
    password = securemfg.current().credential("features-db")["password"]
    assert_type(password, Secret)
    assert_type(password.reveal(), str)
    return float(epochs)


@securemfg.step("inference", sensitivity="confidential")
async def predict(rows: list[float]) -> list[float]:
    return rows


def used() -> None:
    assert_type(train(3), float)
    decorated: Callable[[int], float] = train
    decorated(1)
    coroutine: Coroutine[Any, Any, list[float]] = predict([1.0])
    coroutine.close()

    with securemfg.step("evaluation", sensitivity=Sensitivity.PII) as step:
        assert_type(step, Step)
        assert_type(step.http, httpx.Client)
        assert_type(step.sensitivity, Sensitivity)
        assert_type(step.audit("model.predicted", resource="press", detail={"rows": 3}), str | None)

    workflow = Workflow.from_config("securemfg.toml")
    with workflow.step(Stage.INGEST) as other:
        assert_type(other.stage, Stage)

    assert_type(securemfg.audit.event("report.read"), str | None)
    with securemfg.tls.client(timeout=3.0) as client:
        assert_type(client, httpx.Client)
    securemfg.tls.enforce()
    securemfg.tls.release()
    securemfg.artifacts.activate()
    securemfg.artifacts.deactivate()
    assert_type(securemfg.authorize("read", "production_sensor_data").allowed, bool)

    key = open_key("local:keys/dev.key")
    assert_type(encrypt_file("a", Path("b"), key=key, context={"plant": "7"}), Message)
    assert_type(decrypt_file("b", "c", key=[key, "local:other.key"], durable=False), Message)
