"""MLflow in place: unchanged calls, ciphertext in the store, the same values back. Over a folder, a server and S3."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import pytest

import securemfg
from tests.parts.mlflow_server import Store

CANARY = "canary-7f3a91c2"


@pytest.fixture(autouse=True)
def _mlflow() -> None:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")


def log_everything() -> str:
    """Every artifact call of MLflow that this version covers, each with the canary in its content."""
    import mlflow
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from matplotlib.text import Text  # noqa: F401
    from PIL import Image, PngImagePlugin

    with mlflow.start_run() as run:
        mlflow.log_text(f"text {CANARY}", "note.txt")
        mlflow.log_text(f"nested {CANARY}", "deep/er/note.txt")
        mlflow.log_dict({"recipe": CANARY}, "recipe.json")
        mlflow.log_dict({"recipe": CANARY}, "recipe.yaml")
        mlflow.log_table(pd.DataFrame({"name": [CANARY], "torque": [41.5]}), "table.json")
        figure = Figure()
        figure.subplots().plot([1, 2])
        mlflow.log_figure(figure, "figure.svg", save_kwargs={"metadata": {"Title": CANARY}})
        mlflow.log_image(np.zeros((4, 4, 3), dtype=np.uint8), "image.png")
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", CANARY)
        Image.new("RGB", (3, 3)).save("commented.png", pnginfo=info)
        mlflow.log_artifact("commented.png", "pictures")
        folder = Path("folder")
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        (folder / "a.bin").write_bytes(b"\0" * 10 + CANARY.encode())
        (folder / "sub" / "b.csv").write_text(f"x\n{CANARY}\n")
        (folder / "empty").write_bytes(b"")
        mlflow.log_artifacts(str(folder), "bundle")
    return run.info.run_id


def found(stored: dict[str, bytes]) -> list[str]:
    """The stored files that hold the canary, in their bytes or inside a zip member."""
    hits = []
    for path, data in stored.items():
        inner = b""
        if zipfile.is_zipfile(BytesIO(data)):
            with zipfile.ZipFile(BytesIO(data)) as archive:
                inner = b"".join(archive.read(name) for name in archive.namelist())
        if CANARY.encode() in data + inner:
            hits.append(path)
    return hits


def test_canary_is_in_the_store_without_the_step_and_nowhere_with_it(store: Store, experiment: str) -> None:
    run_id = log_everything()
    plain = found({path: data for path, data in store.stored().items() if run_id in path})
    assert len(plain) >= 8  # the test can see what it looks for
    with securemfg.step("training"):
        run_id = log_everything()
    mine = {path: data for path, data in store.stored().items() if run_id in path}
    assert len(mine) >= 12
    assert found(mine) == []
    assert all(data[:3] == b"\x02\x04\x78" for data in mine.values())


def test_everything_logged_comes_back_as_it_was(store: Store, experiment: str, tmp_path: Path) -> None:
    import mlflow

    with securemfg.step("training"):
        run_id = log_everything()
        assert mlflow.artifacts.load_text(f"runs:/{run_id}/note.txt") == f"text {CANARY}"
        assert mlflow.artifacts.load_text(f"runs:/{run_id}/deep/er/note.txt") == f"nested {CANARY}"
        assert mlflow.artifacts.load_dict(f"runs:/{run_id}/recipe.json") == {"recipe": CANARY}
        assert mlflow.artifacts.load_image(f"runs:/{run_id}/image.png").size == (4, 4)
        assert mlflow.load_table("table.json", run_ids=[run_id])["name"].tolist() == [CANARY]
        target = tmp_path / "target"
        target.mkdir()
        where = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="bundle", dst_path=str(target)))
        assert (where / "a.bin").read_bytes() == b"\0" * 10 + CANARY.encode()
        assert (where / "sub" / "b.csv").read_text() == f"x\n{CANARY}\n"
        assert (where / "empty").read_bytes() == b""
        assert sorted(p.name for p in target.iterdir()) == ["bundle"]  # nothing of ours is left beside it


def test_listings_hide_the_records_of_run_keys(store: Store, experiment: str) -> None:
    import mlflow

    with securemfg.step("training"):
        run_id = log_everything()
        names = {info.path for info in mlflow.artifacts.list_artifacts(run_id=run_id)}
    assert {"note.txt", "bundle", "deep"} <= names
    assert ".securemfg" not in names
    assert any("/.securemfg/keys/" in path for path in store.stored() if run_id in path)


def test_a_table_is_appended_to(store: Store, experiment: str) -> None:
    import mlflow

    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_table({"torque": [1.0]}, "table.json")
        mlflow.log_table({"torque": [2.0]}, "table.json")
        assert mlflow.load_table("table.json", run_ids=[run.info.run_id])["torque"].tolist() == [1.0, 2.0]


def test_a_model_is_logged_registered_and_loaded(store: Store, experiment: str) -> None:
    import mlflow
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features = np.array([[0.0], [1.0], [2.0], [3.0]])
    model = LogisticRegression().fit(features, [0, 0, 1, 1])
    with securemfg.step("training"), mlflow.start_run() as run:
        info = mlflow.sklearn.log_model(
            model, name="press", pip_requirements=["scikit-learn"], registered_model_name=experiment
        )
        for uri in (info.model_uri, f"runs:/{run.info.run_id}/press", f"models:/{experiment}/1"):
            assert (mlflow.sklearn.load_model(uri).predict(features) == [0, 0, 1, 1]).all()
        assert (mlflow.pyfunc.load_model(info.model_uri).predict(features) == [0, 0, 1, 1]).all()
    mine = {path: data for path, data in store.stored().items() if info.model_id in path}
    assert any(path.endswith("MLmodel") for path in mine)
    ciphertext = [data for path, data in mine.items() if not path.endswith("/.securemfg/manifest.sig")]
    assert all(data[:3] == b"\x02\x04\x78" for data in ciphertext)


def test_deleting_the_run_leaves_its_model_loadable(local_store: Store, local_experiment: str) -> None:
    import shutil

    import mlflow
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features = np.array([[0.0], [1.0]])
    with securemfg.step("training"):
        with mlflow.start_run() as run:
            mlflow.log_text("x", "note.txt")
            info = mlflow.sklearn.log_model(
                LogisticRegression().fit(features, [0, 1]), name="press", pip_requirements=["scikit-learn"]
            )
        run_folder = Path(run.info.artifact_uri)
        assert run_folder.is_dir()
        shutil.rmtree(run_folder)
        assert mlflow.sklearn.load_model(info.model_uri).predict(features).tolist() == [0, 1]


def test_another_process_with_the_key_reads_and_one_without_does_not(local_store: Store, local_experiment: str) -> None:
    import subprocess
    import sys

    import mlflow

    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_text(CANARY, "note.txt")
    code = (
        "import sys, mlflow, securemfg\n"
        f"mlflow.set_tracking_uri({local_store.tracking_uri!r})\n"
        "with securemfg.step('evaluation'):\n"
        f"    print(mlflow.artifacts.load_text('runs:/{run.info.run_id}/note.txt'))\n"
    )
    import os

    reader = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert CANARY in reader.stdout, reader.stderr[-2000:]
    stranger = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "SECUREMFG_HOME": str(Path.home() / "other")},
    )  # fmt: skip
    assert stranger.returncode != 0
    assert CANARY not in stranger.stdout
    assert "no key at hand opens this message" in stranger.stderr


def test_what_was_encrypted_is_in_the_trail(local_store: Store, local_experiment: str) -> None:
    import mlflow

    from securemfg.audit.verification import read_events
    from securemfg.workflow import default_workflow

    with securemfg.step("training", sensitivity="confidential"), mlflow.start_run() as run:
        mlflow.log_text(CANARY, "note.txt")
        mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/note.txt")
    events = list(read_events(default_workflow().config.home / "journal"))
    made = [event for event in events if event["action"] == "artifact.encrypted"]
    assert [event["resource"]["id"] for event in made] == ["note.txt"]
    assert made[0]["detail"]["root"] == f"run/{run.info.run_id}"
    assert made[0]["detail"]["bytes"] == len(CANARY)
    assert made[0]["sensitivity"] == "confidential"
    read = [event for event in events if event["action"] == "artifact.decrypted"]
    assert [(event["step"], event["session"]) for event in read] == [(made[0]["step"], made[0]["session"])]
    assert CANARY not in repr(events)


def test_what_a_model_requires_is_inferred_as_without_encryption(local_store: Store, local_experiment: str) -> None:
    """MLflow loads the model it is about to log in a process of its own, and looks beside it for what it is."""
    import mlflow
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])

    def requirements() -> list[str]:
        with mlflow.start_run():
            logged = mlflow.sklearn.log_model(model, name="press")
        uri = mlflow.get_logged_model(logged.model_id).artifact_location
        return Path(mlflow.artifacts.download_artifacts(f"{uri}/requirements.txt")).read_text().splitlines()

    without = requirements()
    with securemfg.step("training"):
        assert requirements() == without
    assert any(line.startswith("numpy") for line in without)


def test_a_relative_folder_to_download_to_is_taken(local_store: Store, local_experiment: str) -> None:
    import mlflow

    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_text("secret", "notes/one.txt")
        Path("down").mkdir()
        placed = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="notes", dst_path="down")
    assert Path(placed) == Path("down/notes").absolute()
    assert Path("down/notes/one.txt").read_text() == "secret"


def test_listings_show_the_size_of_the_plaintext(store: Store, experiment: str) -> None:
    import mlflow

    with securemfg.step("training"), mlflow.start_run() as run:
        for size in (0, 1, 5000, 1 << 20, (1 << 20) + 1):
            Path("part.bin").write_bytes(b"x" * size)
            mlflow.log_artifact("part.bin", f"sizes/{size}")
        client = mlflow.MlflowClient()
        for size in (0, 1, 5000, 1 << 20, (1 << 20) + 1):
            (info,) = client.list_artifacts(run.info.run_id, f"sizes/{size}")
            assert (info.path, info.file_size) == (f"sizes/{size}/part.bin", size)


def test_the_page_of_a_run_says_that_it_is_encrypted(store: Store, experiment: str) -> None:
    import mlflow

    with securemfg.step("training"):
        with mlflow.start_run() as mine:
            mlflow.log_text("secret", "a.txt")
        with mlflow.start_run(description="my own words") as noted:
            mlflow.log_text("secret", "a.txt")
    tags = mlflow.get_run(mine.info.run_id).data.tags
    assert tags["securemfg.encrypted"].startswith("AES-256-GCM")
    assert f"securemfg artifacts download runs:/{mine.info.run_id}/" in tags["mlflow.note.content"]
    assert mlflow.get_run(noted.info.run_id).data.tags["mlflow.note.content"] == "my own words"


def test_a_users_own_files_go_into_a_model(local_store: Store, local_experiment: str) -> None:
    import mlflow
    from mlflow.pyfunc import PythonModel

    class Press(PythonModel):
        def load_context(self, context: object) -> None:
            self.limits = Path(context.artifacts["limits"]).read_text()  # type: ignore[attr-defined]

        def predict(self, context: object, model_input: list[str]) -> list[str]:
            return [self.limits for _ in model_input]

    own = Path("own")
    own.mkdir()
    (own / "limits.txt").write_text(f"limits {CANARY}")
    with securemfg.step("training"), mlflow.start_run():
        logged = mlflow.pyfunc.log_model(
            name="press",
            python_model=Press(),
            artifacts={"limits": str(own.absolute() / "limits.txt")},
            pip_requirements=["mlflow"],
            input_example=["a"],
        )
        assert mlflow.pyfunc.load_model(logged.model_uri).predict(["a"]) == [f"limits {CANARY}"]
        location = mlflow.get_logged_model(logged.model_id).artifact_location
        # MLflow opens this one itself when the store is a folder
        assert mlflow.models.Model.load(location).load_input_example(location) == ["a"]
    assert found(local_store.stored()) == []


def test_a_plaintext_model_outside_any_store_is_not_loaded_even_when_it_is_copied_first(local_experiment: str) -> None:
    import mlflow
    from sklearn.linear_model import LinearRegression

    from securemfg.errors import DecryptionError

    mlflow.sklearn.save_model(LinearRegression(), "/var/tmp/securemfg-planted", pip_requirements=["scikit-learn"])
    try:
        with securemfg.step("inference"):
            for where in (None, "here"):
                Path("here").mkdir(exist_ok=True)
                with pytest.raises(DecryptionError, match="not encrypted"):
                    mlflow.sklearn.load_model("/var/tmp/securemfg-planted", dst_path=where)
    finally:
        import shutil

        shutil.rmtree("/var/tmp/securemfg-planted")
