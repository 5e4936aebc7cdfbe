"""The real data set: trained on, logged, registered, served by MLflow's own server, with ciphertext everywhere between.

Needs shared data: ai4i2020.csv, AI4I 2020 (S. Matzka, CC BY 4.0).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import securemfg
from securemfg.encryption.keys import create_local_key
from securemfg.encryption.signers import create_signing_key
from tests.parts import shared, until
from tests.parts.canary import Hunt
from tests.parts.mlflow_server import Store

TARGET = "Machine failure"
MESSAGE = b"\x02\x04\x78"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(folder: Path) -> dict[str, str]:
    """A key, a signer and a staging folder, for this process and for the one that serves."""
    create_local_key(folder / "plant.key")
    create_signing_key(folder / "signer.key")
    (folder / "staging").mkdir(mode=0o700)
    return {
        "SECUREMFG_KEYS__DEFAULT": f"local:{folder / 'plant.key'}",
        "SECUREMFG_ARTIFACTS__SIGNER": f"ed25519:{folder / 'signer.key'}",
        "SECUREMFG_ARTIFACTS__STAGING": str(folder / "staging"),
    }


def answered(port: int, path: str, body: object = None) -> bytes | None:
    """What the server says, or None while it is not up."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()[-2000:]) from error
    except OSError:
        return None


def test_real_data_trains_logs_registers_and_serves(
    store: Store, experiment: str, mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")
    pandas = pytest.importorskip("pandas", reason="needs pandas: pip install pandas")
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from securemfg.cli.demo.train import FEATURES

    data = pandas.read_csv(shared("ai4i2020.csv"))
    features, target = data[FEATURES].astype(float), data[TARGET]
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    name = f"press-{store.name}-{os.getpid()}"
    with securemfg.step("training", sensitivity="confidential"):
        with mlflow.start_run() as run:
            model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(features, target)
            mlflow.log_param("rows", f"{len(data)} of AI4I 2020")
            data.to_csv("ai4i2020.csv", index=False)
            mlflow.log_artifact("ai4i2020.csv", "data")
            info = mlflow.sklearn.log_model(
                model, name="press-failure", pip_requirements=["scikit-learn"], registered_model_name=name,
                signature=infer_signature(features, model.predict(features)), input_example=features.head(3),
            )  # fmt: skip
        mlflow.MlflowClient().set_registered_model_alias(name, "champion", info.registered_model_version)

    stored = {path: held for path, held in store.stored().items() if run.info.run_id in path or info.model_id in path}
    assert len(stored) >= 8
    assert all(held.startswith(MESSAGE) or path.endswith("/manifest.sig") for path, held in stored.items())
    told = b"|".join([b"Rotational speed", b"Tool wear", b"LogisticRegression", b"of AI4I 2020"])
    assert not [path for path, held in stored.items() if any(word in held for word in told.split(b"|"))]
    hunt = Hunt({"rpm": {"feature": "Rotational speed", "param": "of AI4I 2020", "target": TARGET}})
    hunt.look_at_database("database", mlflow_database)
    assert hunt.found["rpm"] == {}

    expected = model.predict(features.head(200)).tolist()
    with securemfg.step("inference", sensitivity="confidential"):
        loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion")
        assert loaded.predict(features.head(200)).tolist() == expected
    served_the_same(f"models:/{name}@champion", features.head(200), expected, tmp_path)


def served_the_same(uri: str, rows: object, expected: list[int], folder: Path) -> None:
    """`mlflow models serve`, told by the environment alone, answers as the model did; then nothing of it is left."""
    import mlflow

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "-p", str(port), "--env-manager", "local"]
    environment = {
        **os.environ,
        "SECUREMFG_ACTIVE": "1",
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with Path("serve.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(
            lambda: server.poll() is not None or answered(port, "/ping") is not None, within=90, what="the model server"
        )
        assert server.poll() is None, Path("serve.log").read_text()[-3000:]
        split = json.loads(rows.to_json(orient="split"))  # type: ignore[attr-defined]
        answer = answered(port, "/invocations", {"dataframe_split": split})
        assert answer is not None
        assert json.loads(answer)["predictions"] == expected
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    staging = folder / "staging"
    until(lambda: not files_of_others(staging), what="an empty staging folder")


def files_of_others(staging: Path) -> list[str]:
    """What processes other than this one have staged. The reaper removes folders meanwhile, which `os.walk` passes over."""
    return [f"{at}/{name}" for at, _, names in os.walk(staging) for name in names if str(os.getpid()) not in at]
