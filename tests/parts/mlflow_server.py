"""MLflow stores: a local one (SQLite and a folder), a real `mlflow server` with proxied artifacts, and S3 on moto.

A store is what a user points MLflow at, and what lies behind it: `stored()` gives every artifact byte that is kept.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import missing, until


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where MLflow's client writes, and how to see what was written."""

    name: str
    tracking_uri: str
    artifact_location: str | None  # for new experiments; None: the tracking store's own
    stored: Callable[[], dict[str, bytes]]  # every stored artifact by its path
    put: Callable[[str, bytes], None]  # overwrite one stored artifact, as someone with access to the store could
    remove: Callable[[str], None]


def folder_store(name: str, tracking_uri: str, folder: Path, location: str | None) -> Store:
    def stored() -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return Store(
        name=name,
        tracking_uri=tracking_uri,
        artifact_location=location,
        stored=stored,
        put=lambda path, data: (folder / path).write_bytes(data) and None,
        remove=lambda path: (folder / path).unlink(),
    )


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated SQLite tracking store: making it takes seconds, so tests share it, with experiments of their own."""
    try:
        import mlflow  # noqa: F401
    except ImportError:
        missing("MLflow", "pip install 'securemfg[mlflow]'")
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    code = (
        "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore;"
        "SqlAlchemyStore(sys.argv[1], sys.argv[2])"
    )
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{database}", str(database.parent / "unused")],
        check=True, capture_output=True, env=environment,
    )  # fmt: skip
    return database


@contextmanager
def serving(folder: Path, database: Path, destination: str, **environment: str) -> Iterator[str]:
    """A real `mlflow server` that proxies artifacts to `destination`: its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", destination],
            cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={"HOME": str(folder), "PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true", **environment},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"mlflow server ended: {log.read_text()[-2000:]}")
        try:
            return bool(urllib.request.urlopen(f"{url}/health", timeout=2).status == 200)
        except OSError:
            return False

    try:
        until(up, within=90, what="mlflow server")
        yield url
    finally:
        with suppress(ProcessLookupError):  # it ended by itself, and the error above says why
            os.killpg(process.pid, 15)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)


@pytest.fixture(scope="session")
def _mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("mlflow-server")
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    temporary = folder / "tmp"  # its own, so that it can be searched
    temporary.mkdir()
    with serving(folder, mlflow_database, str(artifacts), TMPDIR=str(temporary)) as url:
        yield url, artifacts


@pytest.fixture(scope="session")
def _mlflow_presigning(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path, _moto: str) -> Iterator[str]:
    with serving(
        tmp_path_factory.mktemp("mlflow-presigning"), mlflow_database, "s3://plant/mlflow",
        MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD="true", MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD="true",
        MLFLOW_S3_ENDPOINT_URL=_moto, AWS_ENDPOINT_URL=_moto, AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="eu-central-1",
    ) as url:  # fmt: skip
        yield url


@pytest.fixture
def local_store(mlflow_database: Path, own_place: Path) -> Store:
    folder = own_place / "artifacts"
    folder.mkdir()
    return folder_store("local", f"sqlite:///{mlflow_database}", folder, str(folder))


@pytest.fixture
def server_store(_mlflow_server: tuple[str, Path]) -> Store:
    url, folder = _mlflow_server
    return folder_store("server", url, folder, None)


def bucket_store(name: str, tracking_uri: str, location: str | None) -> Store:
    import boto3

    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="plant", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    def stored() -> dict[str, bytes]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="plant")
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {key: s3.get_object(Bucket="plant", Key=key)["Body"].read() for key in keys}

    return Store(
        name=name,
        tracking_uri=tracking_uri,
        artifact_location=location,
        stored=stored,
        put=lambda path, data: s3.put_object(Bucket="plant", Key=path, Body=data) and None,
        remove=lambda path: s3.delete_object(Bucket="plant", Key=path) and None,
    )


@pytest.fixture
def s3_store(mlflow_database: Path, aws: str) -> Store:
    return bucket_store("s3", f"sqlite:///{mlflow_database}", "s3://plant/mlflow")


@pytest.fixture
def presigned_store(_mlflow_presigning: str, aws: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A server that hands out presigned addresses: large files go to S3 and back in parts, past the server."""
    for setting, value in {
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # what is not there is asked for again and again
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "6000000",
        "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": "5242880",
        "MLFLOW_MULTIPART_DOWNLOAD_MINIMUM_FILE_SIZE": "6000000",
        "MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE": "5242880",
    }.items():
        monkeypatch.setenv(setting, value)
    return bucket_store("presigned", _mlflow_presigning, None)


@pytest.fixture(params=["local", "server", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each kind of store in turn."""
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found


@pytest.fixture
def experiment(store: Store) -> Iterator[str]:
    """MLflow pointed at `store`, in a new experiment; MLflow's own process-wide state is put back."""
    yield from use(store)


@pytest.fixture
def local_experiment(local_store: Store) -> Iterator[str]:
    yield from use(local_store)


def use(store: Store) -> Iterator[str]:
    import uuid

    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store.tracking_uri)
    name = f"experiment-{uuid.uuid4().hex[:12]}"
    mlflow.create_experiment(name, artifact_location=store.artifact_location and f"{store.artifact_location}/{name}")
    mlflow.set_experiment(name)
    yield name
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)
    mlflow.tracking.fluent._active_experiment_id = None  # it means nothing in another tracking store
