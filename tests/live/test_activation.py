"""Encryption on and off: by call, by setting, in child processes; never off by accident, never half."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import securemfg
from securemfg.errors import ConfigError, EncryptionError
from tests.parts.mlflow_server import Store
from tests.parts.trail import events, settings

mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")

MESSAGE = b"\x02\x04\x78"


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    from securemfg.artifacts import activation

    activation.reset()


def registry() -> dict[str, object]:
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    return _artifact_repository_registry._registry


def register(scheme: str, factory: object) -> None:
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    _artifact_repository_registry.register(scheme, factory)


def stored_of(store: Store, run_id: str) -> dict[str, bytes]:
    return {path: data for path, data in store.stored().items() if run_id in path}


def with_key(text: str) -> None:
    """Settings with a key that is there."""
    from securemfg.encryption import create_local_key

    if not Path("keys/press.key").exists():
        create_local_key(Path("keys/press.key"))
    settings(f'keys.default = "local:keys/press.key"\n{text}')


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=150, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


# -- children

CHILD = """
import sys
{before}
import mlflow
mlflow.set_tracking_uri({uri!r})
mlflow.set_experiment({name!r})
with mlflow.start_run() as run:
    print(run.info.run_id, flush=True)
    mlflow.log_text("the recipe", "note.txt")
    print(mlflow.artifacts.load_text(f"runs:/{{run.info.run_id}}/note.txt"), flush=True)
