"""A real Dask cluster on this machine, its links TLS 1.3: the same bulk work, and a worker that dies in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from securemfg.artifacts.bulk import Job, JobLog, Outcome, Verb, run
from securemfg.artifacts.cluster import ClusterTls, dask_executor
from securemfg.artifacts.stores import Stored, open_store
from securemfg.encryption import create_local_key
from securemfg.errors import ConfigError, PlaintextRefused, TransportError
from securemfg.transport.certificates import DevelopmentCA
from securemfg.workflow import Workflow
from tests.parts import missing, until
from tests.parts.openbao import free_port

RUN = "0" * 31 + "1"
COUNT = 200


@dataclass
class Cluster:
    address: str
    tls: ClusterTls
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler and two workers of one thread each, with certificates of an authority of their own."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        missing("Dask", "pip install distributed")
    issued = DevelopmentCA.create(tmp_path / "ca").issue(["localhost", "127.0.0.1"])
    tls = ClusterTls(ca_file=issued.ca_file, cert_file=issued.certificate, key_file=issued.key)
    options = [
        "--tls-ca-file", str(tls.ca_file), "--tls-cert", str(tls.cert_file), "--tls-key", str(tls.key_file),
        "--no-dashboard",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "DASK_DISTRIBUTED__COMM__TLS__MIN_VERSION": "1.3",
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
    }
    address = f"tls://127.0.0.1:{free_port()}"
    log = (tmp_path / "dask.log").open("wb")

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *arguments, *options]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)

    scheduler = start("scheduler", "--host", address)
    worker = ["worker", address, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"]
    workers = [start(*worker) for _ in range(2)]
    made = Cluster(address, tls, scheduler, workers)

    def ready() -> bool:
        assert scheduler.poll() is None, (tmp_path / "dask.log").read_text()
        try:
            with dask_executor(address, tls, timeout=2) as (_, threads):
                return threads == 2
        except TransportError:
            return False

    until(ready, within=60, what="two workers")
    yield made
    for process in (*workers, scheduler):
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # Dask's own end can hang: it is not what is tested
            process.kill()
            process.wait(20)
    log.close()


@pytest.fixture
def workflow(tmp_path: Path) -> Iterator[Workflow]:
    create_local_key(Path("keys/default.key"))
    Path("securemfg.toml").write_text(f'[keys]\ndefault = "local:{Path("keys/default.key").absolute()}"\n')
    with Workflow.from_config("securemfg.toml") as made:
        yield made


def filled(uri: str) -> None:
    store = open_store(uri)
    for number in range(COUNT):
        store.write(f"{uri}/7/{RUN}/artifacts/part-{number:03}.bin", b"canary" * number)


def test_two_workers_reencrypt_200_artifacts_and_the_death_of_one_loses_nothing(
    cluster: Cluster, workflow: Workflow, tmp_path: Path
) -> None:
    uri = str(tmp_path / "store")
    filled(uri)
    run(Job(verb=Verb.ENCRYPT, uri=uri, rules=workflow.rules), emit=workflow.audit)
    before = {one.address: open_store(uri).read(one.address, 1 << 20) for one in open_store(uri).files()}
    seen: list[str] = []

    def killing(stored: Stored, _outcome: Outcome) -> None:
        seen.append(stored.address)
        if len(seen) == 50:
            cluster.workers[0].send_signal(signal.SIGKILL)

    job = Job(verb=Verb.REENCRYPT, uri=uri, rules=workflow.rules)
    with JobLog(tmp_path / "home", job) as log, dask_executor(cluster.address, cluster.tls) as (executor, threads):
        summary = run(job, emit=workflow.audit, log=log, executor=executor, workers=threads, watch=killing)
    assert cluster.workers[0].wait(20) == -signal.SIGKILL
    assert summary.failed == []
    assert summary.done + summary.reasons["has a fresh key already"] == COUNT
    for address, message in before.items():
        if not address.endswith(".esdk"):
            assert open_store(uri).read(address, 1 << 20) != message
    checked = run(Job(verb=Verb.VERIFY, uri=uri, rules=workflow.rules), emit=workflow.audit)
    assert checked.failed == []
    target = tmp_path / "out"
    assert run(Job(verb=Verb.DOWNLOAD, uri=uri, rules=workflow.rules, target=target), emit=workflow.audit).failed == []
    for number in range(COUNT):
        assert (target / "7" / RUN / "artifacts" / f"part-{number:03}.bin").read_bytes() == b"canary" * number


def test_a_cluster_without_tls_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    files = ClusterTls(ca_file=tmp_path / "ca", cert_file=tmp_path / "cert", key_file=tmp_path / "key")
    for address in ("tcp://127.0.0.1:8786", "127.0.0.1:8786"):
        with pytest.raises(PlaintextRefused, match="over TLS only"), dask_executor(address, files):
            pass
    with pytest.raises(ConfigError, match="is missing"), dask_executor("tls://127.0.0.1:8786", files):
        pass


def test_a_scheduler_that_speaks_only_tls_1_2_is_refused(tmp_path: Path) -> None:
    import ssl
    import threading

    issued = DevelopmentCA.create(tmp_path / "ca").issue(["localhost", "127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(issued.certificate, issued.key)
    versions: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        versions.append(secured.version())
                except OSError as error:
                    versions.append(error)

        threading.Thread(target=serve, daemon=True).start()
        tls = ClusterTls(ca_file=issued.ca_file, cert_file=issued.certificate, key_file=issued.key)
        address = f"tls://127.0.0.1:{listener.getsockname()[1]}"
        with (
            pytest.raises(TransportError, match="cannot be reached over TLS 1.3"),
            dask_executor(address, tls, timeout=2),
        ):
            pass
    assert versions
    assert all(isinstance(one, OSError) for one in versions)


def test_a_cluster_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    issued = DevelopmentCA.create(tmp_path / "ca").issue(["127.0.0.1"])
    tls = ClusterTls(ca_file=issued.ca_file, cert_file=issued.certificate, key_file=issued.key)
    with (
        pytest.raises(TransportError, match="cannot be reached"),
        dask_executor(f"tls://127.0.0.1:{free_port()}", tls, timeout=2),
    ):
        pass
