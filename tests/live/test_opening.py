"""One artifact as a file: read in parts without plaintext anywhere, or checked whole where a manifest is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import securemfg
from securemfg.artifacts.keyring import KEYRING
from securemfg.artifacts.location import Location, Root
from securemfg.encryption.frames import open_frame
from securemfg.encryption.keys import create_local_key
from securemfg.encryption.message import FRAME_LENGTH, FRAME_OVERHEAD
from securemfg.encryption.signers import create_signing_key
from securemfg.encryption.stream import encrypt_bytes
from securemfg.errors import ConfigError, DecryptionError, KeyUnavailable
from tests.parts.mlflow_server import Store
from tests.parts.trail import events

SIZE = 3 * FRAME_LENGTH + 100


@pytest.fixture
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")
    place = tmp_path / "staging"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("SECUREMFG_ARTIFACTS__STAGING", str(place))
    create_local_key(tmp_path / "dev.key")
    monkeypatch.setenv("SECUREMFG_KEYS__DEFAULT", f"local:{tmp_path / 'dev.key'}")
    create_signing_key(tmp_path / "signer.key")
    monkeypatch.setenv("SECUREMFG_ARTIFACTS__SIGNER", f"ed25519:{tmp_path / 'signer.key'}")
    return place


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def logged(data: bytes, name: str = "big.bin") -> str:
    import mlflow

    with mlflow.start_run() as run:
        Path(name).write_bytes(data)
        mlflow.log_artifact(name, "data")
    return str(run.info.run_id)


def in_store(store: Store, name: str) -> str:
    (path,) = [path for path in store.stored() if path.endswith(name)]
    return path


def test_an_artifact_is_read_in_parts_and_nothing_of_it_is_staged(
    store: Store, experiment: str, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(SIZE)
    with securemfg.step("training"):
        uri = f"runs:/{logged(data)}/data/big.bin"
    opened: list[int] = []

    def counting(key, sequence, *rest, **options):
        opened.append(sequence)
        return open_frame(key, sequence, *rest, **options)

    monkeypatch.setattr("securemfg.encryption.ranges.open_frame", counting)
    with securemfg.step("training"), securemfg.artifacts.open_artifact(uri) as file:
        assert file.seek(0, os.SEEK_END) == SIZE
        file.seek(FRAME_LENGTH + 5)
        assert file.read(10) == data[FRAME_LENGTH + 5 : FRAME_LENGTH + 15]
        assert set(opened) == {4, 2}  # the final one, which proves the length, and the one that was asked for
        assert files(staging) == []
        file.seek(0)
        assert file.read() == data
    (event,) = [one for one in events("artifact.decrypted") if one["resource"]["id"] == "data/big.bin"]
    assert event["detail"]["streamed"] is True


def test_a_table_is_read_by_pandas(local_experiment: str, staging: Path) -> None:
    import mlflow
    import pandas as pd

    frame = pd.DataFrame({"torque": [41.5, 42.0], "wear": [1, 2]})
    with securemfg.step("training"):
        frame.to_parquet("t.parquet")
        with mlflow.start_run() as run:
            mlflow.log_artifact("t.parquet")
        with securemfg.artifacts.open_artifact(f"runs:/{run.info.run_id}/t.parquet") as file:
            assert pd.read_parquet(file, columns=["wear"]).equals(frame[["wear"]])
        assert files(staging) == []


def test_what_was_changed_is_refused_where_it_is_read(local_store: Store, local_experiment: str, staging: Path) -> None:
    data = os.urandom(SIZE)
    with securemfg.step("training"):
        uri = f"runs:/{logged(data)}/data/big.bin"
        path = in_store(local_store, "big.bin")
        message = bytearray(local_store.stored()[path])
        message[-(2 * (FRAME_LENGTH + FRAME_OVERHEAD))] ^= 1  # in the second frame
        local_store.put(path, bytes(message))
        with securemfg.artifacts.open_artifact(uri) as file:
            assert file.read(100) == data[:100]
            file.seek(FRAME_LENGTH)
            with pytest.raises(DecryptionError, match="frame 2 was changed"):
                file.read(1)


def test_another_artifact_put_in_its_place_is_refused_and_audited(store: Store, experiment: str, staging: Path) -> None:
    with securemfg.step("training"):
        mine = logged(b"mine", "mine.bin")
        logged(b"theirs", "theirs.bin")
        stored = store.stored()
        store.put(in_store(store, "mine.bin"), stored[in_store(store, "theirs.bin")])
        with pytest.raises(KeyUnavailable, match="the run key's record .* cannot be had"):
            securemfg.artifacts.open_artifact(f"runs:/{mine}/data/mine.bin")
    assert [one["outcome"] for one in events("artifact.refused")] == ["denied"]


def test_planted_plaintext_is_refused(local_store: Store, local_experiment: str, staging: Path) -> None:
    with securemfg.step("training"):
        run_id = logged(b"mine", "mine.bin")
        local_store.put(in_store(local_store, "mine.bin"), b"planted")
        with pytest.raises(DecryptionError, match="is not encrypted, and artifacts.plaintext_reads is 'refuse'"):
            securemfg.artifacts.open_artifact(f"runs:/{run_id}/data/mine.bin")


@pytest.mark.parametrize("version", [False, True], ids=["logged", "registered"])
def test_a_file_of_a_signed_model_is_checked_whole_and_has_no_name(
    local_store: Store, local_experiment: str, staging: Path, *, version: bool
) -> None:
    import mlflow
    from sklearn.linear_model import LinearRegression

    with securemfg.step("training"):
        info = mlflow.sklearn.log_model(
            LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), name="m", pip_requirements=["scikit-learn"],
            registered_model_name="opened" if version else None,
        )  # fmt: skip
        place = mlflow.get_logged_model(info.model_id).artifact_location
        uri = f"models:/opened/{info.registered_model_version}" if version else place
        with securemfg.artifacts.open_artifact(f"{uri}/MLmodel") as file:
            assert files(staging) == []
            assert b"flavors:" in file.read()
        # the right run key and place, other content, as any reader could write it: what encrypts is not what signs
        key = next(key for place, key in KEYRING._writing.items() if info.model_id in place[0])
        bound = Location(Root("", "model", info.model_id), "requirements.txt").binding
        (path,) = [one for one in local_store.stored() if one.endswith("/requirements.txt") and info.model_id in one]
        local_store.put(path, encrypt_bytes(b"malware\n", key=key, context=bound))
        with pytest.raises(DecryptionError, match=r"is not the model that was signed: .* 'requirements\.txt'"):
            securemfg.artifacts.open_artifact(f"{uri}/requirements.txt")
        assert files(staging) == []


def test_what_cannot_be_opened_says_why(local_experiment: str, staging: Path) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(ConfigError, match="encrypted artifacts are off"):
        securemfg.artifacts.open_artifact("runs:/0/x")
    with securemfg.step("training"):
        run_id = logged(b"mine", "mine.bin")
        with pytest.raises(ConfigError, match="is a folder: name one file in it"):
            securemfg.artifacts.open_artifact(f"runs:/{run_id}/data")
        with pytest.raises((MlflowException, OSError), match="none.bin"):
            securemfg.artifacts.open_artifact(f"runs:/{run_id}/data/none.bin")
