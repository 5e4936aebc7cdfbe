"""Signed models over real stores: what is loaded is what a pinned signer signed, or nothing is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import securemfg
from securemfg.encryption.keys import KeyServices, create_local_key
from securemfg.encryption.signers import create_signing_key, open_pinned, open_signer
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, KeyUnavailable
from securemfg.workflow import reset
from tests.parts.mlflow_server import Store
from tests.parts.openbao import OpenBao, unique
from tests.unit.cli import conftest as command_line
from tests.unit.cli.conftest import Ran

mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")

MANIFEST = ".securemfg/manifest.sig"
cli = command_line.cli


class Model:
    """What is logged: scikit-learn's, pickled, so that loading it would run what is inside."""

    def __init__(self, name: str = "press", answers: tuple[int, int] = (0, 1), register: str | None = None) -> None:
        import numpy as np
        from sklearn.linear_model import LogisticRegression

        features = np.array([[0.0], [1.0]])
        model = LogisticRegression().fit(features, list(answers))
        with securemfg.step("training"), mlflow.start_run() as run:
            info = mlflow.sklearn.log_model(
                model, name=name, pip_requirements=["scikit-learn"], serialization_format="cloudpickle",
                registered_model_name=register,
            )  # fmt: skip
        self.run_id = run.info.run_id
        self.uri = str(info.model_uri)
        self.id = str(info.model_id)

    def files(self, store: Store) -> dict[str, bytes]:
        return {path: data for path, data in store.stored().items() if f"{self.id}/artifacts/" in path}

    def place(self, store: Store, name: str) -> str:
        return next(path for path in self.files(store) if path.endswith(f"artifacts/{name}"))


def load(uri: str) -> list[int]:
    import numpy as np

    with securemfg.step("inference"):
        found: list[int] = mlflow.sklearn.load_model(uri).predict(np.array([[0.0], [1.0]])).tolist()
    return found


def forge(model: Model, store: Store, *, content: bytes | None = None) -> None:
    """Encrypt another pickle in the model's place, as any reader of it could: with its own run key."""
    from securemfg.artifacts.keyring import KEYRING
    from securemfg.artifacts.location import Location, Root
    from securemfg.encryption.stream import encrypt_bytes

    class Boom:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(Path("pwned").absolute()),))

    path = model.place(store, "model.pkl")
    location = Location(Root("", "model", model.id), "model.pkl")
    key = next(k for place, k in KEYRING._writing.items() if model.id in place[0])
    forged = encrypt_bytes(pickle.dumps(Boom()) if content is None else content, key=key, context=location.binding)
    store.put(path, forged)


