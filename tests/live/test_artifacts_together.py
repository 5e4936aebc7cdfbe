"""Encrypted artifacts among others: a garbage collector without the plugin, a deleted run, many writers at once, a killed
writer. Over a folder, a real server and S3.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import securemfg
from securemfg import workflow
from tests.parts.canary import Hunt, word
from tests.parts.mlflow_server import Store

MESSAGE = b"\x02\x04\x78"
TOKEN = "5e1f70c4"


@pytest.fixture(autouse=True)
def _mlflow() -> None:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")


def python(store: Store, code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that shares this one's settings and keys."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": store.tracking_uri},
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err[-3000:]
    return out


# MLflow's own command, in a Python that cannot import securemfg: its entry points fail, and the built-in ones serve.
WITHOUT_THE_PLUGIN = "import sys; sys.modules['securemfg'] = None; from mlflow.cli import cli; cli()"


def test_gc_without_the_plugin_removes_a_deleted_run_and_its_registered_model_still_loads(
    store: Store, experiment: str, mlflow_database: Path
) -> None:
    import mlflow
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features = np.array([[0.0], [1.0], [2.0], [3.0]])
    with securemfg.step("training", sensitivity="confidential"):
        with mlflow.start_run() as run:
            mlflow.log_text("recipe", "deep/er/note.txt")
            mlflow.log_param("alloy", "x" * 5_900)  # too long for the tracking store when it is sealed
            info = mlflow.sklearn.log_model(
                LogisticRegression().fit(features, [0, 0, 1, 1]), name="press",
                pip_requirements=["scikit-learn"], registered_model_name=experiment,
            )  # fmt: skip
        with mlflow.start_run() as kept:
            mlflow.log_text("kept", "note.txt")
    run_id = run.info.run_id
    assert any(run_id in path for path in store.stored())
    mlflow.delete_run(run_id)
    backend = f"sqlite:///{mlflow_database}"
    said(python(store, WITHOUT_THE_PLUGIN, "gc", "--backend-store-uri", backend, "--run-ids", run_id))
    left = store.stored()
    assert not [path for path in left if run_id in path]
    assert [path for path in left if info.model_id in path and path.endswith("MLmodel")]
    with pytest.raises(mlflow.exceptions.MlflowException):
        mlflow.get_run(run_id)
    workflow.reset()  # the keys are forgotten
    with securemfg.step("inference", sensitivity="confidential"):
        for uri in (f"models:/{experiment}/1", info.model_uri):
            assert mlflow.sklearn.load_model(uri).predict(features).tolist() == [0, 0, 1, 1]
        assert mlflow.artifacts.load_text(f"runs:/{kept.info.run_id}/note.txt") == "kept"


WRITER = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import mlflow, securemfg
run_id, name, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = mlflow.MlflowClient()
together = threading.Barrier(threads)

def write(number):
    own = f"{name}-{number}"
    together.wait(60)
    client.log_text(run_id, f"text of {own}", f"{own}.txt")
    client.log_text(run_id, f"shared {own}", f"shared/{own}.txt")
    client.log_dict(run_id, {"by": own}, f"dicts/{own}.json")
    client.log_param(run_id, own, f"param of {own}")
    client.set_tag(run_id, own, f"tag of {own}")
    client.log_metric(run_id, "torque", number, step=number)

with securemfg.step("training", sensitivity="confidential"):
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
"""


def test_two_processes_of_sixteen_threads_log_to_one_run_and_all_of_it_reads_back(
    store: Store, experiment: str
) -> None:
    import mlflow

    threads = 16
    with securemfg.step("training", sensitivity="confidential"):
        with mlflow.start_run() as run:
            mlflow.log_text("first", "first.txt")  # the local key is made once, before anyone needs it
        writers = [python(store, WRITER, run.info.run_id, name, str(threads)) for name in ("a", "b")]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n", writer.communicate()[1][-3000:]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            said(writer)
        names = [f"{name}-{number}" for name in "ab" for number in range(threads)]
        root = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
        assert {name: (root / f"{name}.txt").read_text() for name in names} == {n: f"text of {n}" for n in names}
        assert {name: (root / "shared" / f"{name}.txt").read_text() for name in names} == {
            n: f"shared {n}" for n in names
        }
        assert {name: (root / "dicts" / f"{name}.json").read_text().split('"')[3] for name in names} == dict(
            zip(names, names, strict=True)
        )
        data = mlflow.get_run(run.info.run_id).data
        assert {name: data.params[name] for name in names} == {n: f"param of {n}" for n in names}
        assert {name: data.tags[name] for name in names} == {n: f"tag of {n}" for n in names}
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "torque")
        assert sorted(metric.step for metric in history) == sorted(2 * list(range(threads)))
    mine = {path: data for path, data in store.stored().items() if run.info.run_id in path}
    assert len({path for path in mine if "/.securemfg/keys/" in path}) == 3  # no process shares another's run key
    assert all(data.startswith(MESSAGE) for data in mine.values())


