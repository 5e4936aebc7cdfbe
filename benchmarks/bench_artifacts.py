"""MLflow with and without encryption: files and models, a local folder and S3 (moto). Interleaved processes.

Targets (with / without): 10 KiB file 1.7x local, 1.2x S3; 1 GiB local 1.3x log and download, S3 1.1x; log_model 1.05x
by default, +120 ms with pip_requirements; load_model 2x + 15 ms at 200 KiB, 2x at 100 MiB.

Free memory of a virtual machine may be back at its host within seconds, and getting it again costs several times a
copy. So what is timed finds memory that was touched just before, in both variants: a file is written and removed, or
(`touch`) as much memory as several models need.

    python bench_artifacts.py [ROUNDS] [MEBIBYTES] [PART ...]     PART: small, model, default, large, s3; all if none
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import Spread, child, interleaved, keep, table

START = """
import contextlib, json, os, shutil, sys, tempfile, time, logging, warnings
warnings.simplefilter("ignore"); logging.disable(logging.WARNING)
on, place = sys.argv[1] == "on", sys.argv[2]
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
if place.startswith("s3:"):
    os.environ.update(AWS_ENDPOINT_URL=sys.argv[3], MLFLOW_S3_ENDPOINT_URL=sys.argv[3], AWS_ACCESS_KEY_ID="a",
                      AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="eu-central-1")
import mlflow, mlflow.sklearn
mlflow.set_tracking_uri("sqlite:///" + os.path.abspath("mlflow.db"))
mlflow.set_experiment(experiment_id=mlflow.create_experiment("bench", artifact_location=place))
import securemfg
step = securemfg.step("training") if on else contextlib.nullcontext()
def timed(work):
    began = time.perf_counter(); work(); return time.perf_counter() - began
