"""Cryptographic erasure: what is destroyed, what is scheduled, what nobody can prove, and what readers are told."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from securemfg.artifacts.bulk import Job, Summary, Verb, run
from securemfg.artifacts.erasure import asset_texts, erase_asset, erase_runs, run_targets
from securemfg.artifacts.keyring import KEYRING
from securemfg.artifacts.stores import open_store
from securemfg.encryption import create_local_key
from securemfg.encryption.aws_kms import AwsKmsKey
from securemfg.encryption.fate import Fate, State
from securemfg.errors import ConfigError, KeyUnavailable
from securemfg.workflow import Workflow
from tests.parts.openbao import unique
from tests.parts.trail import events

RUN = "0" * 31 + "1"
OTHER = "0" * 31 + "2"


def workflow_with(text: str) -> Workflow:
    Path("securemfg.toml").write_text(text)
    return Workflow.from_config("securemfg.toml")


@pytest.fixture
def local() -> Workflow:
    for name in ("default", "feedback"):
        create_local_key(Path(f"keys/{name}.key"))
    return workflow_with('[keys]\ndefault = "local:keys/default.key"\noperator_feedback = "local:keys/feedback.key"\n')


def fill(workflow: Workflow, uri: str, *assets: str, runs: tuple[str, ...] = (RUN, OTHER)) -> None:
    store = open_store(uri)
    for run_id in runs:
        store.write(f"{uri}/7/{run_id}/artifacts/model.pkl", b"canary")
    assert do(workflow, uri, Verb.ENCRYPT, assets=assets).failed == []


def do(workflow: Workflow, uri: str, verb: Verb, **options: Any) -> Summary:
    return run(Job(verb=verb, uri=uri, rules=workflow.rules, **options), emit=workflow.audit)


def states(fates: tuple[Fate, ...]) -> list[State]:
    return [fate.state for fate in fates]


@pytest.fixture(params=["folder", "s3", "s3-versions"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    bucket = request.getfixturevalue("s3_bucket")
    if request.param == "s3-versions":
        import boto3

        boto3.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return f"s3://{bucket}/mlruns"


def test_an_erased_run_is_refused_with_the_reason_and_another_run_is_read(local: Workflow, uri: str) -> None:
    fill(local, uri)
    for _ in range(2):  # several versions of each record, where a bucket keeps them
        do(local, uri, Verb.REWRAP, everything=True, keep_versions=True)
    (target,) = run_targets(f"{uri}/7/{RUN}")
    assert target.recipients[0].startswith("securemfg/")
    (erasure,) = erase_runs(f"{uri}/7/{RUN}", emit=local.audit, by="anna", reason="the customer asked")
    assert erasure.gone
    assert State.DONE in states(erasure.fates)
    assert erasure.recipients == target.recipients
    left = [fate.what for fate in erasure.fates if fate.state is State.NOT_PROVABLE]
    assert left[-2:] == [
        f"recipient {target.recipients[0]}",
        "sealed values in MLflow's database that carry a record of their own",
    ]
    summary = do(local, uri, Verb.VERIFY)
    (failure,) = summary.failed
    assert failure.address.endswith(f"{RUN}/artifacts/model.pkl")
    assert "by anna: the customer asked" in failure.reason
    assert summary.done == 2  # the other run's artifact and record
    (event,) = events("key.destroyed")
    assert (event["outcome"], event["reason"], event["resource"]["id"]) == (
        "success",
        "the customer asked",
        target.key_id,
    )
    if uri.startswith("s3"):
        import boto3

        bucket = uri.split("/")[2]
        left = boto3.client("s3").list_object_versions(Bucket=bucket, Prefix=target.address.split("/", 3)[3])
        assert not left.get("Versions")
        assert not left.get("DeleteMarkers")


def test_a_record_under_object_lock_is_scheduled_and_not_called_gone(local: Workflow, aws: str) -> None:
    import boto3

    client = boto3.client("s3")
    client.create_bucket(
        Bucket="locked",
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": "eu-central-1"},
    )
    fill(local, "s3://locked/mlruns", runs=(RUN,))
    (target,) = run_targets("s3://locked/mlruns")
    key = target.address.removeprefix("s3://locked/")
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=40)
    for version in client.list_object_versions(Bucket="locked", Prefix=key)["Versions"]:
        client.put_object_retention(
            Bucket="locked", Key=key, VersionId=version["VersionId"],
            Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until},
        )  # fmt: skip
    (erasure,) = erase_runs("s3://locked/mlruns", emit=local.audit, by="anna", reason="asked")
    (scheduled,) = [fate for fate in erasure.fates if fate.state is State.SCHEDULED]
    assert scheduled.until == until
    assert not erasure.gone  # it can still be read, and the report says so
    assert Fate.failed(target.address, "it can still be read") in erasure.fates


def test_mlflow_is_told_why_an_erased_run_does_not_load(local: Workflow, tmp_path: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("press", artifact_location=str(tmp_path / "store")))
    with local.step("training"), mlflow.start_run() as active:
        mlflow.log_text("canary", "note.txt")
        assert mlflow.artifacts.load_text(f"runs:/{active.info.run_id}/note.txt") == "canary"
        erase_runs(str(tmp_path / "store"), emit=local.audit, by="anna", reason="GDPR request 7")
        with pytest.raises(KeyUnavailable, match="erased on .* by anna: GDPR request 7"):
            mlflow.artifacts.load_text(f"runs:/{active.info.run_id}/note.txt")
    mlflow.set_tracking_uri(None)


def erase(workflow: Workflow, asset: str = "operator_feedback", **options: Any) -> Any:
    return erase_asset(
        asset, config=workflow.config, keys=workflow.keys, services=workflow.key_services, emit=workflow.audit,
        by="anna", reason="the worker left", **options,
    )  # fmt: skip


def test_erasing_an_asset_destroys_its_local_key_and_nothing_else(local: Workflow, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    fill(local, uri, "operator_feedback", runs=(RUN,))
    fill(local, uri, runs=(OTHER,))
    (erasure,) = erase(local)
    assert states(erasure.fates) == [State.DONE, State.NOT_PROVABLE]
    assert not Path("keys/feedback.key").exists()
    summary = do(local, uri, Verb.VERIFY)
    assert summary.done == 2
    assert {RUN in one.address for one in summary.failed} == {True}
    assert all("was erased on" in one.reason and "the worker left" in one.reason for one in summary.failed)
    with pytest.raises(KeyUnavailable, match="was erased on .* by anna"):
        local.keys.for_assets(("operator_feedback",))
    # a new key in its place is another key, and serves
    create_local_key(Path("keys/feedback.key"))
    local.keys.forget_opened()
    assert local.keys.for_assets(("operator_feedback",))
    assert "erased" not in str(erase(local)[0].fates[0].remark)


def test_an_asset_that_shares_its_key_is_not_erased(local: Workflow) -> None:
    shared = workflow_with(
        '[keys]\ndefault = "local:keys/default.key"\na = "local:keys/feedback.key"\n'
        'b = ["local:keys/feedback.key"]\nc = "local:keys/default.key"\n'
    )
    for asset, others in (("a", "b"), ("c", "default")):
        with pytest.raises(ConfigError, match=f"shares a key with {others}"):
            erase(shared, asset)
    with pytest.raises(ConfigError, match="'default' is no asset"):
        asset_texts(shared.config, "default")
    with pytest.raises(ConfigError, match="has no key of its own"):
        erase(shared, "nowhere")
    assert Path("keys/feedback.key").exists()


def test_a_transit_key_is_deleted_in_vault_itself(openbao: Any, tmp_path: Path) -> None:
    if "transit/" not in openbao.api("GET", "sys/mounts")["data"]:
        openbao.api("POST", "sys/mounts/transit", {"type": "transit"})
    name = unique("feedback")
    openbao.api("POST", f"transit/keys/{name}", {"exportable": True})
    openbao.api("POST", f"transit/keys/{name}/rotate", {})
    create_local_key(Path("keys/default.key"))
    rights = {"transit/*": ["create", "update", "read", "delete"]}
    role = openbao.role(tmp_path, rules=rights)
    workflow = workflow_with(
        f'[keys]\ndefault = "local:keys/default.key"\noperator_feedback = "vault-transit:transit/{name}"\n'
        f'[vault]\naddress = "{openbao.address}"\nauth = {{ method = "approle", role_id = "{role.role_id}", '
        f'secret_id_file = "{role.secret_id_file}" }}\n'
    )
    uri = str(tmp_path / "store")
    fill(workflow, uri, "operator_feedback")
    (erasure,) = erase(workflow)
    assert states(erasure.fates) == [State.DONE, State.NOT_PROVABLE, State.NOT_PROVABLE]
    assert "all 2 versions" in erasure.fates[0].remark
    assert "exports of" in erasure.fates[1].what
    assert len(do(workflow, uri, Verb.VERIFY).failed) == 4
    (again,) = erase(workflow)
    assert not again.gone  # there is no such key: said, not hidden
    workflow.close()


def test_without_the_right_a_transit_key_stays_and_the_report_says_so(openbao: Any, tmp_path: Path) -> None:
    if "transit/" not in openbao.api("GET", "sys/mounts")["data"]:
        openbao.api("POST", "sys/mounts/transit", {"type": "transit"})
    name = unique("feedback")
    openbao.api("POST", f"transit/keys/{name}", {})
    role = openbao.role(tmp_path, rules={"transit/*": ["update"]})
    create_local_key(Path("keys/default.key"))
    workflow = workflow_with(
        f'[keys]\ndefault = "local:keys/default.key"\noperator_feedback = "vault-transit:transit/{name}"\n'
        f'[vault]\naddress = "{openbao.address}"\nauth = {{ method = "approle", role_id = "{role.role_id}", '
        f'secret_id_file = "{role.secret_id_file}" }}\n'
    )
    (erasure,) = erase(workflow)
    assert states(erasure.fates) == [State.FAILED]
    assert f"transit/keys/{name}" in erasure.fates[0].remark
    assert workflow.keys.for_assets(("operator_feedback",))  # not noted as erased
    (event,) = events("key.destroyed")
    assert event["outcome"] == "failure"
    workflow.close()


def test_a_kms_key_is_scheduled_until_a_date_and_refused_from_now_on(aws: str, tmp_path: Path) -> None:
    import boto3

    arn = boto3.client("kms").create_key()["KeyMetadata"]["Arn"]
    create_local_key(Path("keys/default.key"))
    workflow = workflow_with(f'[keys]\ndefault = "local:keys/default.key"\noperator_feedback = "aws-kms:{arn}"\n')
    fill(workflow, str(tmp_path / "store"), "operator_feedback", runs=(RUN,))
    before = time.time()
    (erasure,) = erase(workflow, days=9)
    (fate,) = erasure.fates
    assert fate.state is State.SCHEDULED
    assert fate.until is not None
    assert 8.9 < (fate.until.timestamp() - before) / 86400 < 9.1
    assert erasure.gone
    KEYRING.clear()
    failures = do(workflow, str(tmp_path / "store"), Verb.VERIFY).failed
    assert all(f"scheduled until {fate.until:%Y-%m-%d}" in one.reason for one in failures)
    state = boto3.client("kms").describe_key(KeyId=arn)["KeyMetadata"]["KeyState"]
    assert state == "PendingDeletion"


def test_a_kms_key_with_replicas_and_foreign_material_says_so() -> None:
    """moto keeps no replicas' list: Stubber."""
    import boto3
    from botocore.stub import Stubber

    arn = "arn:aws:kms:eu-central-1:123456789012:key/mrk-1"
    replica = "arn:aws:kms:us-east-1:123456789012:key/mrk-1"
    client = boto3.client("kms", region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
    with Stubber(client) as stub:
        stub.add_response(
            "describe_key",
            {
                "KeyMetadata": {
                    "KeyId": "mrk-1", "Arn": arn, "KeyState": "Enabled", "Origin": "EXTERNAL", "MultiRegion": True,
                    "MultiRegionConfiguration": {
                        "MultiRegionKeyType": "PRIMARY", "PrimaryKey": {"Arn": arn, "Region": "eu-central-1"},
                        "ReplicaKeys": [{"Arn": replica, "Region": "us-east-1"}],
                    },
                }
            },
        )  # fmt: skip
        stub.add_response(
            "schedule_key_deletion",
            {"KeyId": arn, "KeyState": "PendingReplicaDeletion", "PendingWindowInDays": 7},
            {"KeyId": "mrk-1", "PendingWindowInDays": 7},
        )
        fates = AwsKmsKey(arn, client=lambda _region: client).destroy(days=1)
    assert states(tuple(fates)) == [State.NOT_PROVABLE, State.FAILED, State.NOT_PROVABLE]
    assert fates[1].what == replica


def test_an_escrow_recipient_is_listed_and_never_called_gone(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(65537, 3072)
    Path("escrow.pem").write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    create_local_key(Path("keys/default.key"))
    create_local_key(Path("keys/feedback.key"))
    workflow = workflow_with(
        '[keys]\ndefault = "local:keys/default.key"\n'
        'operator_feedback = ["local:keys/feedback.key", "rsa:escrow.pem"]\n'
    )
    fill(workflow, str(tmp_path / "store"), "operator_feedback", runs=(RUN,))
    assert [name.split("/")[0] for name in run_targets(str(tmp_path / "store"))[0].recipients] == [
        "securemfg",
        "securemfg-rsa",
    ]
    local, escrow = erase(workflow)
    assert (local.fates[0].state, escrow.fates[0].state) == (State.DONE, State.NOT_PROVABLE)
    assert "escrow key securemfg-rsa/" in escrow.fates[0].what


@pytest.mark.parametrize(
    "text", [b"", b"not json", b"[1]", json.dumps({"at": "x"}).encode(), b"\xff" * 10, b"x" * 9999]
)
def test_a_made_up_tombstone_neither_fails_nor_speaks(local: Workflow, tmp_path: Path, text: bytes) -> None:
    uri = str(tmp_path / "store")
    fill(local, uri, runs=(RUN,))
    (target,) = run_targets(uri)
    store = open_store(uri)
    store.destroy(target.address)
    store.write(target.address.replace(".esdk", ".erased"), text)
    KEYRING.clear()
    (failure,) = do(local, uri, Verb.VERIFY).failed
    assert "it was erased, or never copied along" in failure.reason
