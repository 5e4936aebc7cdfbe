"""The tracking store: what MLflow keeps of runs, models and the registry is sealed, and reads back as it was.

Over SQLite, a real server and a folder of files.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import securemfg
from securemfg.errors import EncryptionError, KeyUnavailable
from tests.parts.mlflow_server import Store, use
from tests.parts.tracked import ask, holding

pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")

CONFIDENTIAL = "confidential"


@pytest.fixture(params=["local", "server"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found


@pytest.fixture
def word() -> str:
    return f"canary-{uuid.uuid4().hex[:12]}"


def settings(**lines: str) -> None:
    Path("securemfg.toml").write_text("".join(f"[{table}]\n{text}\n" for table, text in lines.items()))


def local_key() -> str:
    """A key in a file, for tests with settings of their own: then there is no embedded default."""
    from securemfg.encryption.keys import create_local_key

    folder = Path.home() / "keys"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}.key"
    create_local_key(path)
    return f"local:{path}"


def write(word: str, experiment: str) -> tuple[str, str]:
    """Every kind of value that a run, a model and the registry have. Returns the run's id and the model's."""
    import mlflow
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from sklearn.linear_model import LogisticRegression

    client = MlflowClient()
    mlflow.set_experiment_tag("owner", f"{word} experiment")
    mlflow.set_experiment_tag("mlflow.note.content", f"{word} experiment note")
    other = mlflow.create_experiment(f"{experiment}-{uuid.uuid4().hex[:6]}", tags={"made": f"{word} with"})
    assert mlflow.get_experiment(other).tags["made"] in {f"{word} with", "<redacted>"}
    with mlflow.start_run(run_name=f"{word} name", description=f"{word} note", tags={"shift": f"{word} first"}) as run:
        mlflow.log_param("one", f"{word} param")
        mlflow.log_params({"two": f"{word} params", "number": 7})
        mlflow.set_tag("tag", f"{word} tag")
        mlflow.set_tag("mlflow.source.git.branch", f"{word} branch")
        run_id = run.info.run_id
        client.log_batch(
            run_id, [Metric("m", 1.5, 1, 0)], [Param("batch", f"{word} batch")], [RunTag("b", f"{word} b")]
        )
        mlflow.log_param("queued", f"{word} queued", synchronous=False)
        mlflow.set_tag("queued", f"{word} queued", synchronous=False)
        mlflow.flush_async_logging()
        frame = pd.DataFrame({f"{word} column": [1.0]})
        data = mlflow.data.from_pandas(frame, name="press", source=f"/plant/{word}.csv")
        mlflow.log_input(data, context="training", tags={"line": f"{word} input"})
        model = mlflow.sklearn.log_model(
            LogisticRegression().fit([[0.0], [1.0]], [0, 1]),
            name="model",
            tags={"by": f"{word} model tag"},
            params={"depth": f"{word} depth"},
            pip_requirements=["scikit-learn"],
        )
        mlflow.set_logged_model_tags(model.model_id, {"later": f"{word} later"})
        mlflow.log_model_params({"more": f"{word} more"}, model.model_id)
    name = f"registered-{experiment}-{uuid.uuid4().hex[:6]}"
    client.create_registered_model(name, tags={"of": f"{word} rm tag"}, description=f"{word} rm text")
    version = client.create_model_version(
        name,
        model.model_uri,
        run_id,
        model_id=model.model_id,
        tags={"v": f"{word} mv tag"},
        description=f"{word} mv text",
    )
    client.set_registered_model_tag(name, "set", f"{word} rm set")
    client.set_model_version_tag(name, version.version, "set", f"{word} mv set")
    return run_id, name


def read(run_id: str, name: str) -> dict[str, Any]:
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()
    run = mlflow.get_run(run_id)
    (given,) = run.inputs.dataset_inputs
    experiment = mlflow.get_experiment(run.info.experiment_id)
    model = mlflow.search_logged_models([run.info.experiment_id], output_format="list")[0]
    registered, version = client.get_registered_model(name), client.get_model_version(name, "1")
    versions = [version, registered.latest_versions[0]]
    own = {key: value for key, value in run.data.tags.items() if "." not in key}
    searched = mlflow.search_runs([run.info.experiment_id], output_format="list")
    assert {found.info.run_id: found.data.params for found in searched}[run_id] == run.data.params
    return {
        "name": [run.info.run_name, run.data.tags["mlflow.runName"]],
        "note": run.data.tags["mlflow.note.content"],
        "branch": run.data.tags["mlflow.source.git.branch"],
        "params": run.data.params,
        "tags": own,
        "metrics": run.data.metrics,
        "data": [given.dataset.schema, given.dataset.source, {tag.key: tag.value for tag in given.tags}],
        "experiment": [experiment.tags["owner"], experiment.tags["mlflow.note.content"]],
        "model": [model.params, {key: value for key, value in model.tags.items() if "." not in key}],
        "registered": [registered.tags, registered.description],
        "version": [[{k: v for k, v in one.tags.items() if "." not in k}, one.description] for one in versions],
    }


def test_values_are_readable_in_the_store_without_the_step_and_not_with_it(
    store: Store, experiment: str, word: str, mlflow_database: Path
) -> None:
    run_id, name = write(word, experiment)
    plain = read(run_id, name)
    columns = holding(mlflow_database, word)
    assert {
        "params.value", "tags.value", "runs.name", "experiment_tags.value", "datasets.dataset_schema",
        "datasets.dataset_source", "input_tags.value", "logged_model_params.param_value", "logged_model_tags.tag_value",
        "registered_model_tags.value", "registered_models.description", "model_version_tags.value",
        "model_versions.description",
    } <= columns  # fmt: skip
    other = word[::-1]
    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        run_id, name = write(other, experiment)
        assert holding(mlflow_database, other) == set()
        assert json.loads(json.dumps(read(run_id, name)).replace(other, word)) == plain


def test_a_folder_of_files_keeps_no_value_either(monkeypatch: pytest.MonkeyPatch, own_place: Path, word: str) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = own_place / "mlruns"
    files = Store(
        name="files", tracking_uri=folder.as_uri(), artifact_location=None, stored=dict,
        put=lambda *_: None, remove=lambda *_: None,
    )  # fmt: skip

    def found() -> list[str]:
        return [str(path) for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]

    def log() -> str:
        with mlflow.start_run(run_name=f"{word} name", tags={"shift": f"{word} first"}) as run:
            mlflow.log_param("one", f"{word} param")
            mlflow.log_param("one", f"{word} param")
            mlflow.log_params({"one": f"{word} param", "two": f"{word} params"})
            mlflow.log_param("queued", f"{word} queued", synchronous=False)
            mlflow.flush_async_logging()
            for change in (lambda: mlflow.log_param("one", "x"), lambda: mlflow.log_params({"one": "x"})):
                with pytest.raises(
                    mlflow.MlflowException, match=f"value='{word} param'.*Attempted logging new value 'x'"
                ):
                    change()
        return run.info.run_id

    for _ in use(files):
        log()
        assert len(found()) >= 5
        mlflow.set_experiment("other")
        before = set(found())
        with securemfg.step("training", sensitivity=CONFIDENTIAL):
            run = mlflow.get_run(log())
            assert run.data.params == {"one": f"{word} param", "two": f"{word} params", "queued": f"{word} queued"}
            assert run.info.run_name == f"{word} name"
        assert set(found()) == before


# -- params that were logged before -----------------------------------------------------------------------------------


def test_an_equal_param_is_logged_again_and_a_different_one_fails_as_in_mlflow(store: Store, experiment: str) -> None:
    import mlflow
    from mlflow import MlflowException

    def attempt() -> list[str]:
        said = []
        with mlflow.start_run() as run:
            mlflow.log_param("alloy", "4140")
            mlflow.log_param("alloy", "4140")
            mlflow.log_params({"alloy": "4140", "grade": "a"})
            mlflow.log_params({"grade": "a", "new": "n"})
            for change in (
                lambda: mlflow.log_param("alloy", "4130"),
                lambda: mlflow.log_params({"alloy": "4130", "never": "x"}),
                lambda: mlflow.log_params({"grade": "a", "alloy": "4130"}),
            ):
                with pytest.raises(MlflowException) as refused:
                    change()
                said.append(f"{type(refused.value).__name__} {refused.value.error_code} {refused.value}")
            assert mlflow.get_run(run.info.run_id).data.params == {"alloy": "4140", "grade": "a", "new": "n"}
        return [text.replace(run.info.run_id, "RUN") for text in said]

    plain = attempt()
    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        assert attempt() == plain
    assert all("4140" in text and "4130" in text for text in plain)


def test_the_queue_compares_values_too(store: Store, experiment: str) -> None:
    import mlflow
    from mlflow import MlflowException

    with securemfg.step("training", sensitivity=CONFIDENTIAL), mlflow.start_run() as run:
        for _ in range(2):
            mlflow.log_param("alloy", "4140", synchronous=False).wait()
        with pytest.raises(MlflowException, match=r"Changing param values is not allowed.*4140.*4130"):
            mlflow.log_params({"alloy": "4130"}, synchronous=False).wait()
        mlflow.flush_async_logging()
        assert mlflow.get_run(run.info.run_id).data.params == {"alloy": "4140"}


def test_a_param_of_before_is_compared_in_plain(local_store: Store, local_experiment: str) -> None:
    import mlflow

    with mlflow.start_run() as run:
        mlflow.log_param("alloy", "4140")
    with securemfg.step("training"), mlflow.start_run(run_id=run.info.run_id):
        mlflow.log_param("alloy", "4140")
        with pytest.raises(mlflow.MlflowException, match="4140"):
            mlflow.log_param("alloy", "4130")


def test_other_errors_of_mlflow_stay_what_they_are(store: Store, experiment: str) -> None:
    import mlflow
    from mlflow import MlflowClient, MlflowException
    from mlflow.entities import Param

    with securemfg.step("training"), mlflow.start_run() as run:
        with pytest.raises(MlflowException, match="Invalid value"):
            mlflow.log_param("../x", "1")
        with pytest.raises(MlflowException, match="Duplicate parameter keys"):
            MlflowClient().log_batch(run.info.run_id, params=[Param("a", "1"), Param("a", "2")])
        with pytest.raises(MlflowException, match=r"not found|does not exist"):
            MlflowClient().log_param("0" * 32, "a", "1")


# -- length -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4000, 6000, 8000, 300_000])
def test_a_long_value_goes_whole_to_an_encrypted_artifact(
    store: Store, experiment: str, word: str, mlflow_database: Path, length: int
) -> None:
    import mlflow

    value = "L" * (length - len(word)) + word
    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_param("long", value)
        mlflow.set_tag("long", value)
        mlflow.set_tag("long", value)
        mlflow.log_param("long", value)
        found = mlflow.get_run(run.info.run_id)
        assert (found.data.params["long"], found.data.tags["long"]) == (value, value)
        assert [info.path for info in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)] == []
    ((param,),) = ask(mlflow_database, "SELECT value FROM params WHERE run_uuid = ?", run.info.run_id)
    ((tag,),) = ask(mlflow_database, "SELECT value FROM tags WHERE run_uuid = ? AND key = 'long'", run.info.run_id)
    assert len(param) <= 6000
    assert len(tag) <= 8000
    stored = {path: data for path, data in store.stored().items() if run.info.run_id in path}
    kept = [data for path, data in stored.items() if "/.securemfg/values/" in path and path.endswith(".esdk")]
    assert bool(kept) == (length > 4000)
    assert all(data[:3] == b"\x02\x04\x78" and word.encode() not in data for data in kept)


def test_a_planted_or_swapped_long_value_is_refused(local_store: Store, local_experiment: str) -> None:
    import mlflow

    with securemfg.step("training"):
        with mlflow.start_run() as run:
            mlflow.log_params({"a": "A" * 9000, "b": "B" * 9000})
        one, two = [path for path in local_store.stored() if "/values/" in path and path.endswith(".esdk")]
        data = local_store.stored()
        local_store.put(one, data[two])
        local_store.put(two, b"planted")
        params = mlflow.get_run(run.info.run_id).data.params
    assert {text[:9] for text in params.values()} == {"<sealed: "}
    assert any("moved or swapped" in text for text in params.values())
    assert any("planted" in text for text in params.values())


def test_what_has_no_place_for_its_length_is_refused_and_not_cut(store: Store, experiment: str) -> None:
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()
    name = f"registered-{experiment}"
    with securemfg.step("training"):
        with pytest.raises(EncryptionError, match="too long"):
            mlflow.set_experiment_tag("long", "L" * 19_000)
        with pytest.raises(EncryptionError, match="too long"):
            client.create_registered_model(name, tags={"long": "L" * 99_000})
        _, name = write("x", experiment)
        with pytest.raises(EncryptionError, match="too long"):
            client.create_model_version(
                name,
                f"models:/{name}/1",
                model_id=client.get_model_version(name, "1").model_id,
                tags={"long": "L" * 99_000},
            )
        assert [str(found.version) for found in client.search_model_versions(f"name = '{name}'")] == ["1"]


# -- authenticity ------------------------------------------------------------------------------------------------------


def test_a_value_that_was_moved_is_marked_and_fails_nothing(
    local_store: Store, local_experiment: str, mlflow_database: Path
) -> None:
    import mlflow

    with securemfg.step("training"):
        with mlflow.start_run() as one:
            mlflow.log_params({"alloy": "4140", "grade": "a", "cut": "c", "kind": "k"})
        with mlflow.start_run() as two:
            mlflow.log_params({"alloy": "4130"})
        stored = dict(ask(mlflow_database, "SELECT key, value FROM params WHERE run_uuid = ?", one.info.run_id))
        for run_id, key, value in (
            (one.info.run_id, "grade", stored["alloy"]),  # another key's
            (two.info.run_id, "alloy", stored["alloy"]),  # another run's
            (one.info.run_id, "cut", stored["cut"][:-9]),
        ):
            ask(mlflow_database, "UPDATE params SET value = ? WHERE run_uuid = ? AND key = ?", value, run_id, key)
        ask(mlflow_database, "INSERT INTO tags VALUES ('kind', ?, ?)", stored["kind"], one.info.run_id)  # a param's
        run = mlflow.get_run(one.info.run_id)
        assert run.data.params["alloy"] == "4140"
        assert "moved or swapped" in run.data.params["grade"]
        assert run.data.params["cut"].startswith("<sealed: ")
        assert "moved or swapped" in run.data.tags["kind"]
        moved = mlflow.get_run(two.info.run_id).data.params["alloy"]
        assert moved.startswith("<sealed: ")
        assert "4140" not in moved


def test_somebody_without_the_key_reads_marks_and_somebody_with_it_values(
    local_store: Store, local_experiment: str, word: str
) -> None:

    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        run_id, name = write(word, local_experiment)
    code = (
        "import json, mlflow, securemfg\n"
        "from tests.live.test_tracking import read\n"
        f"mlflow.set_tracking_uri({local_store.tracking_uri!r})\n"
        "with securemfg.step('evaluation'):\n"
        f"    print('READ', json.dumps(read({run_id!r}, {name!r})))\n"
    )

    def reader(**environment: str) -> Any:
        root = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]), **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.split("READ ")[1])

    with securemfg.step("evaluation"):
        here = read(run_id, name)
    assert reader() == here
    stranger = reader(SECUREMFG_HOME=str(Path.home() / "other"))
    assert [place for place, value in stranger.items() if word in json.dumps(value)] == []
    assert stranger["params"]["one"].startswith("<sealed: ")
    assert "no key at hand opens this message" in stranger["params"]["one"]
    assert stranger["metrics"] == here["metrics"]


def test_erasing_a_run_makes_its_values_unreadable_and_nothing_fails(
    local_store: Store, local_experiment: str, word: str
) -> None:
    import mlflow

    from securemfg.artifacts.erasure import erase_runs
    from securemfg.workflow import default_workflow

    with securemfg.step("training"):
        run_id, _ = write(word, local_experiment)
        with mlflow.start_run() as other:
            mlflow.log_param("kept", "k")
        run = mlflow.get_run(run_id)
        erase_runs(run.info.artifact_uri, emit=default_workflow().emit, by="the officer", reason="request 7")
        erased = mlflow.get_run(run_id)
        found = mlflow.search_runs([run.info.experiment_id], output_format="list")
        assert mlflow.get_run(other.info.run_id).data.params == {"kept": "k"}
    assert all(text.startswith("<sealed: ") and "erased" in text for text in erased.data.params.values())
    assert "request 7" in erased.data.params["one"]
    assert erased.data.metrics == {"m": 1.5}
    assert {run.info.run_id for run in found} == {run_id, other.info.run_id}


def test_a_run_key_that_values_need_is_not_retired_with_its_artifacts(
    local_store: Store, local_experiment: str, word: str
) -> None:
    from dataclasses import replace

    import mlflow

    from securemfg.artifacts.bulk import Job, JobLog, Verb
    from securemfg.artifacts.bulk import run as work
    from securemfg.artifacts.work import retire
    from securemfg.workflow import default_workflow

    with securemfg.step("training"), mlflow.start_run() as run:
        mlflow.log_param("alloy", word)
        mlflow.log_text(word, "note.txt")
        workflow = default_workflow()
        job = Job(verb=Verb.REENCRYPT, uri=run.info.artifact_uri, rules=workflow.rules)
        with JobLog(Path.cwd() / "log", job) as log:
            assert work(job, emit=workflow.emit, log=log).failed == []
            gone, used = retire(replace(job, retired=log.retired or frozenset()), emit=workflow.emit, by="anna")
        assert (len(gone), len(used)) == (0, 1)
        assert mlflow.get_run(run.info.run_id).data.params == {"alloy": word}
        assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt") == word


# -- rules ------------------------------------------------------------------------------------------------------------


def test_redacted_values_are_gone_for_everyone(store: Store, word: str, mlflow_database: Path) -> None:
    settings(artifacts='tracking = "redact"', keys=f'default = "{local_key()}"')
    for experiment in use(store):
        with securemfg.step("training"):
            run_id, name = write(word, experiment)
            found = read(run_id, name)
        assert holding(mlflow_database, word) == set()
        assert word not in json.dumps(found)
        assert set(found["params"].values()) == {"<redacted>"}
        assert found["name"][0].startswith("run-")
        assert found["data"][2] == {"mlflow.data.context": "training", "line": "<redacted>"}


def test_a_table_says_level_by_level(local_store: Store, word: str, mlflow_database: Path) -> None:
    import mlflow

    settings(
        artifacts='tracking = { public = "seal", internal = "allow", pii = "redact" }',
        keys=f'default = "{local_key()}"',
    )
    for _ in use(local_store):
        runs = {}
        for level in ("public", "internal", "confidential", "pii"):
            with securemfg.step("training", sensitivity=level), mlflow.start_run() as run:
                mlflow.log_param("a", f"{word} {level}")
            runs[level] = run.info.run_id
        stored = {
            level: ask(mlflow_database, "SELECT value FROM params WHERE run_uuid = ?", run_id)[0][0]
            for level, run_id in runs.items()
        }
        assert stored["public"].startswith("securemfg:1:")
        assert stored["internal"] == f"{word} internal"
        assert stored["confidential"].startswith("securemfg:1:")
        assert stored["pii"] == "<redacted>"


def test_a_runs_name_is_replaced_where_it_is_confidential_and_reads_back(
    store: Store, experiment: str, word: str, mlflow_database: Path
) -> None:
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()

    def shown(run_id: str) -> str:
        ((name,),) = ask(mlflow_database, "SELECT name FROM runs WHERE run_uuid = ?", run_id)
        ((tag,),) = ask(mlflow_database, "SELECT value FROM tags WHERE run_uuid = ? AND key = 'mlflow.runName'", run_id)
        assert name == tag
        return str(name)

    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        with mlflow.start_run() as unnamed:
            pass
        assert shown(unnamed.info.run_id) == unnamed.info.run_name
        with mlflow.start_run(run_name=f"{word} 1") as run:
            run_id = run.info.run_id
            assert run.info.run_name == f"{word} 1"
        for name, rename in (
            (f"{word} 2", lambda name: client.update_run(run_id, name=name)),
            (f"{word} 3", lambda name: client.set_tag(run_id, "mlflow.runName", name)),
            (f"{word} 4", lambda name: client.log_batch(run_id, tags=[mlflow.entities.RunTag("mlflow.runName", name)])),
        ):
            rename(name)
            found = client.get_run(run_id)
            assert (found.info.run_name, found.data.tags["mlflow.runName"]) == (name, name)
            assert shown(run_id).startswith("run-")
            assert not any(key.startswith("securemfg.run") for key in found.data.tags)
    with securemfg.step("training", sensitivity="internal"):
        client.update_run(run_id, name="public name")
        assert client.get_run(run_id).info.run_name == "public name" == shown(run_id)


# -- registry ----------------------------------------------------------------------------------------------------------


def test_a_renamed_model_keeps_its_values(store: Store, experiment: str, word: str, mlflow_database: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        _, name = write(word, experiment)
        before = client.get_registered_model(name), client.get_model_version(name, "1")
        new = f"{name}-renamed"
        client.rename_registered_model(name, new)
        after = client.get_registered_model(new), client.get_model_version(new, "1")
        for one, other in zip(before, after, strict=True):
            assert (one.tags, one.description) == (other.tags, other.description)
        assert holding(mlflow_database, word) == set()


def test_a_copied_version_is_sealed_for_its_new_name(store: Store, experiment: str, word: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        _, name = write(word, experiment)
        client.set_registered_model_alias(name, "champion", "1")
        copied = client.copy_model_version(f"models:/{name}@champion", f"{name}-copy")
        found = client.get_model_version(f"{name}-copy", copied.version)
        assert (found.description, found.tags["v"]) == (f"{word} mv text", f"{word} mv tag")
        assert client.search_model_versions(f"name = '{name}-copy'")[0].tags == found.tags


def test_prompts_are_sealed_and_found(store: Store, experiment: str, word: str, mlflow_database: Path) -> None:
    import mlflow

    genai = pytest.importorskip("mlflow.genai")
    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        name = f"prompt-{experiment}"
        genai.register_prompt(name, word + " {{ x }}", commit_message=f"{word} message", tags={"a": f"{word} tag"})
        genai.set_prompt_alias(name, "best", 1)
        genai.set_prompt_tag(name, "b", f"{word} b")
        prompt = genai.load_prompt(f"prompts:/{name}@best")
        assert (prompt.template, prompt.commit_message, prompt.tags["a"]) == (
            word + " {{ x }}", f"{word} message", f"{word} tag",
        )  # fmt: skip
        assert [found.name for found in genai.search_prompts(f"name = '{name}'")] == [name]
        assert genai.get_prompt_tags(name)["b"] == f"{word} b"
        assert mlflow.MlflowClient().search_prompt_versions(name)[0].template == word + " {{ x }}"
    assert holding(mlflow_database, word) == set()


# -- keys and events ----------------------------------------------------------------------------------------------------


def test_one_key_is_made_for_a_run_and_one_for_all_that_has_no_root(
    local_store: Store, local_experiment: str, word: str
) -> None:
    from securemfg.audit.verification import read_events
    from securemfg.workflow import default_workflow

    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        run_id, name = write(word, local_experiment)
        write(word, local_experiment)
        read(run_id, name)
    events = list(read_events(default_workflow().config.home / "journal"))
    made = [
        event["detail"]["root"] for event in events if event["action"] == "key.created" and "root" in event["detail"]
    ]
    assert len(made) == len(set(made)) == 5  # two runs, two logged models, one carried
    assert "tracking/process" in made
    sealed = [event for event in events if event["action"] == "tracking.sealed"]
    assert len(sealed) == len({(event["resource"]["type"], event["resource"]["id"]) for event in sealed}) < 25
    assert word not in json.dumps(events)
    assert name not in json.dumps(sealed)


def test_a_key_out_of_reach_lets_nothing_go_out(local_store: Store, word: str, mlflow_database: Path) -> None:
    import mlflow
    from mlflow import MlflowClient

    key = local_key()
    settings(keys=f'default = "{key}"')
    for _ in use(local_store):
        with securemfg.step("training"):
            with mlflow.start_run() as run:
                pass
        Path(key.removeprefix("local:")).unlink()
        securemfg.workflow.reset()
        with securemfg.step("training"):
            client = MlflowClient()
            for write_it in (
                lambda client=client: client.log_param(run.info.run_id, "a", word),
                lambda client=client: client.log_param(run.info.run_id, "a", word, synchronous=False),
                lambda client=client: client.set_tag(run.info.run_id, "a", word),
                lambda: mlflow.start_run(run_name="x", tags={"a": word}),
                lambda: mlflow.set_experiment_tag("a", word),
                lambda: mlflow.initialize_logged_model("m", params={"a": word}),
                lambda client=client: client.create_registered_model(f"r-{word}", tags={"a": word}),
            ):
                with pytest.raises(KeyUnavailable):
                    write_it()
            running = mlflow.search_runs(filter_string="attributes.status = 'RUNNING'", output_format="list")
            assert running == []  # the run that could not be made as asked has failed
        assert holding(mlflow_database, word) == set()


# -- on and off -----------------------------------------------------------------------------------------------------------


def test_mlflow_is_as_it_was_afterwards(local_store: Store, local_experiment: str, word: str) -> None:
    import mlflow
    from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry
    from mlflow.tracking._tracking_service import utils
    from mlflow.tracking._tracking_service.registry import TrackingStoreRegistry

    before = TrackingStoreRegistry.get_store, ModelRegistryStoreRegistry.get_store
    raw = utils._get_store()
    write_queued = raw._async_logging_queue._logging_func
    with securemfg.step("training"):
        held = utils._get_store()
        assert type(held) is not type(raw)
        assert isinstance(held, type(raw))
        assert TrackingStoreRegistry.get_store is not before[0]
        with mlflow.start_run() as run:
            mlflow.log_param("a", word)
            mlflow.log_param("b", word, synchronous=False)
            mlflow.flush_async_logging()
            assert raw._async_logging_queue._logging_func is not write_queued
    securemfg.workflow.reset()
    assert (TrackingStoreRegistry.get_store, ModelRegistryStoreRegistry.get_store) == before
    assert utils._get_store() is raw
    assert raw._async_logging_queue._logging_func == write_queued
    assert mlflow.get_run(run.info.run_id).data.params["a"].startswith("securemfg:1:")
    assert held.get_run(run.info.run_id).data.params["a"].startswith("securemfg:1:")


def test_a_servers_own_registry_gives_mlflows_own_stores(local_store: Store, local_experiment: str) -> None:
    from mlflow.server.handlers import TrackingStoreRegistryWrapper

    with securemfg.step("training"):
        store = TrackingStoreRegistryWrapper().get_store(local_store.tracking_uri, str(Path.cwd()))
        assert type(store).__module__.startswith("mlflow.")


def test_a_registry_that_was_taken_back_stops_writes(
    local_store: Store, local_experiment: str, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    import mlflow
    from mlflow.tracking._tracking_service import utils
    from mlflow.tracking._tracking_service.registry import TrackingStoreRegistry

    with securemfg.step("training"), mlflow.start_run():
        held = utils._get_store()
        ours = TrackingStoreRegistry.get_store
        with monkeypatch.context() as patch:
            patch.setattr(TrackingStoreRegistry, "get_store", lambda registry, *args: ours(registry, *args))  # noqa: PLW0108
            with pytest.raises(EncryptionError, match="TrackingStoreRegistry.get_store was replaced"):
                mlflow.log_param("a", word)
            with pytest.raises(EncryptionError, match="was replaced"):
                mlflow.log_text(word, "note.txt")
        mlflow.log_param("a", word)
        assert held is not None


def test_a_write_that_nobody_knows_how_to_seal_is_refused_for_confidential_data(
    local_store: Store, word: str, mlflow_database: Path
) -> None:
    from mlflow import MlflowClient
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent

    def make() -> None:
        event = WebhookEvent(WebhookEntity.REGISTERED_MODEL, WebhookAction.CREATED)
        MlflowClient().create_webhook("hook", "https://203.0.113.7/x", [event], description=word)

    for _ in use(local_store):
        with securemfg.step("training", sensitivity=CONFIDENTIAL):
            with pytest.raises(EncryptionError, match=r"create_webhook\(\)"):
                make()
        assert holding(mlflow_database, word) == set()
        with contextlib.suppress(Exception), securemfg.step("training", sensitivity="internal"):
            make()  # whatever MLflow says to it, it is not refused by us


def test_a_filter_by_a_sealed_value_warns_once(local_store: Store, local_experiment: str) -> None:
    import mlflow

    with securemfg.step("training"), mlflow.start_run():
        mlflow.log_param("alloy", "4140")
        mlflow.log_metric("loss", 0.5)
        with pytest.warns(UserWarning, match=r"params\.alloy.*sealed"):
            assert mlflow.search_runs(filter_string="params.alloy = '4140'", output_format="list") == []
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            mlflow.search_runs(filter_string="params.alloy = '4140'")
            assert len(mlflow.search_runs(filter_string="metrics.loss = 0.5", output_format="list")) == 1


# -- many at once ----------------------------------------------------------------------------------------------------------


def test_sixteen_threads_log_to_one_run(local_store: Store, local_experiment: str, word: str) -> None:
    import mlflow
    from mlflow import MlflowClient

    from securemfg import context

    client = MlflowClient()
    with securemfg.step("training"), mlflow.start_run() as run:
        gate = threading.Barrier(16)

        def log(index: int) -> None:
            gate.wait()
            for one in range(3):
                client.log_param(run.info.run_id, f"p{index}-{one}", f"{word} {index}")
                client.set_tag(run.info.run_id, f"t{index}-{one}", f"{word} {index}")

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(context.carry(log), range(16)))
        data = mlflow.get_run(run.info.run_id).data
        assert {key: value for key, value in data.params.items() if value != f"{word} {key[1:].split('-')[0]}"} == {}
        assert len(data.params) == 48
        assert sum(key.startswith("t") for key in data.tags) == 48


def test_more_runs_than_are_opened_at_once_read_back(local_store: Store, local_experiment: str, word: str) -> None:
    import mlflow

    with securemfg.step("training"):
        for index in range(12):
            with mlflow.start_run():
                mlflow.log_param("index", f"{word} {index}")
        found = mlflow.search_runs(output_format="list")
        assert sorted(run.data.params["index"] for run in found) == sorted(f"{word} {index}" for index in range(12))


def test_what_is_queued_in_a_step_and_written_after_it_is_sealed(
    local_store: Store, local_experiment: str, word: str, mlflow_database: Path
) -> None:
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()
    with mlflow.start_run() as run:
        pass
    with securemfg.step("training", sensitivity=CONFIDENTIAL):
        waiting = [client.log_param(run.info.run_id, f"p{index}", word, synchronous=False) for index in range(20)]
    for one in waiting:
        one.wait()
    assert holding(mlflow_database, word) == set()


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    yield
    import mlflow

    while mlflow.active_run() is not None:
        mlflow.end_run()