def signing(folder: Path, **more: Any) -> None:
    """Settings with a local key and whatever `artifacts` is given; texts only, read by a fresh workflow."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in more.items())
    (folder / "securemfg.toml").write_text(f'[keys]\ndefault = "local:plant.key"\n[artifacts]\n{lines}')
    if not (folder / "plant.key").exists():
        create_local_key(folder / "plant.key")
    reset()


def in_observe(folder: Path) -> None:
    path = folder / "securemfg.toml"
    path.write_text('mode = "observe"\n' + path.read_text())
    reset()


def events(action: str) -> list[dict[str, Any]]:
    from securemfg.audit.verification import read_events
    from securemfg.workflow import default_workflow

    found = read_events(default_workflow().config.home / "journal")
    return [dict(event) for event in found if event["action"] == action]


@pytest.fixture
def signer(own_place: Path) -> Path:
    """A folder whose settings sign with a local ECDSA key, and pin it."""
    create_signing_key(own_place / "signer.key", own_place / "signer.pem", kind="ecdsa")
    signing(own_place, signer="ecdsa:signer.key", signers=["ecdsa:signer.pem"])
    return own_place


# -- as it should be --------------------------------------------------------------------------------------------------


def test_a_model_is_signed_pinned_and_loaded(store: Store, experiment: str) -> None:
    """By the embedded default, with no settings at all; over a folder, a server and S3."""
    model = Model(register=experiment)
    assert model.place(store, MANIFEST)
    version = mlflow.MlflowClient().get_model_version(experiment, "1")
    signed = events("model.signed")
    assert version.tags["securemfg.manifest"] == signed[0]["detail"]["manifest"]
    mlflow.MlflowClient().set_registered_model_alias(experiment, "champion", "1")
    for uri in (
        model.uri, f"runs:/{model.run_id}/press", f"models:/{experiment}/1", f"models:/{experiment}@champion",
        f"models:/{experiment}/latest",
    ):  # fmt: skip
        assert load(uri) == [0, 1]
    assert {event["detail"]["manifest"] for event in events("model.verified")} == {signed[0]["detail"]["manifest"]}
    with securemfg.step("inference"):
        names = {info.path for info in mlflow.artifacts.list_artifacts(model.uri)}
        assert mlflow.models.get_model_info(f"models:/{experiment}/1").model_id == model.id
    assert "MLmodel" in names
    assert not any(".securemfg" in name for name in names)


def test_public_verifier_accepts_the_stored_model(local_store: Store, local_experiment: str, signer: Path) -> None:
    pytest.importorskip("OpenSSL", reason="needs pyopenssl, which model-signing imports")
    verifying = pytest.importorskip("model_signing.verifying", reason="needs model-signing 1.1.1")
    model = Model()
    manifest = Path(local_store.artifact_location or "", model.place(local_store, MANIFEST))
    config = verifying.Config().use_elliptic_key_verifier(public_key=signer / "signer.pem")
    config.verify(manifest.parent.parent, manifest)
    local_store.put(model.place(local_store, "MLmodel"), b"x")
    with pytest.raises(ValueError, match="mismatch"):
        config.verify(manifest.parent.parent, manifest)


def test_a_copied_version_keeps_its_pin(local_store: Store, local_experiment: str) -> None:
    Model(register=local_experiment)
    client = mlflow.MlflowClient()
    with securemfg.step("evaluation"):
        copy = client.copy_model_version(f"models:/{local_experiment}/1", f"{local_experiment}-production")
    pin = client.get_model_version(local_experiment, "1").tags["securemfg.manifest"]
    assert client.get_model_version(copy.name, copy.version).tags["securemfg.manifest"] == pin
    assert load(f"models:/{copy.name}/{copy.version}") == [0, 1]


def test_a_model_inside_a_run_is_signed_too(store: Store, experiment: str) -> None:
    """As MLflow 2 logs models: in a folder among the run's artifacts, where others are logged later."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    with securemfg.step("training"):
        mlflow.sklearn.save_model(model, "saved", pip_requirements=["scikit-learn"], serialization_format="pickle")
        with mlflow.start_run() as run:
            mlflow.log_artifacts("saved", "old/press")
            mlflow.log_text("x", "old/note.txt")
        uri = f"{run.info.artifact_uri}/old/press"
        version = mlflow.register_model(f"runs:/{run.info.run_id}/old/press", experiment)
        assert mlflow.sklearn.load_model(uri).predict([[1.0]]).tolist() == [1]
        assert mlflow.sklearn.load_model(f"models:/{experiment}/{version.version}").predict([[1.0]]).tolist() == [1]
        mlflow.artifacts.download_artifacts(run_id=run.info.run_id)
        mine = [path for path in store.stored() if run.info.run_id in path]
        store.remove(next(path for path in mine if path.endswith(f"press/{MANIFEST}")))
        for what in (uri, f"models:/{experiment}/{version.version}"):
            with pytest.raises(DecryptionError, match="is not signed"):
                mlflow.sklearn.load_model(what)
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/old/note.txt") == "x"


def test_a_file_rewritten_later_is_signed_again_and_the_version_is_not_moved(
    local_store: Store, local_experiment: str
) -> None:
    from mlflow.models import infer_signature, set_signature

    model = Model(register=local_experiment)
    with securemfg.step("training"):
        set_signature(model.uri, infer_signature([[0.0]], [1]))
    assert load(model.uri) == [0, 1]
    with pytest.raises(DecryptionError, match="is pinned to"):
        load(f"models:/{local_experiment}/1")


# -- attacks ----------------------------------------------------------------------------------------------------------


def flip(model: Model, other: Model, store: Store) -> None:
    path = model.place(store, "model.pkl")
    data = bytearray(store.stored()[path])
    data[-30] ^= 1
    store.put(path, bytes(data))