"""


def in_child(store: Store, experiment: str, before: str = "", **environment: str) -> tuple[str, str, dict[str, bytes]]:
    code = CHILD.format(uri=store.tracking_uri, name=experiment, before=before)
    done = python("-c", code, **environment)
    run_id, _, rest = done.stdout.strip().partition("\n")
    assert run_id, done.stderr[-3000:]
    return rest, done.stderr, stored_of(store, run_id)


def test_children_are_told_by_the_environment_and_it_is_put_back(tmp_path: Path) -> None:
    os.environ["SECUREMFG_CONFIG"] = str(settings(folder=tmp_path / "settings"))
    before = dict(os.environ)
    securemfg.artifacts.activate()
    securemfg.artifacts.activate()
    assert os.environ["SECUREMFG_ACTIVE"] == "1"
    assert os.environ["SECUREMFG_CONFIG"] == before["SECUREMFG_CONFIG"]
    assert os.environ["SECUREMFG_HOME"] == str(tmp_path / "settings" / ".securemfg")
    from securemfg.config import load

    assert "SECUREMFG_HOME" not in load().environment  # told to children only
    securemfg.artifacts.deactivate()
    assert os.environ["SECUREMFG_ACTIVE"] == "1"
    os.environ["SECUREMFG_HOME"] = "/elsewhere"  # somebody changed it meanwhile: theirs stays
    securemfg.artifacts.deactivate()
    assert dict(os.environ) == {**before, "SECUREMFG_HOME": "/elsewhere"}
    del os.environ["SECUREMFG_HOME"], os.environ["SECUREMFG_CONFIG"]


def test_an_explicit_workflow_s_settings_reach_children_and_not_this_process(tmp_path: Path) -> None:
    from securemfg.config import load
    from securemfg.workflow import Workflow

    path = settings('mode = "observe"\n', tmp_path / "other")
    (tmp_path / "other" / "pyproject.toml").write_text('[tool.securemfg.audit]\nsite = "plant"\n')
    with Workflow.from_config(path.parent) as workflow:
        workflow.activate_artifacts()
        assert os.environ["SECUREMFG_CONFIG"] == str(path.parent)  # both files of the folder count
        assert load().enforcing
        assert not load(environment=dict(os.environ)).enforcing
    assert "SECUREMFG_CONFIG" not in os.environ


def test_a_child_of_an_active_process_encrypts_with_the_same_key(
    local_store: Store, local_experiment: str, tmp_path: Path
) -> None:
    with securemfg.step("training"):
        pass  # a step turned it on, and it stays
    read, errors, stored = in_child(local_store, local_experiment, f"import os; os.chdir({str(tmp_path)!r})")
    assert read == "the recipe", errors[-2000:]
    assert any(path.endswith("note.txt") for path in stored)
    assert all(data[:3] == MESSAGE for data in stored.values())
    assert events("artifact.encrypted")  # in this process's journal folder


def test_by_setting_a_process_encrypts_without_a_step(local_store: Store, local_experiment: str) -> None:
    with_key("[artifacts]\nactivate = true\n")
    read, errors, stored = in_child(local_store, local_experiment)
    assert read == "the recipe", errors[-2000:]
    assert stored
    assert all(data[:3] == MESSAGE for data in stored.values())


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("sys.modules['cryptography.hazmat.primitives.ciphers.aead'] = None", "ciphers.aead"),
        ("sys.modules['securemfg.artifacts.repository'] = None", "securemfg.artifacts.repository"),
        ("import pathlib; pathlib.Path('securemfg.toml').write_text('[artifacts]\\nmood = 1')", "unknown setting"),
        (
            "import pathlib; pathlib.Path('securemfg.toml').write_text('keys.default = \"local:none.key\"')",
            "is missing",
        ),
    ],
)
def test_what_is_broken_in_a_child_makes_its_write_fail(
    local_store: Store, local_experiment: str, before: str, says: str
) -> None:
    code = CHILD.format(uri=local_store.tracking_uri, name=local_experiment, before=before)
    done = python("-c", code, SECUREMFG_ACTIVE="1")
    assert done.returncode == 1
    assert "the recipe" not in done.stdout
    assert local_store.stored() == {}
    assert says in done.stderr


def test_a_plugin_that_cannot_turn_it_on_stops_the_import_of_mlflow() -> None:
    code = "import sys; sys.modules['securemfg.artifacts.activation'] = None; import mlflow"
    done = python("-c", code, SECUREMFG_ACTIVE="1")
    assert done.returncode == 1
    assert "EncryptionError: artifacts are to be encrypted here, and securemfg cannot be loaded" in done.stderr


def test_mlflow_s_servers_do_not_encrypt_and_its_clients_do() -> None:
    for command, client in (("gc", False), ("artifacts", True)):
        done = python("-X", "importtime", "-m", "mlflow", command, "--help", SECUREMFG_ACTIVE="1")
        assert done.returncode == 0
        assert ("securemfg.artifacts.activation" in done.stderr) is client


@pytest.mark.parametrize(
    ("argv", "environment", "server"),
    [
        (["/usr/bin/python", "-m", "mlflow", "server", "--port", "5000"], {}, True),
        (["python", "/opt/v/bin/mlflow", "ui"], {}, True),
        (["/opt/v/bin/mlflow", "--env-file", "x", "gc", "--older-than", "1d"], {}, True),
        (["mlflow", "--env-file=x", "db", "upgrade"], {}, True),
        (["python", "/opt/v/lib/mlflow/__main__.py", "server"], {}, True),
        (["python", "-m", "uvicorn", "--host", "::1", "mlflow.server.fastapi_app:app"], {}, True),
        (["gunicorn", "-b", ":5000", "mlflow.server:app"], {}, True),
        (["python", "-c", "from multiprocessing.spawn import spawn_main"], {"_MLFLOW_SERVER_FILE_STORE": "x"}, True),
        (["python", "-m", "mlflow", "models", "serve", "-m", "models:/a/1"], {}, False),
        (["mlflow", "artifacts", "download", "server"], {}, False),
        (["mlflow", "run", "server"], {}, False),
        (["python", "train.py", "mlflow", "server"], {"MLFLOW_TRACKING_URI": "http://x"}, False),
        (["python"], {}, False),
    ],
)
def test_a_server_is_known_by_its_command_and_its_workers(
    argv: list[str], environment: dict[str, str], server: bool
) -> None:
    from securemfg.artifacts.asked import is_server

    assert is_server(argv, environment) is server


def test_asking_reads_the_settings_only_when_they_speak_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from securemfg.artifacts import asked

    assert not asked.asked()
    for value, expected in (("1", True), ("true", True), ("0", False), ("", False), ("no", False)):
        monkeypatch.setenv("SECUREMFG_ACTIVE", value)
        assert asked.asked() is expected
    monkeypatch.setenv("SECUREMFG_ACTIVE", "1")
    monkeypatch.setenv("SECUREMFG_DISABLED", "1")
    assert not asked.asked()
    monkeypatch.delenv("SECUREMFG_DISABLED")
    monkeypatch.delenv("SECUREMFG_ACTIVE")
    monkeypatch.setenv("SECUREMFG_ARTIFACTS__ACTIVATE", "1")
    assert asked.asked()
    monkeypatch.setenv("SECUREMFG_ARTIFACTS__ACTIVATE", "0")
    settings("[artifacts]\nactivate = true\n")
    assert not asked.asked()
    monkeypatch.delenv("SECUREMFG_ARTIFACTS__ACTIVATE")
    assert asked.asked()
    settings("[artifacts]\nactivate = 'perhaps'\n")
    assert asked.asked()  # nobody knows: then each write says what is wrong


# -- a registry that stays ours


def test_an_owned_scheme_is_not_registered_again_and_a_new_one_is_owned(local_store: Store) -> None:
    from securemfg.artifacts.activation import ownership

    def other(uri: str, **_: object) -> object:
        raise AssertionError("never asked")

    before = dict(registry())
    securemfg.artifacts.activate()
    for take in (
        lambda: register("s3", other),
        lambda: register("", other),
        lambda: registry().update(s3=other),
        lambda: registry().pop("s3"),
        lambda: registry().clear(),
        lambda: registry().__delitem__("s3"),
    ):
        with pytest.raises(
            EncryptionError, match=r"cannot be (registered again|removed) while artifacts are encrypted"
        ):
            take()
    assert [event["outcome"] for event in events("artifact.refused")] == ["denied"] * 6
    register("plant", other)
    assert ownership()["plant"]
    register("s3", registry()["s3"])  # what is there already changes nothing
    assert all(ownership().values())
    securemfg.artifacts.deactivate()
    assert registry() == {**before, "plant": other}
    assert type(registry()) is dict
    register("s3", before["s3"])
    del registry()["plant"]


# -- off only when asked, and nothing on its way is left plain


def test_deactivation_waits_for_what_is_queued(local_store: Store, local_experiment: str) -> None:
    import numpy as np

    with securemfg.step("training"), mlflow.start_run() as run:
        for number in range(12):
            mlflow.log_image(np.full((64, 64, 3), number, dtype=np.uint8), key="press", step=number, synchronous=False)
            mlflow.log_metric("torque", number, step=number, synchronous=False)
        securemfg.artifacts.deactivate()
        assert not securemfg.artifacts.active()
        images = {path: data for path, data in stored_of(local_store, run.info.run_id).items() if "/images/" in path}
        assert len(images) == 24  # each with its small copy
        assert all(data[:3] == MESSAGE for data in images.values())
        assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "torque")) == 12


def test_queues_that_cannot_be_emptied_keep_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from securemfg.artifacts import draining

    def stuck() -> None:
        raise RuntimeError("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(draining, "_traces", stuck)
        securemfg.artifacts.activate()
        with pytest.raises(EncryptionError, match=r"the store is away.*encryption stays on"):
            securemfg.artifacts.deactivate()
        assert securemfg.artifacts.active()
    securemfg.artifacts.deactivate()
    assert not securemfg.artifacts.active()


def test_a_repository_kept_from_before_does_not_write_plaintext_afterwards(
    local_store: Store, local_experiment: str
) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    Path("note.txt").write_text("the recipe")
    with mlflow.start_run() as run:
        securemfg.artifacts.activate()
        kept = get_artifact_repository(run.info.artifact_uri)
        securemfg.artifacts.deactivate()
        for log in (lambda: kept.log_artifact("note.txt"), lambda: kept.log_artifacts(".")):
            with pytest.raises(EncryptionError, match="switched off while this was on its way"):
                log()
        assert stored_of(local_store, run.info.run_id) == {}
        mlflow.log_text("plain again", "note.txt")  # and MLflow is as it was
    assert list(stored_of(local_store, run.info.run_id).values()) == [b"plain again"]


def test_at_exit_encryption_stays_on_for_whatever_comes_after_us(local_store: Store, local_experiment: str) -> None:
    code = (
        "import atexit\n"
        "def late():\n"
        "    mlflow.log_text('the recipe', 'late.txt', run_id=run.info.run_id)\n"
        "atexit.register(late)\n"  # the first registered runs last
        "import mlflow, securemfg\n"
        f"mlflow.set_tracking_uri({local_store.tracking_uri!r}); mlflow.set_experiment({local_experiment!r})\n"
        "with securemfg.step('training'), mlflow.start_run() as run: print(run.info.run_id)\n"
    )
    done = python("-c", code)
    stored = stored_of(local_store, done.stdout.strip())
    assert all(data[:3] == MESSAGE for data in stored.values()), done.stderr[-2000:]
    assert any(path.endswith("late.txt") for path in stored), done.stderr[-2000:]


def test_what_nobody_classified_is_encrypted_whatever_the_threshold(local_store: Store, local_experiment: str) -> None:
    with_key('[artifacts]\nencrypt_from = "pii"\n')
    securemfg.artifacts.activate()
    with mlflow.start_run() as run:
        mlflow.log_text("no step", "unclassified.txt")
        with securemfg.step("training", sensitivity="confidential"):
            mlflow.log_text("below", "classified.txt")
    stored = stored_of(local_store, run.info.run_id)
    assert {Path(path).name: data[:3] == MESSAGE for path, data in stored.items() if "/.securemfg/" not in path} == {
        "unclassified.txt": True,
        "classified.txt": False,
    }


def test_what_a_parent_asked_for_wakes_with_the_first_artifact_and_counts_once(
    local_store: Store, local_experiment: str
) -> None:
    from securemfg.artifacts import activation
    from securemfg.artifacts.state import STATE

    settings("[artifacts]\nmood = 'sad'\n")
    with mlflow.start_run() as run:
        pass
    activation.inherit()
    assert not Path(".securemfg").exists()  # nothing read, nothing made
    with pytest.raises(ConfigError, match="unknown setting"):
        mlflow.log_text("the recipe", "note.txt", run_id=run.info.run_id)
    with_key("")
    threads = [threading.Thread(target=mlflow.log_text, args=("x", f"{n}.txt", run.info.run_id)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert STATE.holders == 1
    stored = stored_of(local_store, run.info.run_id)
    assert len([path for path in stored if path.endswith(".txt")]) == 4
    assert all(data[:3] == MESSAGE for data in stored.values())
    securemfg.artifacts.deactivate()
    assert not securemfg.artifacts.active()


def test_threads_that_turn_it_on_and_off_at_random_leave_everything_as_it_was() -> None:
    before = (dict(registry()), type(registry()), dict(os.environ), tempfile.gettempdir)
    failures: list[BaseException] = []

    def turn(seed: int) -> None:
        chance = random.Random(seed)
        held = 0
        try:
            for _ in range(40):
                if held and chance.random() < 0.5:
                    securemfg.artifacts.deactivate()
                    held -= 1
                else:
                    securemfg.artifacts.activate()
                    held += 1
                if held:
                    assert securemfg.artifacts.active()
                    assert os.environ["SECUREMFG_ACTIVE"] == "1"
            for _ in range(held):
                securemfg.artifacts.deactivate()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=turn, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert not securemfg.artifacts.active()
    assert (dict(registry()), type(registry()), dict(os.environ), tempfile.gettempdir) == before
