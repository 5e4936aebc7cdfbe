"""Bulk work over a folder and over S3 (moto): what each verb does, resuming, and who may read afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from securemfg.artifacts.bulk import Job, JobLog, Outcome, State, Summary, Verb, run
from securemfg.artifacts.stores import LocalStore, S3Store, Stored, open_store
from securemfg.artifacts.work import retire
from securemfg.encryption import create_local_key
from securemfg.encryption.message import looks_like_message
from securemfg.encryption.stream import inspect_file
from securemfg.errors import ConfigError
from securemfg.workflow import Workflow
from tests.parts.trail import events

RUNS = ("0" * 31 + "1", "0" * 31 + "2")
FILES = {"model.pkl": 3000, "plots/loss.png": 100, "plots/deep/empty": 0, "big.bin": (1 << 20) + 7}


def content(run_id: str, path: str) -> bytes:
    return (f"canary {run_id} {path} " * 1).encode() + b"x" * FILES[path]


class Place:
    """A store with two runs, in plaintext at first, seen through its own addresses."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.store: LocalStore | S3Store = open_store(uri)

    def address(self, run_id: str, path: str) -> str:
        return f"{self.uri}/7/{run_id}/artifacts/{path}"

    def fill(self) -> None:
        for run_id in RUNS:
            for path in FILES:
                self.store.write(self.address(run_id, path), content(run_id, path))
        self.store.write(f"{self.uri}/7/meta.yaml", b"name: press-failure\n")

    def read(self, address: str) -> bytes:
        return self.store.read(address, 1 << 22)

    def artifacts(self) -> list[str]:
        return [self.address(run_id, path) for run_id in RUNS for path in FILES]

    def records(self) -> list[str]:
        return [one.address for one in self.store.files() if one.address.endswith(".esdk")]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        uri = str(tmp_path / "store")
    else:
        uri = f"s3://{request.getfixturevalue('s3_bucket')}/mlruns"
    made = Place(uri)
    made.fill()
    return made


def workflow_with(**keys: str) -> Workflow:
    lines = "\n".join(f'{name} = "local:{path}"' for name, path in keys.items())
    Path("securemfg.toml").write_text(f"[keys]\n{lines}\n")
    for path in keys.values():
        if not Path(path).exists():
            create_local_key(Path(path))
    return Workflow.from_config("securemfg.toml")


@pytest.fixture
def workflow() -> Iterator[Workflow]:
    with workflow_with(default="keys/default.key") as made:
        yield made


def do(
    workflow: Workflow, place: Place, verb: Verb, *, log: JobLog | None = None, executor: Any = None, **options: Any
) -> Summary:
    job = Job(verb=verb, uri=place.uri, rules=workflow.rules, **options)
    return run(job, emit=workflow.audit, log=log, executor=executor)


def test_a_plaintext_store_is_encrypted_in_place_and_verifies(workflow: Workflow, place: Place) -> None:
    summary = do(workflow, place, Verb.ENCRYPT)
    assert (summary.done, summary.failed) == (8, [])
    assert summary.reasons == {"belongs to no run, model or trace": 1}
    for address in place.artifacts():
        assert b"canary" not in place.read(address)
    assert place.read(f"{place.uri}/7/meta.yaml") == b"name: press-failure\n"
    assert len(place.records()) == len(RUNS)  # one call for each root
    checked = do(workflow, place, Verb.VERIFY)
    assert (checked.done, checked.failed) == (8 + 2, [])
    assert checked.bytes == summary.bytes == sum(len(content(r, p)) for r in RUNS for p in FILES)
    again = do(workflow, place, Verb.ENCRYPT)
    assert (again.done, again.reasons["encrypted already"]) == (0, 8)


def test_what_was_encrypted_comes_back_as_it_was(workflow: Workflow, place: Place, tmp_path: Path) -> None:
    do(workflow, place, Verb.ENCRYPT)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    summary = do(workflow, place, Verb.DOWNLOAD, target=tmp_path / "out")
    assert [one.address for one in summary.failed] == [f"{place.uri}/7/meta.yaml"]  # plaintext: refused by the rule
    for run_id in RUNS:
        for path in FILES:
            placed = tmp_path / "out" / "7" / run_id / "artifacts" / path
            assert placed.read_bytes() == content(run_id, path)
            assert placed.stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "out").rglob(".securemfg"))