def truncate(model: Model, other: Model, store: Store) -> None:
    path = model.place(store, "model.pkl")
    store.put(path, store.stored()[path][:-40])


def replace(model: Model, other: Model, store: Store) -> None:
    forge(model, store)


def remove(model: Model, other: Model, store: Store) -> None:
    store.remove(model.place(store, "requirements.txt"))


def add(model: Model, other: Model, store: Store) -> None:
    """An extra file, properly encrypted for this very place."""
    from securemfg.artifacts.keyring import KEYRING
    from securemfg.encryption.stream import encrypt_bytes

    key = next(k for place, k in KEYRING._writing.items() if model.id in place[0])
    binding = {"securemfg:kind": "model", "securemfg:root": model.id, "securemfg:path": "code.py"}
    store.put(
        model.place(store, "MLmodel").replace("MLmodel", "code.py"), encrypt_bytes(b"x", key=key, context=binding)
    )


def unsign(model: Model, other: Model, store: Store) -> None:
    store.remove(model.place(store, MANIFEST))


def swap_manifest(model: Model, other: Model, store: Store) -> None:
    store.put(model.place(store, MANIFEST), store.stored()[other.place(store, MANIFEST)])


def swap_everything(model: Model, other: Model, store: Store) -> None:
    for path, data in other.files(store).items():
        if "/keys/" not in path:
            store.put(path.replace(other.id, model.id), data)


def sign_by_a_stranger(model: Model, other: Model, store: Store) -> None:
    """The forger signs properly, and offers the public key inside the signature."""
    from securemfg.artifacts.manifest import sign
    from securemfg.encryption.digests import digest_file

    def digest(data: bytes) -> Any:
        def read(buffer: memoryview, offset: int) -> int:
            buffer[:] = data[offset : offset + len(buffer)]
            return len(buffer)

        return digest_file(read, len(data))

    forge(model, store)
    stranger = create_signing_key(Path("stranger.key"))
    files = {
        path.split("/artifacts/", 1)[1]: digest(data)
        for path, data in model.files(store).items()
        if ".securemfg" not in path
    }
    bundle = json.loads(sign(f"model/{model.id}", files, stranger)[0])
    bundle["verificationMaterial"]["publicKey"]["rawBytes"] = stranger.verifying_keys()[0].pem.decode()
    store.put(model.place(store, MANIFEST), json.dumps(bundle).encode())


ATTACKS: list[tuple[Callable[[Model, Model, Store], None], str]] = [
    (flip, "tag does not verify|changed"),
    (truncate, "cut off"),
    (replace, r"files were changed or swapped: 'model\.pkl'"),
    (remove, r"signed files are missing: 'requirements\.txt'"),
    (add, r"files that nobody signed: 'code\.py'"),
    (unsign, "is not signed"),
    (swap_manifest, "is that of model/m-"),
    (swap_everything, "moved or swapped|run key|cannot be had"),
    (sign_by_a_stranger, "does not pin"),
]


@pytest.mark.parametrize(("attack", "said"), ATTACKS, ids=[one.__name__ for one, _ in ATTACKS])
def test_an_attack_is_refused_before_anything_is_unpickled(
    local_store: Store, local_experiment: str, attack: Callable[[Model, Model, Store], None], said: str
) -> None:
    model, other = Model(register=local_experiment), Model("other", (1, 0))
    attack(model, other, local_store)
    for uri in (model.uri, f"runs:/{model.run_id}/press", f"models:/{local_experiment}/1"):
        with pytest.raises(EncryptionError, match=said):
            load(uri)
        with pytest.raises(EncryptionError, match=said), securemfg.step("inference"):
            mlflow.pyfunc.load_model(uri)
    assert not Path("pwned").exists()
    refused = events("artifact.refused")
    assert {event["outcome"] for event in refused} == {"denied"}
    assert load(other.uri) == [1, 0]


def test_the_forged_pickle_would_have_run(local_store: Store, local_experiment: str, own_place: Path) -> None:
    """The same forgery where models are not signed: encryption alone does not stop who can read."""
    signing(own_place)
    model = Model()
    assert not any(MANIFEST in path for path in model.files(local_store))
    forge(model, local_store)
    with pytest.raises(Exception, match="predict"):
        load(model.uri)
    assert Path("pwned").is_dir()


