"""What must hold on every MLflow that securemfg supports, whichever is installed: nox sessions bring the older ones.

Where versions differ in what they offer (a model's name, logged models, images), the test asks the version, and no more.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import securemfg
from securemfg.errors import DecryptionError, EncryptionError, SecureMfgError
from tests.compat.stored import MESSAGE, artifacts, at, kinds, log_model
from tests.parts.canary import word
from tests.parts.mlflow_server import Store, folder_store, use

mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")


@pytest.fixture
def files_store(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """MLflow's oldest store, one file for each value. The newest versions have it on request only."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = own_place / "mlruns"
    return folder_store("files", folder.as_uri(), folder, None)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Store]:
    """The store that the test names, with MLflow pointed at it."""
    if request.param == "server" and mlflow.__version__.startswith("2.8.") and sys.version_info >= (3, 12):
        pytest.skip("the server of MLflow 2.8 does not start on Python 3.12")
    store: Store = request.getfixturevalue(f"{request.param}_store")
    yield from (store for _ in use(store))


def over(*stores: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", stores, indirect=True)


def registry() -> Any:
    from mlflow.store.artifact import artifact_repository_registry

    return artifact_repository_registry._artifact_repository_registry


# -- files ------------------------------------------------------------------------------------------------------------


def log_everything(token: str) -> str:
    """Every call that logs files, each with a word of its own. Returns the run's id."""
    import pandas as pd
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from PIL import Image

    folder = Path(f"inputs-{token}")
    (folder / "sub").mkdir(parents=True)
    (folder / "plan.csv").write_text(f"a,b\n1,{word('artifact', token)}\n")
    (folder / "sub" / "deep.bin").write_bytes(b"\0" * 10 + word("artifacts", token).encode())
    (folder / "empty").write_bytes(b"")
    with mlflow.start_run() as run:
        mlflow.log_text(word("text", token), "note.txt")
        mlflow.log_text(word("nested", token), "deep/er/note.txt")
        mlflow.log_dict({"recipe": word("json", token)}, "recipe.json")
        mlflow.log_dict({"recipe": word("yaml", token)}, "recipe.yaml")
        mlflow.log_artifact(str(folder / "plan.csv"), "plans")
        mlflow.log_artifacts(str(folder), "bundle")
        with rc_context({"svg.fonttype": "none"}):  # letters, not outlines
            figure = Figure()
            figure.subplots().set_title(word("figure", token))
            mlflow.log_figure(figure, "figure.svg")
        mlflow.log_image(Image.new("RGB", (7, 5), "red"), "image.png")
        mlflow.log_table(pd.DataFrame({"name": [word("table", token)], "torque": [41.5]}), "table.json")
        mlflow.log_table({"name": [word("appended", token)], "torque": [42.5]}, "table.json")
    return str(run.info.run_id)


LOGGED = {"text", "nested", "json", "yaml", "artifact", "artifacts", "figure", "table", "appended"}


def read_everything(run_id: str, token: str) -> None:
    """All of it comes back as it was logged."""
    uri = f"runs:/{run_id}"
    assert mlflow.artifacts.load_text(f"{uri}/note.txt") == word("text", token)
    assert mlflow.artifacts.load_text(f"{uri}/deep/er/note.txt") == word("nested", token)
    assert mlflow.artifacts.load_dict(f"{uri}/recipe.json") == {"recipe": word("json", token)}
    assert word("yaml", token) in mlflow.artifacts.load_text(f"{uri}/recipe.yaml")
    assert mlflow.artifacts.load_image(f"{uri}/image.png").size == (7, 5)
    assert word("figure", token) in mlflow.artifacts.load_text(f"{uri}/figure.svg")
    table = mlflow.load_table("table.json", run_ids=[run_id])
    assert table["name"].tolist() == [word("table", token), word("appended", token)]
    bundle = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="bundle"))
    assert (bundle / "plan.csv").read_text() == f"a,b\n1,{word('artifact', token)}\n"
    assert (bundle / "sub" / "deep.bin").read_bytes() == b"\0" * 10 + word("artifacts", token).encode()
    assert (bundle / "empty").read_bytes() == b""