KILLED = """
import os, sys, threading
import mlflow, securemfg
from pathlib import Path
moment, text = sys.argv[1:]
Path("parts").mkdir()
for number in range(12):
    Path("parts", f"part-{number:02}.bin").write_bytes(text.encode() * 5_000)

class Recipe(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        return text

def encrypting():
    frame = sys._getframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("securemfg.encryption"):
            return True
        frame = frame.f_back
    return False

def stop(event, arguments):
    if event == moment and any("part-07.bin" in str(one) for one in arguments[:2]) and encrypting():
        print(mlflow.active_run().info.run_id, flush=True)
        threading.Event().wait()  # until we are killed

with securemfg.step("training", sensitivity="confidential"), mlflow.start_run():
    mlflow.log_text(text, "before.txt")
    sys.addaudithook(stop)
    mlflow.pyfunc.log_model(name="recipe", python_model=Recipe(), artifacts={"parts": "parts"}, pip_requirements=["mlflow"])
"""


def killed(store: Store, experiment: str, moment: str, folder: Path) -> str:
    """Kill -9 a process that logs a model, at the audited `moment` of its eighth file. Returns the run's id."""
    os.chdir(folder)  # what the user's own program makes lies in the temporary folder
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.tracking_uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, moment, word("killed", TOKEN)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert run_id, err[-3000:]
    assert process.returncode == -signal.SIGKILL
    return run_id


def check_after_the_kill(store: Store, experiment: str, run_id: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    stored = store.stored()
    hunt = Hunt({TOKEN: {}})
    hunt.look_at_all("store", stored)
    assert dict(hunt.found[TOKEN]) == {}
    (model,) = mlflow.search_logged_models([experiment_id], output_format="list")
    sent = {path: data for path, data in stored.items() if model.model_id in path}
    assert sent  # it was in the middle
    assert not any(path.endswith("part-07.bin") for path in sent)
    workflow.reset()
    assert not securemfg.artifacts.active()  # type: ignore[attr-defined]
    assert [info.path for info in client.list_artifacts(run_id)] == [".securemfg", "before.txt"]  # without the plugin
    assert client.list_logged_model_artifacts(model.model_id)
    with securemfg.step("evaluation", sensitivity="confidential"):
        assert [info.path for info in client.list_artifacts(run_id)] == ["before.txt"]
        assert client.list_logged_model_artifacts(model.model_id)
        assert mlflow.artifacts.load_text(f"runs:/{run_id}/before.txt") == word("killed", TOKEN)
        with pytest.raises(Exception, match="MLmodel|manifest|not signed|artifact"):
            mlflow.pyfunc.load_model(f"models:/{model.model_id}")  # half a model is no model
        with mlflow.start_run(run_id=run_id):
            mlflow.log_text("after", "after.txt")  # and the run goes on
        assert mlflow.artifacts.load_text(f"runs:/{run_id}/after.txt") == "after"


def test_a_writer_killed_in_the_middle_of_a_model_leaves_nothing_readable_and_a_store_that_lists(
    store: Store, experiment: str, tmp_path: Path
) -> None:
    check_after_the_kill(store, experiment, killed(store, experiment, "open", tmp_path))


def test_a_writer_killed_as_it_puts_a_file_in_place_leaves_nothing_readable(
    local_store: Store, local_experiment: str, tmp_path: Path
) -> None:
    run_id = killed(local_store, local_experiment, "os.link", tmp_path)
    check_after_the_kill(local_store, local_experiment, run_id)