@pytest.mark.parametrize("kind", ["s3", "server"])
def test_a_forged_model_is_refused_from_remote_stores(kind: str, request: pytest.FixtureRequest) -> None:
    from tests.parts.mlflow_server import use

    store: Store = request.getfixturevalue(f"{kind}_store")
    for name in use(store):
        model = Model(register=name)
        forge(model, store)
        for uri in (model.uri, f"models:/{name}/1"):
            with pytest.raises(DecryptionError, match="changed or swapped"):
                load(uri)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "logged"])
def test_an_older_model_put_back_with_its_own_manifest_is_refused(
    store: Store, experiment: str, *, registered: bool
) -> None:
    """Every byte of it was once signed by the right key, for this very place: only the pin tells."""
    from mlflow.models import infer_signature, set_signature

    model = Model()
    old = model.files(store)
    with securemfg.step("training"):
        set_signature(model.uri, infer_signature([[0.0]], [1]))
        if registered:
            mlflow.register_model(model.uri, experiment)
    uris = [f"models:/{experiment}/1"] if registered else [model.uri, f"runs:/{model.run_id}/press"]
    assert [load(uri) for uri in uris] == [[0, 1]] * len(uris)
    for path, data in old.items():
        store.put(path, data)
    for uri in uris:
        with pytest.raises(DecryptionError, match=r"is pinned to sha256:.*another model, or an older or newer one"):
            load(uri)


def test_the_pin_is_what_the_resolver_was_told_once_and_asked_for_anew_later(
    store: Store, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    asked: list[str] = []
    ask = TrackingServiceClient.get_logged_model

    def counting(client: TrackingServiceClient, model_id: str, *rest: object, **more: object) -> object:
        asked.append(model_id)
        return ask(client, model_id, *rest, **more)

    model = Model()
    monkeypatch.setattr(TrackingServiceClient, "get_logged_model", counting)
    with securemfg.step("inference"):
        resolver = get_artifact_repository(model.uri)
        resolver.download_artifacts("")
        assert asked == [model.id]  # where it lies and what it is pinned to, in one question
        mlflow.MlflowClient().set_logged_model_tags(model.id, {"securemfg.manifest": f"sha256:{'0' * 64}"})
        asked.clear()
        with pytest.raises(DecryptionError, match="is pinned to sha256:000"):
            resolver.download_artifacts("")
        assert asked == [model.id]


def test_a_model_that_the_tracking_store_does_not_know_is_loaded_without_a_pin(
    local_store: Store, local_experiment: str, tmp_path: Path
) -> None:
    model = Model()
    place = mlflow.get_logged_model(model.id).artifact_location
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'another.db'}")
    assert load(place) == [0, 1]


