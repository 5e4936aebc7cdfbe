"""What MLflow must not be able to do: write plaintext, load what was planted, swapped, cut or changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import securemfg
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, KeyUnavailable, SecureMfgError
from tests.parts.mlflow_server import Store

mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")


def a_run(text: str = "the recipe") -> str:
    with mlflow.start_run() as run:
        mlflow.log_text(text, "note.txt")
    return str(run.info.run_id)


def place(store: Store, run_id: str, name: str = "note.txt") -> str:
    return next(path for path in store.stored() if run_id in path and path.endswith(f"artifacts/{name}"))


def load(run_id: str) -> str:
    return str(mlflow.artifacts.load_text(f"runs:/{run_id}/note.txt"))


def test_planted_plaintext_is_refused(store: Store, experiment: str, tmp_path: Path) -> None:
    with securemfg.step("training"):
        run_id = a_run()
        store.put(place(store, run_id), b"planted")
        target = tmp_path / "target"
        target.mkdir()
        with pytest.raises(DecryptionError, match=r"not encrypted.*plaintext_reads.*planted it"):
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="note.txt", dst_path=str(target))
        assert list(target.iterdir()) == []


def test_a_planted_model_is_refused_before_it_is_unpickled(local_store: Store, local_experiment: str) -> None:
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    class Boom:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(Path("pwned").absolute()),))

    import pickle

    model = LogisticRegression().fit(np.array([[0.0], [1.0]]), [0, 1])
    with securemfg.step("training"):
        with mlflow.start_run():
            info = mlflow.sklearn.log_model(
                model, name="press", pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
            )
        pickled = next(path for path in local_store.stored() if info.model_id in path and path.endswith("model.pkl"))
        local_store.put(pickled, pickle.dumps(Boom()))
        with pytest.raises(DecryptionError, match="not encrypted"):
            mlflow.sklearn.load_model(info.model_uri)
    assert not Path("pwned").exists()


def test_an_artifact_moved_between_runs_is_refused(store: Store, experiment: str) -> None:
    with securemfg.step("training"):
        one, two = a_run("one"), a_run("two")
        stored = store.stored()
        store.put(place(store, two), stored[place(store, one)])
        with pytest.raises(SecureMfgError, match=r"run key|moved or swapped"):
            load(two)
        assert load(one) == "one"


def test_an_artifact_moved_with_its_record_is_refused(local_store: Store, local_experiment: str) -> None:
    with securemfg.step("training"):
        one, two = a_run("one"), a_run("two")
        stored = local_store.stored()
        record = next(path for path in stored if one in path and "/.securemfg/keys/" in path)
        folder = Path(local_store.artifact_location or "") / record.replace(one, two)
        folder.write_bytes(stored[record])
        local_store.put(place(local_store, two), stored[place(local_store, one)])
        with pytest.raises(DecryptionError, match="moved or swapped"):
            load(two)


def test_an_artifact_renamed_inside_its_run_is_refused(local_store: Store, local_experiment: str) -> None:
    with securemfg.step("training"):
        with mlflow.start_run() as run:
            mlflow.log_text("small batch", "limits.txt")
            mlflow.log_text("everything", "note.txt")
        stored = local_store.stored()
        local_store.put(place(local_store, run.info.run_id), stored[place(local_store, run.info.run_id, "limits.txt")])
        with pytest.raises(DecryptionError, match="'securemfg:path' = 'limits.txt'"):
            load(run.info.run_id)


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty"])
def test_damaged_ciphertext_is_refused(local_store: Store, local_experiment: str, damage: str) -> None:
    with securemfg.step("training"):
        run_id = a_run("x" * 3000)
        path = place(local_store, run_id)
        data = bytearray(local_store.stored()[path])
        if damage == "flip":
            data[-100] ^= 1
        data = {"flip": data, "cut": data[:-1], "grow": data + b"\0", "empty": bytearray()}[damage]
        local_store.put(path, bytes(data))
        with pytest.raises(DecryptionError):
            load(run_id)


def test_a_missing_record_is_said_and_nothing_is_loaded(store: Store, experiment: str) -> None:
    with securemfg.step("training"):
        run_id = a_run()
        from securemfg.artifacts.keyring import KEYRING

        KEYRING.clear()
        store.remove(next(path for path in store.stored() if run_id in path and "/.securemfg/keys/" in path))
        with pytest.raises(KeyUnavailable, match=r"record .* cannot be had"):
            load(run_id)


def test_no_key_means_no_write(local_store: Store, local_experiment: str) -> None:
    Path("securemfg.toml").write_text('[keys]\ndefault = "local:keys/absent.key"\n')
    with (
        securemfg.step("training"),
        pytest.raises(KeyUnavailable, match=r"absent\.key is missing"),
        mlflow.start_run(),
    ):
        mlflow.log_text("the recipe", "note.txt")
    assert local_store.stored() == {}


def test_a_store_that_loses_the_record_gets_no_artifact(
    local_store: Store, local_experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from securemfg.artifacts.keyring import KEYRING
    from securemfg.artifacts.repository import EncryptedRepository

    with securemfg.step("training"), mlflow.start_run() as run:
        KEYRING.clear()  # a sealed tag may have made one
        monkeypatch.setattr(EncryptedRepository, "put_record", lambda *_: None)
        with pytest.raises(SecureMfgError, match="record"):
            mlflow.log_text("the recipe", "note.txt")
    assert not any(path.endswith("note.txt") and run.info.run_id in path for path in local_store.stored())


def test_our_own_folder_is_refused_as_a_user_path(local_store: Store, local_experiment: str) -> None:
    Path("x.esdk").write_text("x")
    with securemfg.step("training"), mlflow.start_run() as run:
        for path in (".securemfg", ".securemfg/keys", "a/.securemfg"):
            with pytest.raises(EncryptionError, match="reserved"):
                mlflow.log_artifact("x.esdk", path)
        mlflow.log_artifact("x.esdk")
        with pytest.raises(EncryptionError, match="reserved"):
            mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path=".securemfg")


def test_a_path_out_of_the_root_is_refused(local_store: Store, local_experiment: str) -> None:
    Path("x.txt").write_text("x")
    with (
        securemfg.step("training"),
        mlflow.start_run(),
        pytest.raises(mlflow.MlflowException, match="Invalid artifact path"),
    ):
        mlflow.log_artifact("x.txt", "../../elsewhere")


def test_a_scheme_taken_away_after_activation_stops_the_write(local_store: Store, local_experiment: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as registry
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_text("kept", "first.txt")
        before = registry._registry[""]
        with pytest.raises(EncryptionError, match="for bare paths cannot be registered again"):
            registry.register("", LocalArtifactRepository)
        dict.__setitem__(registry._registry, "", LocalArtifactRepository)  # past the guard
        try:
            with pytest.raises(EncryptionError, match="bypass securemfg for bare paths"):
                mlflow.log_text("the recipe", "note.txt")
        finally:
            dict.__setitem__(registry._registry, "", before)
    assert not any(path.endswith("note.txt") and run.info.run_id in path for path in local_store.stored())


def test_activation_and_deactivation_are_symmetrical() -> None:
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as registry

    before = dict(registry._registry)
    securemfg.artifacts.activate()
    securemfg.artifacts.activate()
    assert securemfg.artifacts.active()
    assert registry._registry != before
    securemfg.artifacts.deactivate()
    assert securemfg.artifacts.active()
    securemfg.artifacts.deactivate()
    assert not securemfg.artifacts.active()
    assert registry._registry == before
    with pytest.raises(ConfigError, match="more often"):
        securemfg.artifacts.deactivate()


def test_the_plugin_alone_changes_nothing(local_store: Store, local_experiment: str) -> None:
    run_id = a_run("plain")
    assert local_store.stored()[place(local_store, run_id)] == b"plain"


def test_below_encrypt_from_artifacts_stay_plaintext_and_that_is_a_choice(
    local_store: Store, local_experiment: str
) -> None:
    with securemfg.step("training", sensitivity="public"):
        run_id = a_run("for everybody")
    assert local_store.stored()[place(local_store, run_id)] == b"for everybody"


def test_an_old_plaintext_run_is_read_when_the_settings_say_so_and_that_is_audited(
    local_store: Store, local_experiment: str
) -> None:
    from securemfg.audit.verification import read_events
    from securemfg.workflow import default_workflow

    run_id = a_run("older than securemfg")
    Path("securemfg.toml").write_text('[artifacts]\nplaintext_reads = "audit"\n')
    with securemfg.step("training"):
        assert load(run_id) == "older than securemfg"
    events = list(read_events(default_workflow().config.home / "journal"))
    assert [e["resource"]["id"] for e in events if e["action"] == "settings.weakened"] == ["artifacts.plaintext_reads"]
    assert [e["outcome"] for e in events if e["action"] == "artifact.refused"] == ["failure"]


def test_activation_before_mlflow_is_imported_works_and_a_broken_plugin_cannot_pass(own_place: Path) -> None:
    code = (
        "import sys, securemfg\n"
        "with securemfg.step('training'):\n"
        "    assert 'mlflow' not in sys.modules\n"
        "    import mlflow\n"
        "    from securemfg.artifacts.activation import ownership\n"
        "    assert all(ownership().values()) and len(ownership()) > 10, ownership()\n"
        "    print('owned')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "owned", done.stderr[-2000:]


def test_each_process_makes_its_own_run_key(local_store: Store, local_experiment: str) -> None:
    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_text("parent", "parent.txt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            try:
                mlflow.log_text("child", "child.txt", run_id=run.info.run_id)
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        records = [path for path in local_store.stored() if run.info.run_id in path and "/.securemfg/keys/" in path]
        assert len(records) == 2
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/child.txt") == "child"


def test_assets_with_different_keys_need_all_of_them(local_store: Store, local_experiment: str) -> None:
    from securemfg.artifacts.keyring import KEYRING
    from securemfg.encryption import create_local_key
    from securemfg.workflow import reset

    for name in ("a", "b"):
        create_local_key(Path(f"keys/{name}.key"))
    Path("flow.yaml").write_text(
        "data_assets:\n  - {name: one, sensitivity: internal}\n  - {name: two, sensitivity: internal}\n"
    )
    lines = ['catalog = "flow.yaml"', "[keys]", 'one = "local:keys/a.key"', 'two = "local:keys/b.key"']
    Path("securemfg.toml").write_text("\n".join([*lines, 'default = "local:keys/a.key"', ""]))
    with securemfg.step("training", assets=["one", "two"]):
        run_id = a_run("both")
        KEYRING.clear()
        assert load(run_id) == "both"
    reset()
    shutil.move("keys/b.key", "keys/b.gone")
    with securemfg.step("evaluation", assets=["one"]), pytest.raises(DecryptionError, match="no key at hand"):
        load(run_id)


def test_nothing_readable_is_left_in_temporary_folders(
    local_store: Store, local_experiment: str, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    code = (
        "import mlflow, securemfg\n"
        f"mlflow.set_tracking_uri({local_store.tracking_uri!r}); mlflow.set_experiment({local_experiment!r})\n"
        "with securemfg.step('training'), mlflow.start_run() as run:\n"
        "    mlflow.log_text('canary-55', 'note.txt')\n"
        "    assert mlflow.artifacts.load_text(f'runs:/{run.info.run_id}/note.txt') == 'canary-55'\n"
        "    print(mlflow.artifacts.download_artifacts(f'runs:/{run.info.run_id}/note.txt'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    left = [path for path in temporary.rglob("*") if path.is_file() and b"canary-55" in path.read_bytes()]
    assert left == []
    assert not Path(done.stdout.strip()).exists()
