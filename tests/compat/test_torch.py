"""PyTorch: models, state dicts and checkpoints leave as ciphertext and come back. Runs in the session `torch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import securemfg
from securemfg.encryption import encrypt_file, open_message
from securemfg.encryption.keys import create_local_key
from tests.compat.stored import MESSAGE, artifacts, kinds, log_model
from tests.parts.canary import word
from tests.parts.mlflow_server import Store

torch = pytest.importorskip("torch", reason="runs in the session that installs PyTorch")
mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")


class Press(torch.nn.Module):  # type: ignore[misc]
    """A small network with a canary among its tensors."""

    def __init__(self, canary: str) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.register_buffer("recipe", torch.tensor(list(canary.encode()), dtype=torch.uint8))

    def forward(self, features: Any) -> Any:
        return self.layer(features)


FEATURES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize("form", ["pickle", "pt2"])
def test_a_model_is_ciphertext_and_predicts_as_before(
    local_store: Store, local_experiment: str, scratch: Path, mlflow_database: Path, form: str
) -> None:
    options: dict[str, Any] = {"serialization_format": form, "pip_requirements": ["torch"]}
    if form == "pt2":
        options["input_example"] = FEATURES.numpy()
    with mlflow.start_run():
        log_model(mlflow.pytorch, "press", Press(word("tensor", "off")), **options)
    assert kinds("off", local_store, scratch, mlflow_database) == {"tensor"}
    plain = set(artifacts(local_store))
    model = Press(word("tensor", "on")).eval()
    with securemfg.step("training"):
        with mlflow.start_run():
            info = log_model(mlflow.pytorch, "press", model, **options, registered_model_name=local_experiment)
        for uri in (info.model_uri, f"models:/{local_experiment}/1"):
            loaded = mlflow.pytorch.load_model(uri)
            assert torch.equal(loaded(FEATURES), model(FEATURES))
            if form == "pickle":
                assert bytes(loaded.recipe.tolist()).decode() == word("tensor", "on")
        predicted = mlflow.pyfunc.load_model(info.model_uri).predict(FEATURES.numpy())
        assert torch.equal(torch.tensor(predicted), model(FEATURES))
    securemfg.artifacts.deactivate()
    mine = {path: data for path, data in artifacts(local_store).items() if path not in plain}
    assert len(mine) > 3
    assert all(data.startswith(MESSAGE) for data in mine.values())
    assert kinds("on", local_store, scratch, mlflow_database) == set()


def test_a_state_dict_is_ciphertext_and_comes_back(
    local_store: Store, local_experiment: str, scratch: Path, mlflow_database: Path
) -> None:
    model = Press(word("state", "on"))
    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.pytorch.log_state_dict(model.state_dict(), artifact_path="checkpoint")
        found = mlflow.pytorch.load_state_dict(f"runs:/{run.info.run_id}/checkpoint", weights_only=True)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    securemfg.artifacts.deactivate()
    assert artifacts(local_store)
    assert all(data.startswith(MESSAGE) for data in artifacts(local_store).values())
    assert kinds("on", local_store, scratch, mlflow_database) == set()


def test_autologging_a_trainer_logs_ciphertext(
    local_store: Store, local_experiment: str, scratch: Path, mlflow_database: Path
) -> None:
    lightning = pytest.importorskip("pytorch_lightning", reason="runs in the session that installs PyTorch")

    class Training(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, canary: str) -> None:
            super().__init__()
            self.press = Press(canary)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.press(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(FEATURES), batch_size=1)

    def train(token: str) -> None:
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=True,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=scratch.parent / "lightning",
        )  # fmt: skip
        trainer.fit(Training(word("autolog", token)), batches)

    options = {"log_models": False, "checkpoint": True, "checkpoint_save_weights_only": True, "silent": True}
    options |= {"checkpoint_monitor": "loss"}
    mlflow.pytorch.autolog(**options)
    try:
        train("off")
        assert kinds("off", local_store, scratch, mlflow_database) == {"autolog"}
        plain = set(artifacts(local_store))
        assert plain
        with securemfg.step("training"):
            train("on")
            run_id = mlflow.last_active_run().info.run_id
    finally:
        mlflow.pytorch.autolog(disable=True)
    securemfg.artifacts.deactivate()
    mine = {path: data for path, data in artifacts(local_store).items() if path not in plain}
    assert any(run_id in path for path in mine)
    assert all(data.startswith(MESSAGE) for data in mine.values())
    assert kinds("on", local_store, scratch, mlflow_database) == set()


def test_tensors_are_read_through_the_message(tmp_path: Path) -> None:
    """No plaintext copy: torch.load reads the encrypted file itself, in any order it likes."""
    create_local_key(tmp_path / "dev.key")
    key = f"local:{tmp_path / 'dev.key'}"
    model = Press("the recipe")
    torch.save({"model": model.state_dict(), "ramp": torch.arange(300_000)}, "plain")
    encrypt_file("plain", "message", key=key)
    with open_message("message", key=key) as file:
        found = torch.load(file, weights_only=True)
    assert torch.equal(found["ramp"], torch.arange(300_000))
    other = Press("THE RECIPE")
    other.load_state_dict(found["model"])
    assert torch.equal(other(FEATURES), model(FEATURES))
    assert bytes(other.recipe.tolist()) == b"the recipe"


def test_a_harmed_message_gives_no_tensors(tmp_path: Path) -> None:
    from securemfg.errors import DecryptionError

    create_local_key(tmp_path / "dev.key")
    key = f"local:{tmp_path / 'dev.key'}"
    torch.save({"ramp": torch.arange(300_000)}, "plain")
    encrypt_file("plain", "message", key=key)
    data = bytearray(Path("message").read_bytes())
    data[len(data) // 2] ^= 1
    Path("message").write_bytes(data)
    # PyTorch drops the refusal of `readinto`, tries `read`, and may report only that as failed
    with open_message("message", key=key) as file, pytest.raises((DecryptionError, ValueError)):
        torch.load(file, weights_only=True)