@pytest.mark.parametrize("harm", ["flipped", "cut", "swapped", "planted", "record-lost", "record-swapped"])
def test_verify_finds_what_was_done_to_a_store(workflow: Workflow, place: Place, harm: str) -> None:
    do(workflow, place, Verb.ENCRYPT)
    victim = place.address(RUNS[0], "model.pkl")
    data = place.read(victim)
    expected = {victim}
    match harm:
        case "flipped":
            place.store.write(victim, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        case "cut":
            place.store.write(victim, data[:-1])
        case "swapped":
            place.store.write(victim, place.read(place.address(RUNS[0], "plots/loss.png")))
        case "planted":
            place.store.write(victim, b"cos\nsystem\n")
        case "record-lost" | "record-swapped":
            one, two = place.records()
            other = place.read(two)
            place.store.destroy(one)
            expected = {place.address(RUNS[0], path) for path in FILES}
            if harm == "record-swapped":
                place.store.write(one, other)
                expected.add(one)
    from securemfg.artifacts.keyring import KEYRING

    KEYRING.clear()
    summary = do(workflow, place, Verb.VERIFY)
    assert {one.address for one in summary.failed} == expected
    assert all(one.reason for one in summary.failed)
    refused = [event["resource"]["id"] for event in events("artifact.refused")]
    assert set(refused) == expected


def test_rewrap_moves_the_store_to_new_keys_without_touching_an_artifact(place: Place) -> None:
    with workflow_with(default="keys/old.key") as workflow:
        do(workflow, place, Verb.ENCRYPT)
    before = {address: place.read(address) for address in place.artifacts()}
    old_records = {address: place.read(address) for address in place.records()}
    with workflow_with(default="keys/new.key", retired="keys/old.key") as workflow:
        summary = do(workflow, place, Verb.REWRAP)
        assert (summary.done, summary.failed) == (2, [])
        again = do(workflow, place, Verb.REWRAP)
        assert (again.done, again.reasons["is for today's keys already"]) == (0, 2)
        assert do(workflow, place, Verb.REWRAP, everything=True).done == 2
    assert {address: place.read(address) for address in place.artifacts()} == before
    with workflow_with(default="keys/new.key") as workflow:
        assert do(workflow, place, Verb.VERIFY).failed == []
        for address, record in old_records.items():  # an older record put back
            place.store.write(address, record)
        from securemfg.artifacts.keyring import KEYRING

        KEYRING.clear()
        assert len(do(workflow, place, Verb.VERIFY).failed) == 2 + 8
    with workflow_with(default="keys/new.key", retired="keys/old.key") as workflow:
        KEYRING.clear()
        (reason,) = {
            one.reason
            for one in do(workflow, place, Verb.VERIFY).failed
            if one.kind == "run-key" and RUNS[0] in one.address
        }
        assert "version 1, and version 3 was seen before" in reason


def test_reencrypt_gives_fresh_keys_and_the_old_ones_can_be_retired(
    workflow: Workflow, place: Place, tmp_path: Path
) -> None:
    do(workflow, place, Verb.ENCRYPT)
    old = set(place.records())
    before = {address: place.read(address) for address in place.artifacts()}
    job = Job(verb=Verb.REENCRYPT, uri=place.uri, rules=workflow.rules)
    with JobLog(tmp_path / "home", job) as log:
        assert (summary := run(job, emit=workflow.audit, log=log)).failed == []
        assert summary.done == 8
        gone, used = retire(replace(job, retired=log.retired or frozenset()), emit=workflow.audit, by="anna")
    assert (len(gone), used) == (2, [])
    assert not old & set(place.records())
    for address, message in before.items():
        assert place.read(address) != message
    assert do(workflow, place, Verb.VERIFY).failed == []
    (first, second) = events("key.destroyed")
    assert {first["resource"]["id"], second["resource"]["id"]} == set(gone)
    # the old ciphertext from a backup opens no more, and the refusal says why
    address = place.address(RUNS[0], "model.pkl")
    place.store.write(address, before[address])
    from securemfg.artifacts.keyring import KEYRING

    KEYRING.clear()
    (failure,) = do(workflow, place, Verb.VERIFY).failed
    assert "it was erased on" in failure.reason
    assert "by anna: its artifacts were encrypted anew" in failure.reason


def test_a_run_key_in_use_is_not_retired(workflow: Workflow, place: Place) -> None:
    do(workflow, place, Verb.ENCRYPT)
    kept = place.read(place.address(RUNS[0], "model.pkl"))
    summary = do(workflow, place, Verb.REENCRYPT)
    place.store.write(place.address(RUNS[0], "copied-back.pkl"), kept)
    ids = frozenset(Path(address).stem for address in place.records())
    job = Job(verb=Verb.REENCRYPT, uri=place.uri, rules=workflow.rules, retired=ids)
    gone, used = retire(job, emit=workflow.audit, by="anna")
    assert summary.done == 8
    assert len(gone) == 1  # of the other run
    assert inspect_recipients(kept) & set(used)


def inspect_recipients(message: bytes) -> set[str]:
    Path("probe").write_bytes(message)
    return {name.split("/", 1)[1] for name in inspect_file("probe").recipients}


@pytest.mark.parametrize("verb", [Verb.ENCRYPT, Verb.REENCRYPT])
def test_a_second_run_goes_on_where_the_first_one_died(
    workflow: Workflow, place: Place, tmp_path: Path, verb: Verb
) -> None:
    if verb is Verb.REENCRYPT:
        do(workflow, place, Verb.ENCRYPT)
    job = Job(verb=verb, uri=place.uri, rules=workflow.rules)
    seen: list[str] = []

    def dying(stored: Stored, outcome: Outcome) -> None:
        if outcome.state is State.DONE:
            seen.append(stored.address)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with JobLog(tmp_path / "home", job) as log, pytest.raises(KeyboardInterrupt):
        run(job, emit=workflow.audit, log=log, workers=1, watch=dying)
    middle = {address: place.read(address) for address in seen}
    with JobLog(tmp_path / "home", job) as log:
        assert log.resumed
        summary = run(job, emit=workflow.audit, log=log)
    assert summary.failed == []
    assert summary.earlier >= 3
    assert {address: place.read(address) for address in seen} == middle
    assert all(looks_like_message(place.read(address)) for address in place.artifacts())
    assert do(workflow, place, Verb.VERIFY).failed == []
    assert not list((tmp_path / "home" / "bulk").iterdir())  # finished: the next run begins anew


def test_the_same_job_does_not_run_twice_at_once(workflow: Workflow, place: Place, tmp_path: Path) -> None:
    job = Job(verb=Verb.VERIFY, uri=place.uri, rules=workflow.rules)
    with (
        JobLog(tmp_path, job),
        pytest.raises(ConfigError, match="the same job is running already"),
        JobLog(tmp_path, job),
    ):
        pass


def test_other_processes_do_the_work_and_no_key_travels(workflow: Workflow, tmp_path: Path) -> None:
    place = Place(str(tmp_path / "store"))
    place.fill()
    with ProcessPoolExecutor(2) as executor:
        assert do(workflow, place, Verb.ENCRYPT, executor=executor).failed == []
        writers = len(place.records())
        assert len(RUNS) <= writers <= 2 * len(RUNS)  # one run key for each process and root
        assert do(workflow, place, Verb.REENCRYPT, executor=executor).failed == []
        assert do(workflow, place, Verb.VERIFY, executor=executor).failed == []


def test_a_worker_that_dies_is_a_failure_that_the_next_run_mends(workflow: Workflow, tmp_path: Path) -> None:
    place = Place(str(tmp_path / "store"))
    place.fill()
    with ProcessPoolExecutor(1) as executor:
        executor.submit(os._exit, 9)
        summary = do(workflow, place, Verb.ENCRYPT, executor=executor)
    assert summary.failed
    assert all("run the job again" in one.reason for one in summary.failed)
    assert do(workflow, place, Verb.ENCRYPT).failed == []
    assert do(workflow, place, Verb.VERIFY).failed == []


def test_a_place_without_an_id_needs_its_root_named(workflow: Workflow, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.pkl").write_bytes(b"canary")
    place = Place(str(folder))
    assert do(workflow, place, Verb.ENCRYPT).reasons == {"belongs to no run, model or trace": 1}
    assert do(workflow, place, Verb.ENCRYPT, root=("model", "m-exported")).done == 1
    assert inspect_file(folder / "model.pkl").context["securemfg:root"] == "m-exported"
    assert do(workflow, place, Verb.VERIFY, root=("model", "m-exported")).failed == []
    from securemfg.artifacts.keyring import KEYRING

    KEYRING.clear()
    assert do(workflow, place, Verb.VERIFY, root=("model", "another")).failed


def test_each_asset_keeps_its_own_keys_through_rewrap_and_reencrypt(place: Place) -> None:
    with workflow_with(default="keys/default.key", recipes="keys/recipes.key") as workflow:
        assert do(workflow, place, Verb.ENCRYPT, assets=("recipes",)).failed == []
        assert do(workflow, place, Verb.REENCRYPT).failed == []
    (recipes,) = {Path(one).read_bytes() for one in ["keys/recipes.key"]}
    with workflow_with(default="keys/default.key", recipes="keys/newer.key", old="keys/recipes.key") as workflow:
        assert do(workflow, place, Verb.REWRAP).done == 4
    with workflow_with(default="keys/default.key", recipes="keys/newer.key") as workflow:
        assert do(workflow, place, Verb.VERIFY).failed == []
    Path("keys/recipes.key").unlink()
    assert recipes
    with workflow_with(default="keys/default.key") as workflow:
        from securemfg.artifacts.keyring import KEYRING

        KEYRING.clear()
        assert len(do(workflow, place, Verb.VERIFY).failed) == 8 + 4


def test_old_versions_of_a_bucket_are_destroyed_with_what_they_gave_away(workflow: Workflow, s3_bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    place = Place(f"s3://{s3_bucket}/mlruns")
    place.fill()
    do(workflow, place, Verb.ENCRYPT)
    bodies = [
        client.get_object(Bucket=s3_bucket, Key=one["Key"], VersionId=one["VersionId"])["Body"].read()
        for one in client.list_object_versions(Bucket=s3_bucket)["Versions"]
    ]
    assert not [body for body in bodies if b"canary" in body]


def test_a_copy_for_a_supplier_opens_with_its_key_and_nothing_here_gets_a_recipient(
    workflow: Workflow, place: Place, tmp_path: Path
) -> None:
    from securemfg.artifacts.keyring import KEYRING

    do(workflow, place, Verb.ENCRYPT)
    before = {address: place.read(address) for address in [*place.artifacts(), *place.records()]}
    supplier = create_local_key(Path("supplier.key"))
    target = tmp_path / "handover"
    summary = do(workflow, place, Verb.SHARE, target=target, recipients=(f"local:{Path('supplier.key').absolute()}",))
    assert (summary.done, summary.failed) == (8, [])
    assert {address: place.read(address) for address in [*place.artifacts(), *place.records()]} == before
    copied = Place(str(target))
    for record in copied.records():
        assert inspect_file(record).recipients == (supplier.recipient,)
    assert not {Path(record).stem for record in copied.records()} & {Path(record).stem for record in place.records()}
    KEYRING.clear()
    assert len(do(workflow, copied, Verb.VERIFY).failed) == 10  # the plant's own key is none of the copy's
    with workflow_with(default="supplier.key") as theirs:
        assert do(theirs, copied, Verb.VERIFY).failed == []
        assert do(theirs, copied, Verb.DOWNLOAD, target=tmp_path / "read").failed == []
        assert do(theirs, place, Verb.VERIFY).failed
    assert (tmp_path / "read" / RUNS[0] / "artifacts" / "model.pkl").read_bytes() == content(RUNS[0], "model.pkl")


def test_names_in_a_bucket_do_not_lead_out_of_the_target(workflow: Workflow, s3_bucket: str, tmp_path: Path) -> None:
    import boto3

    place = Place(f"s3://{s3_bucket}/mlruns")
    place.fill()
    do(workflow, place, Verb.ENCRYPT)
    client = boto3.client("s3")
    source = place.address(RUNS[0], "model.pkl").removeprefix(f"s3://{s3_bucket}/")
    client.copy_object(Bucket=s3_bucket, Key="mlruns/../../escaped", CopySource={"Bucket": s3_bucket, "Key": source})
    summary = do(workflow, place, Verb.DOWNLOAD, target=tmp_path / "deep" / "out")
    assert [one for one in summary.failed if "outside" in one.reason]
    assert not (tmp_path / "escaped").exists()


def test_a_thousand_files_cost_one_call_of_kms_to_write_and_one_to_read(aws: str, tmp_path: Path) -> None:
    import boto3

    from securemfg.artifacts.keyring import KEYRING
    from securemfg.encryption.keys import KeyServices

    arn = boto3.client("kms").create_key()["KeyMetadata"]["Arn"]
    client = boto3.client("kms")
    calls: list[str] = []
    client.meta.events.register("before-call.kms", lambda model, **_: calls.append(model.name))
    Path("securemfg.toml").write_text(f'[keys]\ndefault = "aws-kms:{arn}"\n')
    place = Place(str(tmp_path / "store"))
    for number in range(1000):
        place.store.write(f"{place.uri}/7/{RUNS[0]}/artifacts/{number}.bin", b"x" * number)
    with Workflow.from_config("securemfg.toml") as workflow:
        workflow.__dict__["key_services"] = KeyServices(kms=lambda _region: client)
        assert do(workflow, place, Verb.ENCRYPT).done == 1000
        assert calls == ["GenerateDataKey"]
        calls.clear()
        KEYRING.clear()
        assert do(workflow, place, Verb.VERIFY).done == 1001
        assert calls == ["Decrypt"]