@over("local", "files", "server", "s3")
def test_what_a_step_logs_is_ciphertext_everywhere_and_comes_back(
    place: Store, scratch: Path, mlflow_database: Path
) -> None:
    log_everything("off")
    assert kinds("off", place, scratch, mlflow_database) == LOGGED  # the search sees what it looks for
    with securemfg.step("training", sensitivity="confidential"):
        run_id = log_everything("on")
        read_everything(run_id, "on")
    securemfg.artifacts.deactivate()
    mine = artifacts(place, run_id)
    assert len(mine) == 11
    assert all(data.startswith(MESSAGE) for data in mine.values())
    assert kinds("on", place, scratch, mlflow_database) == set()
    assert [path for path in (scratch / "staging").rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert mlflow.MlflowClient().get_run(run_id).data.tags["securemfg.encrypted"].startswith("AES-256-GCM")


@over("local", "files", "s3")
def test_listings_show_plaintext_sizes_and_no_records_of_keys(place: Store) -> None:
    client = mlflow.MlflowClient()
    sizes = (0, 1, 5000, (1 << 20) + 1)
    with securemfg.step("training"), mlflow.start_run() as run:
        for size in sizes:
            Path(f"part-{size}.bin").write_bytes(b"x" * size)
            mlflow.log_artifact(f"part-{size}.bin", "parts")
        assert [(info.path, info.is_dir) for info in client.list_artifacts(run.info.run_id)] == [("parts", True)]
        listed = {info.path: info.file_size for info in client.list_artifacts(run.info.run_id, "parts")}
    assert listed == {f"parts/part-{size}.bin": size for size in sizes}
    assert any("/.securemfg/keys/" in path for path in place.stored())


@over("local", "files", "s3")
def test_downloads_go_where_they_are_asked_to_and_leave_nothing_beside(place: Store, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_text("one", "notes/1.txt")
        mlflow.log_text("two", "notes/sub/2.txt")
        run_id = run.info.run_id
        folder = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="notes", dst_path=str(target))
        whole = mlflow.MlflowClient().download_artifacts(run_id, "", str(target))
    assert Path(folder) == target / "notes"
    assert Path(whole).resolve() == target
    found = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert found == {"notes/1.txt": "one", "notes/sub/2.txt": "two"}


@over("local", "files", "s3")
def test_what_is_deleted_is_gone_and_the_rest_is_readable(place: Store) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with securemfg.step("training"), mlflow.start_run() as run:
        for name in ("keep.txt", "gone/1.txt", "gone/2.txt", "gone.txt"):
            mlflow.log_text(name, name)
        repository = get_artifact_repository(mlflow.get_artifact_uri())
        repository.delete_artifacts("gone")
        if not (mlflow.__version__.startswith("2.8.") and place.name != "s3"):  # it deletes local folders only
            repository.delete_artifacts("gone.txt")
        else:
            place.remove(at(place, run.info.run_id, "gone.txt"))
        run_id = run.info.run_id
        assert [info.path for info in mlflow.MlflowClient().list_artifacts(run_id)] == ["keep.txt"]
        assert mlflow.artifacts.load_text(f"runs:/{run_id}/keep.txt") == "keep.txt"
    assert [posixpath.basename(path) for path in artifacts(place, run_id)] == ["keep.txt"]


@over("local", "s3")
@pytest.mark.parametrize("folder", ["..", "a/../..", "/elsewhere", ".securemfg/keys"])
def test_paths_out_of_the_run_or_into_our_folder_are_refused_and_nothing_is_written(
    place: Store, folder: str, tmp_path: Path
) -> None:
    from mlflow.exceptions import MlflowException

    Path("out.txt").write_text("secret")
    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_text("x", "fine.txt")
        before = sorted(place.stored())
        for log in (
            lambda: mlflow.log_text("secret", f"{folder}/out.txt"),
            lambda: mlflow.log_artifact("out.txt", folder),
            lambda: mlflow.log_artifacts(".", folder),
        ):
            with pytest.raises((MlflowException, EncryptionError)):
                log()
        for path in (folder, f"{folder}/out.txt"):
            with pytest.raises((MlflowException, EncryptionError)):
                mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=path)
    assert sorted(place.stored()) == before
    assert list(tmp_path.rglob("out.txt")) == [Path("out.txt").resolve()]


# -- models -----------------------------------------------------------------------------------------------------------


