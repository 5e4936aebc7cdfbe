"""A canary in every kind of value that MLflow's client sends: found with the plugin off, and with it on only where
docs/leaks.md says so. Over a folder, a real server and S3.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.parts.canary import Hunt, hidden, word

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "leaks.md"
TRACKING, ARTIFACTS, SERVER = "tracking store", "artifact store", "server"
CLIENT_LOG, CLIENT_FILES, TRAIL = "client log", "client files", "audit trail"
PLACES = {TRACKING, ARTIFACTS, SERVER, CLIENT_LOG, CLIENT_FILES, TRAIL}


def declared(*, server: bool) -> dict[str, set[str]]:
    """The page's table: every word that may be found, and where. Some places exist only where there is a server."""
    table: dict[str, set[str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and "`" in line:
            _, words, where = line.strip("| ").split(" | ")
            always, _, served = f"; {where}".partition("; with a server: ")
            places = f"{always.removeprefix('; ')}, {served if server else ''}".split(", ")
            table |= {kind: set(filter(None, places)) for kind in re.findall(r"`([^`]+)`", words)}
    return table


@dataclass(frozen=True, kw_only=True)
class Left:
    """What one process left behind after a pass without the plugin and one with it."""

    kinds: set[str]  # words and numbers that it wrote
    off: dict[str, set[str]]  # what was found of the first pass: places by kind
    on: dict[str, set[str]]
    read_off: dict[str, Any]
    read_on: dict[str, Any]
    server: bool


@pytest.fixture(scope="module", params=["local", "server", "s3"])
def left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Left:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")
    database: Path = request.getfixturevalue("mlflow_database")
    place = tmp_path_factory.mktemp(f"leaks-{request.param}")
    stores: dict[str, Callable[[], Iterator[Setting]]] = {
        "local": lambda: folder(place, database),
        "server": lambda: server(request, database),
        "s3": lambda: bucket(request, database),
    }
    setting = next(stores[request.param]())
    off, on = secrets.token_hex(4), secrets.token_hex(4)
    result = run(place, setting, [[off, False], [on, True]])
    found = search(place, setting, {token: result[token]["texts"] for token in (off, on)})
    return Left(
        kinds={*result[off]["kinds"], *result[off]["texts"]},
        off=found[off],
        on=found[on],
        read_off=without_ids(result[off], off),
        read_on=without_ids(result[on], on),
        server=request.param == "server",
    )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A kind of store: how the client reaches it, and what lies behind it."""

    tracking: str
    location: str | None
    look: Callable[[Hunt], None]
    environment: dict[str, str]


def folder(place: Path, database: Path) -> Iterator[Setting]:
    artifacts = place / "artifacts"

    def look(hunt: Hunt) -> None:
        hunt.look_below(TRACKING, database.parent)
        hunt.look_below(ARTIFACTS, artifacts)

    yield Setting(tracking=f"sqlite:///{database}", location=str(artifacts), look=look, environment={})


def server(request: pytest.FixtureRequest, database: Path) -> Iterator[Setting]:
    url, artifacts = request.getfixturevalue("_mlflow_server")

    def look(hunt: Hunt) -> None:
        hunt.look_below(TRACKING, database.parent)
        hunt.look_below(ARTIFACTS, artifacts)
        hunt.look_below(SERVER, artifacts.parent, but=artifacts)

    yield Setting(tracking=url, location=None, look=look, environment={})


def bucket(request: pytest.FixtureRequest, database: Path) -> Iterator[Setting]:
    import boto3

    environment = {
        "AWS_ENDPOINT_URL": request.getfixturevalue("_moto"),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    s3 = boto3.client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="eu-central-1",
        aws_access_key_id="testing", aws_secret_access_key="testing",
    )  # fmt: skip
    name = f"leaks-{secrets.token_hex(4)}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    def look(hunt: Hunt) -> None:
        hunt.look_below(TRACKING, database.parent)
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
            for item in page["Contents"]:
                answer = s3.get_object(Bucket=name, Key=item["Key"])
                hunt.look_at_all(ARTIFACTS, {item["Key"]: answer["Body"].read()})
                hunt.look(f"{ARTIFACTS}: metadata", repr([answer["Metadata"], answer["ContentType"]]).encode())

    yield Setting(tracking=f"sqlite:///{database}", location=f"s3://{name}/mlflow", look=look, environment=environment)


def run(place: Path, setting: Setting, passes: list[list[Any]]) -> dict[str, Any]:
    """The workload in a process of its own, with a home, a temporary and a working folder of its own."""
    for name in ("home", "tmp", "work", "inputs"):
        (place / name).mkdir()
    job = {
        "tracking": setting.tracking,
        "location": setting.location,
        "inputs": str(place / "inputs"),
        "passes": passes,
        "result": str(place / "result.json"),
        "log": str(place / "client.log"),
    }
    (place / "job.json").write_text(json.dumps(job))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "NO_PROXY": "127.0.0.1,localhost",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT": "1",  # autolog infers them in a process of its own: not our subject
        **setting.environment,
    }
    with (place / "printed.log").open("wb") as printed:
        done = subprocess.run(
            [sys.executable, "-m", "tests.parts.workload", str(place / "job.json")],
            cwd=place / "work", env=environment, stdout=printed, stderr=subprocess.STDOUT, timeout=170, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (place / "printed.log").read_text()[-5000:]
    result: dict[str, Any] = json.loads((place / "result.json").read_text())
    return result


def search(place: Path, setting: Setting, passes: dict[str, dict[str, str]]) -> dict[str, dict[str, set[str]]]:
    """Everything that remains once the process has ended."""
    hunt = Hunt(passes)
    setting.look(hunt)
    trail = place / "work" / ".securemfg"
    hunt.look_below(TRAIL, trail)
    hunt.look_below(CLIENT_FILES, place / "work", but=trail)
    hunt.look_below(CLIENT_FILES, place / "home")
    hunt.look_below(CLIENT_FILES, place / "tmp")
    hunt.look_below(CLIENT_FILES, Path("/dev/shm"))
    for log in ("client.log", "printed.log"):
        hunt.look_at_file(CLIENT_LOG, place / log)
    return {token: dict(found) for token, found in hunt.found.items()}


def without_ids(result: dict[str, Any], token: str) -> dict[str, Any]:
    """What was read, with one token and one set of numbers, so that two passes can be compared."""
    text = json.dumps(result["read"]).replace(token, "TOKEN")
    for kind, digits in result["texts"].items():
        text = text.replace(digits, str(len(kind)))
    read: dict[str, Any] = json.loads(text)
    return read


def places(found: set[str]) -> set[str]:
    return {place.split(":")[0] for place in found}


@pytest.mark.parametrize("form", hidden("x"))
def test_the_search_sees_through_every_form(form: str) -> None:
    hunt = Hunt({"0a1b2c3d": {}, "ffffffff": {}})
    hunt.look("here", hidden(word("param", "0a1b2c3d"))[form])
    assert hunt.found == {"0a1b2c3d": {"param": {"here"}}, "ffffffff": {}}


def test_the_page_declares_places_that_exist() -> None:
    table = declared(server=True)
    assert len(table) >= 30
    assert set().union(*table.values()) <= PLACES


def test_every_canary_is_found_with_the_plugin_off(left: Left) -> None:
    assert len(left.kinds) > 150
    stored = {kind for kind, found in left.off.items() if places(found) & {TRACKING, ARTIFACTS}}
    assert left.kinds - stored == set()


def test_nothing_is_left_that_the_page_does_not_declare(left: Left) -> None:
    table = declared(server=left.server)
    leaked = [
        f"{kind}: {', '.join(undeclared)}"
        for kind, found in sorted(left.on.items())
        if (undeclared := sorted(where for where in found if where.split(":")[0] not in table.get(kind, set())))
    ]
    assert not leaked, "\n" + "\n".join(leaked)


def test_everything_that_the_page_declares_is_still_true(left: Left) -> None:
    untrue = {
        kind: sorted(gone)
        for kind, where in declared(server=left.server).items()
        if (gone := where - places(left.on.get(kind, set())))
    }
    assert untrue == {}


def test_what_was_sealed_reads_back_as_without_the_plugin(left: Left) -> None:
    assert set(left.read_on) == set(left.read_off)
    for name, value in left.read_on.items():
        assert value == left.read_off[name], name


def test_what_is_read_back_holds_the_values_that_were_written(left: Left) -> None:
    """The comparison above would hold for two empty answers too."""
    text = json.dumps(left.read_off)
    for kind in ("param", "param-long", "tag-long", "table-append", "input-example", "span-output", "prompt-long"):
        assert word(kind, "TOKEN") in text or kind == "input-example", kind
    assert left.read_off["predictions"]["alias"] == left.read_off["predictions"]["id"] != []


SCRIPT = """
import sys
sys.path.insert(0, {examples!r})
import mlflow, training
uri = training.train()
run = mlflow.last_active_run()
model = mlflow.sklearn.load_model(uri)
print(uri)
print(sorted(run.data.params.items()), run.data.metrics)
print(mlflow.artifacts.load_text(f"runs:/{{run.info.run_id}}/notes.txt"))
print([info.path for info in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)])
print(model.coef_.round(6).tolist(), model.predict([[1.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]).tolist())
"""


def test_an_unchanged_script_prints_the_same_with_the_plugin_and_without(mlflow_database: Path, tmp_path: Path) -> None:
    def printed(name: str, **environment: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT.format(examples=str(ROOT / "examples"))],
            cwd=folder, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{mlflow_database}", **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return re.sub(r"m-[0-9a-f]{32}", "m-ID", done.stdout)

    with_it, without = printed("on"), printed("off", SECUREMFG_DISABLED="1")
    assert "coefficients: " in without
    assert with_it == without