def touch(mebibytes=2048):
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        for _ in range(mebibytes): file.write(bytes(1 << 20))
def middle(times): return sorted(times)[len(times) // 2]
def rss():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
"""
SMALL = (
    START
    + """
open("small", "wb").write(os.urandom(10240))
with step, mlflow.start_run() as run:
    repository = mlflow.store.artifact.artifact_repository_registry.get_artifact_repository(run.info.artifact_uri)
    for n in range(30): repository.log_artifact("small", f"warm/{n}")
    times = sorted(timed(lambda n=n: repository.log_artifact("small", f"d/{n}")) for n in range(200))
print(json.dumps({"log": times[100]}))
"""
)
LARGE = (
    START
    + """
size, count = int(sys.argv[4]), int(sys.argv[5])
block = os.urandom(1 << 20)
with open("large", "wb") as file:
    for _ in range(size): file.write(block)
os.sync()
with step, mlflow.start_run() as run:
    repository = mlflow.store.artifact.artifact_repository_registry.get_artifact_repository(run.info.artifact_uri)
    open("tiny", "wb").write(b"x"); repository.log_artifact("tiny")
    logs, downs = [], []
    for n in range(count):  # the first makes the others' memory
        os.sync()
        logs.append(timed(lambda: repository.log_artifact("large", f"d/{n}")))
        if n < count - 1: repository.delete_artifacts(f"d/{n}")
    for n in range(count):
        os.sync(); os.mkdir("down")
        downs.append(timed(lambda: repository.download_artifacts(f"d/{count - 1}/large", "down")))
        assert os.path.getsize(f"down/d/{count - 1}/large") == size << 20
        shutil.rmtree("down")
print(json.dumps({"log": middle(logs[1:] or logs), "download": middle(downs[1:] or downs), "rss": rss()}))
"""
)
MODEL = (
    START
    + """
import numpy
from sklearn.linear_model import LinearRegression
size = int(sys.argv[4])
model = LinearRegression().fit(numpy.zeros((2, 1)), numpy.zeros(2))
model.ballast = numpy.random.default_rng(0).bytes(size)
options = json.loads(sys.argv[5])
with step, mlflow.start_run():
    mlflow.sklearn.log_model(model, name="warm", pip_requirements=["scikit-learn"])
    times = sorted(timed(lambda: mlflow.sklearn.log_model(model, name="m", **options)) for _ in range(int(sys.argv[6])))
    uri = mlflow.sklearn.log_model(model, name="again", pip_requirements=["scikit-learn"]).model_uri
    mlflow.sklearn.load_model(uri)
    loads = []
    for _ in range(5):
        touch(2048 if size > 1 << 20 else 64)
        loads.append(timed(lambda: mlflow.sklearn.load_model(uri)))
print(json.dumps({"log": middle(times), "load": middle(loads)}))
"""
)


@contextmanager
def moto() -> Iterator[str]:
    code = (
        "from moto.server import ThreadedMotoServer\nimport time\n"
        "s = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False); s.start()\n"
        "print(s.get_host_and_port()[1], flush=True)\n"
        "time.sleep(36000)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        for _ in range(100):
            try:
                request = urllib.request.Request(f"{address}/bench", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        server.kill()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    parts = sys.argv[3:] or ["small", "model", "default", "large", "s3"]
    rows: list[tuple[str, ...]] = []
    figures: dict[str, Any] = {}

    def measure(
        title: str, code: str, place: Callable[[Path], str], target: dict[str, str], *more: str, times: int = 0
    ) -> None:
        def run(on: str) -> Any:
            with tempfile.TemporaryDirectory() as folder:
                os.sync()
                return child(code, on, place(Path(folder)), endpoint, *more, cwd=Path(folder))

        results = interleaved({"off": lambda: run("off"), "on": lambda: run("on")}, times or rounds)
        for what, goal in target.items():
            off, on = (Spread([one[what] for one in results[name]]) for name in ("off", "on"))
            rows.append((
                f"{title}: {what}", f"{on.median / off.median:.2f}", goal, f"{(on.median - off.median) * 1e3:+.1f}",
                off.shown(1e3), on.shown(1e3),
            ))  # fmt: skip
            figures[f"{title}: {what}"] = {"off": off.plain(), "on": on.plain()}
            print(rows[-1], flush=True)
        if "rss" in results["on"][0]:
            figures[f"{title}: rss"] = {name: max(one["rss"] for one in runs) for name, runs in results.items()}
            print(figures[f"{title}: rss"])

    def local(folder: Path) -> str:
        return str(folder / "store")

    with moto() as endpoint:
        bucket = f"s3://bench/{os.getpid()}"
        if "small" in parts:
            measure("10 KiB local", SMALL, local, {"log": "1.70x"})
            measure("10 KiB S3", SMALL, lambda _: bucket, {"log": "1.20x"})
        if "model" in parts:
            pinned = '{"pip_requirements": ["scikit-learn"]}'
            goals = {"log": "+120 ms", "load": "2x + 15 ms"}
            measure("sklearn model 200 KiB, pinned", MODEL, local, goals, "200000", pinned, "5")
            measure("sklearn model 100 MiB, pinned", MODEL, local, {"load": "2.00x"}, str(100 << 20), pinned, "1")
        if "default" in parts:  # MLflow infers the requirements in a process of its own, which takes seconds
            measure("sklearn model, default", MODEL, local, {"log": "1.05x"}, "1000", "{}", "1")
        if "large" in parts:
            goals = {"log": "1.30x", "download": "1.30x"}
            measure(f"{size} MiB local", LARGE, local, goals, str(size), "4" if size < 4096 else "1")
        if "s3" in parts:  # moto reads the whole object for each range of a download: 1 GiB takes more than a minute
            goals = {"log": "1.10x", "download": "1.10x"}
            measure(f"{size} MiB S3", LARGE, lambda _: bucket, goals, str(size), "1")
    table(
        f"MLflow with and without encryption, {rounds} rounds (min / median / max, ms)",
        ("what", "x without", "target", "more ms", "without", "with"),
        rows,
    )
    keep("artifacts-" + "-".join(parts), figures)


if __name__ == "__main__":
    main()