class Recipe(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model with a secret of its own, and one in a file beside it."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def load_context(self, context: Any) -> None:
        self.recipe = Path(context.artifacts["recipe"]).read_text()

    def predict(self, context: Any, model_input: Any, params: Any = None) -> list[str]:
        return [f"{self.secret} {self.recipe}"] * len(model_input)


@over("local", "files", "s3")
def test_models_are_encrypted_registered_and_load_by_every_kind_of_uri(
    place: Store, scratch: Path, mlflow_database: Path
) -> None:
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    features = pd.DataFrame({"torque": [0.0, 1.0, 2.0, 3.0]})
    labels = np.array([word("sklearn", "on"), "good"] * 2)
    model = LogisticRegression().fit(features, labels)
    recipe = scratch / "tmp" / "inputs" / "recipe.txt"  # the user's own file
    recipe.parent.mkdir()
    recipe.write_text(word("recipe", "on"))
    name = f"press-{uuid.uuid4().hex[:8]}"
    client = mlflow.MlflowClient()
    with securemfg.step("training"), mlflow.start_run() as run:
        info = log_model(mlflow.sklearn, "press", sk_model=model, registered_model_name=name)
        other = log_model(
            mlflow.pyfunc,
            "recipe",
            python_model=Recipe(word("pyfunc", "on")),
            artifacts={"recipe": str(recipe)},
        )
        client.set_registered_model_alias(name, "champion", "1")
        version = mlflow.register_model(other.model_uri, f"{name}-recipe")
        run_id = run.info.run_id
        uris = [info.model_uri, f"runs:/{run_id}/press", f"models:/{name}/1", f"models:/{name}@champion"]
        uris += [f"models:/{name}/latest"]
        for uri in uris:
            assert (mlflow.sklearn.load_model(uri).predict(features) == model.predict(features)).all()
        assert (mlflow.pyfunc.load_model(info.model_uri).predict(features) == model.predict(features)).all()
        for uri in (other.model_uri, f"runs:/{run_id}/recipe", f"models:/{version.name}/{version.version}"):
            said = mlflow.pyfunc.load_model(uri).predict(["x"])
            assert list(said) == [f"{word('pyfunc', 'on')} {word('recipe', 'on')}"]
    securemfg.artifacts.deactivate()
    recipe.unlink()
    mine = artifacts(place)
    assert sum(path.endswith("/MLmodel") for path in mine) == 2
    assert all(data.startswith(MESSAGE) for data in mine.values())
    assert kinds("on", place, scratch, mlflow_database) == set()


def test_a_model_exchanged_for_a_pickle_is_refused_before_it_is_unpickled(
    local_store: Store, local_experiment: str, tmp_path: Path
) -> None:
    import pickle

    from sklearn.linear_model import LinearRegression

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    with securemfg.step("training"), mlflow.start_run():
        info = log_model(mlflow.sklearn, "press", sk_model=LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
        (stored,) = [path for path in artifacts(local_store) if re.search(r"/model\.(pkl|skops)$", path)]
        local_store.put(stored, pickle.dumps(Bomb()))
        with pytest.raises(SecureMfgError, match="plaintext"):
            mlflow.sklearn.load_model(info.model_uri)
    assert not (tmp_path / "exploded").exists()


# -- authenticity -----------------------------------------------------------------------------------------------------


def planted(store: Store, mine: str, other: str) -> None:
    store.put(mine, b"planted in plaintext")


def swapped(store: Store, mine: str, other: str) -> None:
    """The other run's file, and the records of its keys too."""
    stored = store.stored()
    root, strange = mine.rpartition("/")[0], other.rpartition("/")[0]
    for path, data in stored.items():
        if path.startswith(f"{strange}/.securemfg/"):
            store.put(root + path[len(strange) :], data)
    store.put(mine, stored[other])


def flipped(store: Store, mine: str, other: str) -> None:
    data = bytearray(store.stored()[mine])
    data[-1] ^= 1
    store.put(mine, bytes(data))


def cut(store: Store, mine: str, other: str) -> None:
    store.put(mine, store.stored()[mine][:-20])


@over("local", "files", "s3")
@pytest.mark.parametrize("harm", [planted, swapped, flipped, cut])
def test_what_somebody_changed_in_the_store_is_refused(place: Store, harm: Callable[[Store, str, str], None]) -> None:
    runs = []
    with securemfg.step("training"):
        for text in ("mine", "the other's"):
            with mlflow.start_run() as run:
                mlflow.log_text(text, "note.txt")
            runs.append(run.info.run_id)
        assert mlflow.artifacts.load_text(f"runs:/{runs[0]}/note.txt") == "mine"
        harm(place, at(place, runs[0], "note.txt"), at(place, runs[1], "note.txt"))
        with pytest.raises(DecryptionError):
            mlflow.artifacts.load_text(f"runs:/{runs[0]}/note.txt")
        assert mlflow.artifacts.load_text(f"runs:/{runs[1]}/note.txt") == "the other's"


# -- on and off -------------------------------------------------------------------------------------------------------


def state() -> list[Any]:
    """What of MLflow and Python is exchanged while encryption is on."""
    from mlflow.tracking._model_registry.client import ModelRegistryClient
    from mlflow.utils.file_utils import TempDir

    owned = registry()._registry
    return [
        type(owned), dict(owned), tempfile.gettempdir, TempDir.__exit__, ModelRegistryClient.create_model_version,
        {name: value for name, value in os.environ.items() if name.startswith("SECUREMFG_")},
    ]  # fmt: skip


def test_off_on_and_off_again_leaves_mlflow_as_it_was(local_store: Store, local_experiment: str) -> None:
    before = state()
    for _ in range(2):
        with mlflow.start_run() as run:
            mlflow.log_text("plain", "before.txt")
            securemfg.artifacts.activate()
            assert state() != before
            mlflow.log_text("secret", "on.txt")
            assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/on.txt") == "secret"
            securemfg.artifacts.deactivate()
            mlflow.log_text("plain", "after.txt")
        assert state() == before
        stored = {posixpath.basename(path): data for path, data in artifacts(local_store, run.info.run_id).items()}
        assert stored.pop("on.txt").startswith(MESSAGE)
        assert stored == {"before.txt": b"plain", "after.txt": b"plain"}


@pytest.mark.parametrize("first", ["securemfg", "mlflow"])
def test_it_does_not_matter_which_is_imported_first(local_store: Store, local_experiment: str, first: str) -> None:
    on = "import securemfg; securemfg.artifacts.activate()"
    code = "\n".join(
        [
            *((on, "import mlflow") if first == "securemfg" else ("import mlflow", on)),
            f"mlflow.set_tracking_uri({local_store.tracking_uri!r})",
            f"mlflow.set_experiment({local_experiment!r})",
            "with mlflow.start_run():",
            "    mlflow.log_text('secret', 'note.txt')",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (data,) = artifacts(local_store).values()
    assert data.startswith(MESSAGE)


def test_every_scheme_of_this_mlflow_is_owned(local_store: Store, local_experiment: str) -> None:
    from securemfg.artifacts.activation import ownership

    served = set(registry()._registry)
    assert served >= {"", "file", "s3", "gs", "wasbs", "hdfs", "dbfs", "ftp", "sftp", "http", "https", "runs", "models"}
    assert not any(type(factory).__name__ == "Resolving" for factory in registry()._registry.values())
    with securemfg.step("training"):
        assert ownership() == dict.fromkeys(served, True)


def test_a_repository_that_slips_in_is_found_before_anything_is_written(
    local_store: Store, local_experiment: str
) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    with securemfg.step("training"), mlflow.start_run():
        mlflow.log_text("x", "before.txt")
        before = sorted(local_store.stored())
        with pytest.raises(EncryptionError, match="registered again"):
            registry().register("file", LocalArtifactRepository)
        for scheme in ("", "s3"):  # behind the registry's back, ours or another's scheme
            factory = registry()._registry[scheme]
            dict.__setitem__(registry()._registry, scheme, LocalArtifactRepository)
            try:
                with pytest.raises(EncryptionError, match="bypass"):
                    mlflow.log_text("secret", "after.txt")
            finally:
                dict.__setitem__(registry()._registry, scheme, factory)
            assert sorted(local_store.stored()) == before
        mlflow.log_text("x", "after.txt")


# -- the tracking store -----------------------------------------------------------------------------------------------


@over("local", "files", "server")
def test_params_tags_and_metrics_are_sealed_and_come_back_as_they_were_logged(
    place: Store, scratch: Path, mlflow_database: Path
) -> None:
    from mlflow.exceptions import MlflowException

    params = {"alloy": word("param", "on"), "depth": "7", "long": "p" * 5900 + word("long-param", "on")}
    tags = {"line": word("tag", "on"), "long": "t" * 4900 + word("long-tag", "on")}  # 2.8 takes 5,000
    with securemfg.step("training", sensitivity="confidential"):
        with mlflow.start_run() as run:
            mlflow.log_param("alloy", params["alloy"])
            mlflow.log_params({"depth": 7, "long": params["long"]})
            mlflow.set_tags(tags)
            mlflow.set_tag("line", tags["line"])
            mlflow.log_metric("accuracy", 0.5, step=3)
            mlflow.log_param("alloy", params["alloy"])  # the same again is no error
            with pytest.raises(MlflowException):
                mlflow.log_param("alloy", "steel")
        for found in (mlflow.get_run(run.info.run_id), *mlflow.search_runs(output_format="list")):
            assert found.data.params == params
            assert {name: found.data.tags[name] for name in tags} == tags
            assert found.data.metrics == {"accuracy": 0.5}
    assert kinds("on", place, scratch, mlflow_database) == set()
