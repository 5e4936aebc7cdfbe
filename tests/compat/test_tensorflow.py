"""TensorFlow and Keras: models and what autologging adds leave as ciphertext. Runs in the session `tensorflow`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import securemfg
from tests.compat.stored import MESSAGE, artifacts, kinds, log_model
from tests.parts.canary import word
from tests.parts.mlflow_server import Store

tensorflow = pytest.importorskip("tensorflow", reason="runs in the session that installs TensorFlow")
mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")

FEATURES = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=np.float32)


def network(canary: str) -> Any:
    """A small network with a canary for the name of a layer, which is kept beside its weights."""
    keras = tensorflow.keras
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name=canary)])


@pytest.mark.parametrize("flavour", ["keras", "tensorflow"])
def test_a_model_is_ciphertext_and_predicts_as_before(
    local_store: Store, local_experiment: str, scratch: Path, mlflow_database: Path, flavour: str
) -> None:
    import importlib

    module = importlib.import_module(f"mlflow.{flavour}")
    options = {"pip_requirements": ["tensorflow-cpu"]}
    with mlflow.start_run():
        log_model(module, "press", network(word("layer", "off")), **options)
    assert "layer" in kinds("off", local_store, scratch, mlflow_database)
    plain = set(artifacts(local_store))
    model = network(word("layer", "on"))
    expected = model(FEATURES).numpy()
    with securemfg.step("training"):
        with mlflow.start_run():
            info = log_model(module, "press", model, **options, registered_model_name=local_experiment)
        for uri in (info.model_uri, f"models:/{local_experiment}/1"):
            assert np.allclose(module.load_model(uri)(FEATURES), expected)
        assert np.allclose(mlflow.pyfunc.load_model(info.model_uri).predict(FEATURES), expected)
    securemfg.artifacts.deactivate()
    mine = {path: data for path, data in artifacts(local_store).items() if path not in plain}
    assert len(mine) > 3
    assert all(data.startswith(MESSAGE) for data in mine.values())
    assert kinds("on", local_store, scratch, mlflow_database) == set()


def test_a_saved_module_is_ciphertext_and_runs_as_before(
    local_store: Store, local_experiment: str, scratch: Path, mlflow_database: Path
) -> None:
    """TensorFlow's own format: a folder of files that it opens by itself while it loads."""

    class Scaled(tensorflow.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.recipe = tensorflow.constant(word("constant", "on"))
            self.factor = tensorflow.Variable(3.0)

        @tensorflow.function(input_signature=[tensorflow.TensorSpec([None, 3], tensorflow.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, features: Any) -> Any:
            tensorflow.print(self.recipe, output_stream="file:///dev/null")
            return features * self.factor

    with securemfg.step("training"):
        with mlflow.start_run():
            info = log_model(mlflow.tensorflow, "scaled", Scaled(), pip_requirements=["tensorflow-cpu"])
        loaded = mlflow.tensorflow.load_model(info.model_uri)
        assert np.allclose(loaded(tensorflow.constant(FEATURES)), FEATURES * 3)
    securemfg.artifacts.deactivate()
    assert any("saved_model.pb" in path for path in artifacts(local_store))
    assert all(data.startswith(MESSAGE) for data in artifacts(local_store).values())
    assert kinds("on", local_store, scratch, mlflow_database) == set()


def test_autologging_a_fit_logs_ciphertext(
    local_store: Store, local_experiment: str, scratch: Path, mlflow_database: Path
) -> None:
    def fit(token: str) -> Any:
        model = network(word("autolog", token))
        model.compile(optimizer="sgd", loss="mse")
        model.fit(FEATURES, np.zeros((2, 2)), epochs=1, verbose=0)
        return model

    mlflow.tensorflow.autolog(log_input_examples=False, silent=True)
    try:
        fit("off")
        assert "autolog" in kinds("off", local_store, scratch, mlflow_database)
        plain = set(artifacts(local_store))
        with securemfg.step("training"):
            fit("on")
            run = mlflow.last_active_run()
    finally:
        mlflow.tensorflow.autolog(disable=True)
    assert run.data.metrics["loss"] >= 0
    securemfg.artifacts.deactivate()
    mine = {path: data for path, data in artifacts(local_store).items() if path not in plain}
    assert any("tensorboard" in path for path in mine)
    assert any("model" in path for path in mine)
    assert all(data.startswith(MESSAGE) for data in mine.values())
    assert "autolog" not in kinds("on", local_store, scratch, mlflow_database)