def test_a_tracking_store_that_does_not_answer_is_no_model_without_a_pin(
    local_store: Store, local_experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    place = mlflow.get_logged_model(model.id).artifact_location
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(DecryptionError, match="is pinned to cannot be asked for"):
        load(place)


def test_one_file_of_a_model_is_checked_by_itself(local_store: Store, local_experiment: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    model = Model()
    forge(model, local_store)
    with securemfg.step("inference"):
        repository = get_artifact_repository(model.uri)
        assert "sklearn" in Path(repository.download_artifacts("MLmodel")).read_text()
        with pytest.raises(DecryptionError, match="changed or swapped"):
            repository.download_artifacts("model.pkl")


def test_a_single_download_of_the_repository_is_checked_before_the_file_appears(
    local_store: Store, local_experiment: str, tmp_path: Path
) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    model = Model()
    forge(model, local_store)
    with securemfg.step("inference"):
        repository = get_artifact_repository(model.uri)
        repository._download_file("MLmodel", str(tmp_path / "MLmodel"))
        with pytest.raises(DecryptionError, match="changed or swapped"):
            repository._download_file("model.pkl", str(tmp_path / "model.pkl"))
    assert (tmp_path / "MLmodel").exists()
    assert not (tmp_path / "model.pkl").exists()


# -- settings ---------------------------------------------------------------------------------------------------------


def test_without_signer_and_signers_models_are_neither_signed_nor_refused(
    local_store: Store, local_experiment: str, own_place: Path
) -> None:
    signing(own_place)
    model = Model(register=local_experiment)
    assert not any(MANIFEST in path for path in model.files(local_store))
    assert "securemfg.manifest" not in mlflow.MlflowClient().get_model_version(local_experiment, "1").tags
    assert load(f"models:/{local_experiment}/1") == [0, 1]


def test_models_from_before_are_refused_until_someone_vouches_for_them(
    local_store: Store, local_experiment: str, own_place: Path, cli: Callable[..., Ran]
) -> None:
    signing(own_place)
    model = Model(register=local_experiment)
    create_signing_key(own_place / "signer.key", own_place / "signer.pem")
    signing(own_place, signer="ed25519:signer.key", signers=["ed25519:signer.pem"])
    with pytest.raises(DecryptionError, match=r"is not signed, and artifacts\.signers .*securemfg artifacts sign"):
        load(model.uri)
    place = str(local_store.artifact_location)
    told = cli("artifacts", "verify", place)
    assert told.code == 1
    assert "the model is not signed" in told.err
    told = cli("artifacts", "sign", place)
    assert told.code == 0, told.err
    assert f"signed model/{model.id}: " in told.out
    assert load(model.uri) == [0, 1]
    with pytest.raises(DecryptionError, match="is not pinned to a manifest"):
        load(f"models:/{local_experiment}/1")
    told = cli("artifacts", "sign", f"models:/{local_experiment}/1")
    assert told.code == 0, told.err
    assert load(f"models:/{local_experiment}/1") == [0, 1]
    told = cli("artifacts", "verify", place)
    assert told.code == 0, told.err


def test_a_version_registered_elsewhere_is_refused_and_an_unsigned_model_is_not_registered(
    local_store: Store, local_experiment: str, own_place: Path, signer: Path
) -> None:
    model = Model()
    reset()
    mlflow.register_model(model.uri, local_experiment)  # without securemfg
    with pytest.raises(DecryptionError, match="is not pinned to a manifest"):
        load(f"models:/{local_experiment}/1")
    local_store.remove(model.place(local_store, MANIFEST))
    with securemfg.step("training"), pytest.raises(DecryptionError, match="no version can be pinned"):
        mlflow.register_model(model.uri, local_experiment)


def test_observe_loads_and_audits_what_enforce_refuses(local_store: Store, local_experiment: str, signer: Path) -> None:
    model = Model()
    local_store.remove(model.place(local_store, MANIFEST))
    in_observe(signer)
    with securemfg.step("training"):
        mlflow.register_model(model.uri, local_experiment)
    assert load(f"models:/{local_experiment}/1") == [0, 1]
    assert any(
        "is not signed" in event["reason"] and event["outcome"] == "failure" for event in events("artifact.refused")
    )


def test_who_only_verifies_needs_only_the_public_key(local_store: Store, local_experiment: str, signer: Path) -> None:
    model = Model(register=local_experiment)
    (signer / "signer.key").unlink()
    signing(signer, signers=["ecdsa:signer.pem"])
    assert load(f"models:/{local_experiment}/1") == [0, 1]
    assert load(model.uri) == [0, 1]


def test_a_key_that_is_no_longer_pinned_no_longer_counts(
    local_store: Store, local_experiment: str, signer: Path
) -> None:
    model = Model(register=local_experiment)
    create_signing_key(signer / "new.key", signer / "new.pem", kind="ecdsa")
    signing(signer, signer="ecdsa:new.key", signers=["ecdsa:new.pem", "ecdsa:signer.pem"])
    assert load(model.uri) == [0, 1]
    signing(signer, signer="ecdsa:new.key", signers=["ecdsa:new.pem"])
    with pytest.raises(DecryptionError, match="does not pin"):
        load(model.uri)
    from securemfg.artifacts.signed_stores import sign_models
    from securemfg.workflow import default_workflow

    with securemfg.step("evaluation"):
        before = mlflow.MlflowClient().get_model_version(local_experiment, "1").tags["securemfg.manifest"]
        signed = sign_models(str(local_store.artifact_location), default_workflow().protection)
    assert [one.pin for one in signed] == [before]  # the same content: what was pinned stays pinned
    assert load(f"models:/{local_experiment}/1") == [0, 1]


def test_a_signer_out_of_reach_fails_the_write_before_it(
    local_store: Store, local_experiment: str, signer: Path
) -> None:
    (signer / "signer.key").unlink()
    with pytest.raises(KeyUnavailable, match=r"signer\.key is missing"):
        Model()
    assert not any("/artifacts/MLmodel" in path for path in local_store.stored())


def test_deactivated_mlflow_registers_as_it_always_did(local_store: Store, local_experiment: str) -> None:
    from mlflow.tracking._model_registry.client import ModelRegistryClient

    before = ModelRegistryClient.create_model_version
    with securemfg.step("training"):
        assert ModelRegistryClient.create_model_version is not before
    reset()
    assert ModelRegistryClient.create_model_version is before


def test_verify_finds_what_was_changed_in_a_signed_store(
    local_store: Store, local_experiment: str, signer: Path, cli: Callable[..., Ran]
) -> None:
    model = Model()
    place = str(local_store.artifact_location)
    before = local_store.stored()
    forge(model, local_store)  # each file is a valid message still
    told = cli("artifacts", "verify", place, "--json")
    assert told.code == 1
    (failed,) = json.loads(told.out)["failed"]
    assert failed["address"].endswith(MANIFEST)
    assert "changed or swapped: 'model.pkl'" in failed["reason"]
    local_store.put(model.place(local_store, "model.pkl"), before[model.place(local_store, "model.pkl")])
    assert cli("artifacts", "verify", place).code == 0


def test_verify_and_sign_go_over_a_bucket(s3_store: Store, signer: Path, cli: Callable[..., Ran]) -> None:
    from tests.parts.mlflow_server import use

    for _ in use(s3_store):
        model = Model()
        assert cli("artifacts", "verify", "s3://plant/mlflow").code == 0
        s3_store.remove(model.place(s3_store, MANIFEST))
        assert cli("artifacts", "verify", "s3://plant/mlflow").code == 1
        assert cli("artifacts", "sign", "s3://plant/mlflow").code == 0
        assert load(model.uri) == [0, 1]


def test_signing_says_when_the_pin_could_not_be_set(
    local_store: Store, local_experiment: str, signer: Path, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    model = Model()
    place, there = str(local_store.artifact_location), mlflow.get_tracking_uri()
    told = cli("artifacts", "sign", place, "--json")
    assert [(one["model"], one["pinned"]) for one in json.loads(told.out)["signed"]] == [(f"model/{model.id}", True)]
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'another.db'}")
    told = cli("artifacts", "sign", place)
    assert told.code == 0, told.err
    assert f"not pinned: MLflow's tracking store here knows no model/{model.id}" in " ".join(told.err.split())
    mlflow.set_tracking_uri(there)
    assert load(model.uri) == [0, 1]  # the same files: the same pin


def test_signing_what_is_forged_or_no_model_is_refused(local_store: Store, local_experiment: str, signer: Path) -> None:
    from securemfg.artifacts.signed_stores import sign_models
    from securemfg.workflow import default_workflow

    model = Model()
    flip(model, model, local_store)
    with securemfg.step("evaluation"):
        with pytest.raises(DecryptionError):
            sign_models(str(local_store.artifact_location), default_workflow().protection)
        shutil.rmtree(str(local_store.artifact_location))
        Path(str(local_store.artifact_location)).mkdir()
        with pytest.raises(ConfigError, match="nothing was signed"):
            sign_models(str(local_store.artifact_location), default_workflow().protection)


# -- signers of services ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_P384"])
def test_kms_signs_and_its_public_half_verifies(aws: str, spec: str) -> None:
    import boto3

    arn = boto3.client("kms").create_key(KeyUsage="SIGN_VERIFY", KeySpec=spec)["KeyMetadata"]["Arn"]
    signer = open_signer(f"aws-kms:{arn}")
    signature, key = signer.sign(b"message")
    (pinned,) = open_pinned(f"aws-kms:{arn}")
    assert pinned.hint == key.hint
    assert pinned.verifies(signature, b"message")
    assert not pinned.verifies(signature, b"another")


def test_a_long_message_goes_to_kms_as_its_digest() -> None:
    """By Stubber: moto signs a digest as if it were the message."""
    import hashlib

    import boto3
    from botocore.stub import Stubber
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    private = ec.generate_private_key(ec.SECP256R1())
    der = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    arn = "arn:aws:kms:eu-central-1:123456789012:key/1"
    message = b"x" * 5000
    kms = boto3.client("kms", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(kms) as stub:
        stub.add_response("get_public_key", {"KeyId": arn, "PublicKey": der, "KeyUsage": "SIGN_VERIFY"})
        asked = {"KeyId": arn, "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256",
                 "Message": hashlib.sha256(message).digest()}  # fmt: skip
        stub.add_response("sign", {"KeyId": arn, "Signature": private.sign(message, ec.ECDSA(SHA256()))}, asked)
        signer = open_signer(f"aws-kms:{arn}", services=KeyServices(kms=lambda _: kms))
        signature, key = signer.sign(message)
        assert key.verifies(signature, message)
        stub.add_response("sign", {"KeyId": arn, "Signature": b"wrong"})
        with pytest.raises(KeyUnavailable, match="does not verify: nothing was signed"):
            signer.sign(b"short")
        stub.add_client_error("sign", "AccessDeniedException")
        with pytest.raises(KeyUnavailable, match="needs kms:Sign"):
            signer.sign(b"short")


def test_a_kms_key_that_encrypts_does_not_sign(aws: str) -> None:
    import boto3

    arn = boto3.client("kms").create_key()["KeyMetadata"]["Arn"]
    with pytest.raises(KeyUnavailable):
        open_signer(f"aws-kms:{arn}").sign(b"message")


@pytest.fixture
def transit(openbao: OpenBao, own_place: Path) -> tuple[OpenBao, str]:
    mount = unique("transit")
    openbao.api("POST", f"sys/mounts/{mount}", {"type": "transit"})
    return openbao, mount


def vault_settings(openbao: OpenBao, folder: Path) -> str:
    token = folder / "token"
    token.write_text(openbao.root_token)
    token.chmod(0o600)
    return f'[vault]\naddress = "{openbao.address}"\nauth = {{ method = "token", token_file = "{token}" }}\n'


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-p256", "ecdsa-p384"])
def test_transit_signs_models_and_old_versions_verify_until_they_end(
    transit: tuple[OpenBao, str], local_store: Store, local_experiment: str, own_place: Path, kind: str
) -> None:
    openbao, mount = transit
    openbao.api("POST", f"{mount}/keys/models", {"type": kind})
    text = f"vault-transit:{mount}/models"

    def fresh() -> None:
        signing(own_place, signer=text, signers=[text])
        settings = own_place / "securemfg.toml"
        settings.write_text(settings.read_text() + vault_settings(openbao, own_place))

    fresh()
    old = Model()
    openbao.api("POST", f"{mount}/keys/models/rotate", {})
    new = Model("other", (1, 0))  # signed by the new version, though the old one's public key is remembered
    signers = [event["detail"]["signer"] for event in events("model.signed")]
    assert [one.rpartition(" ")[2] for one in signers] == ["(v1)", "(v2)"]
    fresh()
    assert load(old.uri) == [0, 1]
    assert load(new.uri) == [1, 0]
    openbao.api("POST", f"{mount}/keys/models/config", {"min_decryption_version": 2})
    fresh()
    assert load(new.uri) == [1, 0]
    with pytest.raises(DecryptionError, match="does not pin"):
        load(old.uri)


def test_a_transit_key_of_another_type_or_none_is_said(transit: tuple[OpenBao, str], own_place: Path) -> None:
    from securemfg.workflow import Workflow

    openbao, mount = transit
    openbao.api("POST", f"{mount}/keys/wrapping", {"type": "aes256-gcm96"})
    (own_place / "securemfg.toml").write_text(vault_settings(openbao, own_place))
    services = Workflow.from_config(own_place).key_services
    with pytest.raises(KeyUnavailable, match="is of type 'aes256-gcm96': a signer needs ed25519"):
        open_signer(f"vault-transit:{mount}/wrapping", services=services).sign(b"x")
    with pytest.raises(KeyUnavailable, match=rf"the policy needs read on {mount}/keys/absent"):
        open_pinned(f"vault-transit:{mount}/absent", services=services)
