"""What MLflow expects of an artifact repository, held against ours: over a folder, S3, a server, and presigned parts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import securemfg
from securemfg.encryption.message import looks_like_message
from securemfg.errors import SecureMfgError
from tests.parts.mlflow_server import Store, use

ID = "4f1c" * 8


@pytest.fixture(params=["local", "s3", "server", "presigned"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, request: pytest.FixtureRequest) -> Store:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")
    found: Store = request.getfixturevalue(f"{kind}_store")
    return found


@pytest.fixture
def repository(store: Store) -> Iterator[Any]:
    """The repository that MLflow's registry gives for a new run, while a step is on."""
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for _ in use(store):
        with securemfg.step("training"), mlflow.start_run() as run:
            yield get_artifact_repository(run.info.artifact_uri)


def tree(folder: str, **files: bytes) -> str:
    """Files below `folder`: `a__b` is a/b."""
    for name, data in files.items():
        path = Path(folder, name.replace("__", "/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def listed(repository: Any, path: str | None = None) -> list[tuple[str, bool]]:
    return sorted((info.path, info.is_dir) for info in repository.list_artifacts(path))


def read(repository: Any, path: str) -> bytes:
    return Path(repository.download_artifacts(path)).read_bytes()


@pytest.mark.parametrize("artifact_path", [None, "", "models", "a/b/c"])
def test_a_file_comes_back_from_where_it_was_put(repository: Any, store: Store, artifact_path: str | None) -> None:
    tree("in", note=b"hello")
    repository.log_artifact("in/note", artifact_path)
    where = f"{artifact_path}/note" if artifact_path else "note"
    assert read(repository, where) == b"hello"
    assert (where, False) in listed(repository, artifact_path)
    assert all(looks_like_message(data) for path, data in store.stored().items())


def test_a_file_logged_again_replaces_the_one_before(repository: Any) -> None:
    for text in (b"first, and longer", b"second"):
        tree("in", note=text)
        repository.log_artifact("in/note")
        assert read(repository, "note") == text
    assert listed(repository) == [("note", False)]


@pytest.mark.parametrize("artifact_path", [None, "models/press"])
def test_a_folder_comes_back_whole(repository: Any, artifact_path: str | None) -> None:
    files = {"a": b"1", "sub__b": b"", "sub__deep__c": b"x" * 5000}
    repository.log_artifacts(tree("in", **files), artifact_path)
    placed = Path(repository.download_artifacts(artifact_path or ""))
    found = {str(path.relative_to(placed)): path.read_bytes() for path in placed.rglob("*") if path.is_file()}
    assert found == {name.replace("__", "/"): data for name, data in files.items()}


def test_names_that_need_quoting_come_back(repository: Any) -> None:
    names = ["with space", "ümläut 日本", "plus+and&", "semi;colon", "dots..inside", "-dash"]  # a server decodes %20
    Path("in").mkdir()
    for name in names:
        Path("in", name).write_bytes(name.encode())
    repository.log_artifacts("in", "odd names")
    assert {path for path, _ in listed(repository, "odd names")} == {f"odd names/{name}" for name in names}
    for name in names:
        assert read(repository, f"odd names/{name}") == name.encode()


def test_lists_say_what_is_a_folder_and_how_large_a_file_is(repository: Any) -> None:
    repository.log_artifacts(tree("in", a=b"12345", sub__b=b"", sub__deep__c=b"xyz"))
    assert listed(repository) == [("a", False), ("sub", True)]
    assert listed(repository, "sub") == [("sub/b", False), ("sub/deep", True)]
    assert listed(repository, "sub/") == [("sub/b", False), ("sub/deep", True)]
    sizes = {info.path: info.file_size for info in repository.list_artifacts("sub/deep")}
    assert sizes == {"sub/deep/c": 3}
    assert [info.file_size for info in repository.list_artifacts() if info.is_dir] in ([None], [0])


def test_listing_a_file_or_what_is_not_there_gives_nothing(repository: Any) -> None:
    repository.log_artifacts(tree("in", a=b"12345"))
    assert listed(repository, "a") == []
    assert listed(repository, "nowhere") == []


def test_a_download_goes_where_it_is_told(repository: Any) -> None:
    repository.log_artifacts(tree("in", a=b"A", sub__b=b"B"), "model")
    Path("out").mkdir()
    Path("out/kept").write_bytes(b"kept")
    placed = Path(repository.download_artifacts("model", "out"))
    assert placed == Path("out/model").absolute()
    assert (placed / "a").read_bytes() == b"A"
    assert (placed / "sub" / "b").read_bytes() == b"B"
    assert Path("out/kept").read_bytes() == b"kept"
    assert Path(repository.download_artifacts("model/a", "out")).read_bytes() == b"A"
    assert sorted(os.listdir("out")) == ["kept", "model"]


def test_what_is_not_there_is_an_error_and_leaves_nothing(repository: Any) -> None:
    Path("out").mkdir()
    repository.log_artifacts(tree("in", a=b"A"))
    with pytest.raises(Exception, match=r".") as caught:
        repository.download_artifacts("nowhere", "out")
    assert not isinstance(caught.value, AssertionError)
    assert os.listdir("out") == []
    with pytest.raises(Exception, match=r"."):
        repository.log_artifact("in/nowhere")
    with pytest.raises(Exception, match=r"."):
        repository.log_artifacts("nowhere-at-all")
    with pytest.raises(Exception, match=r"."):
        repository.download_artifacts("a", "no-such-folder")


def test_deletes_take_what_they_name_and_no_more(repository: Any) -> None:
    repository.log_artifacts(tree("in", a=b"A", ab=b"AB", sub__b=b"B", sub__c=b"C", subway__d=b"D"))
    repository.delete_artifacts("a")
    assert [path for path, _ in listed(repository)] == ["ab", "sub", "subway"]
    repository.delete_artifacts("sub")
    assert [path for path, _ in listed(repository)] == ["ab", "subway"]
    assert read(repository, "ab") == b"AB"


PATHS = [
    "../x",
    "..",
    "a/../../x",
    "/etc/passwd",
    "a//../../x",
    "./../x",
    "%2e%2e/x",
    "a/%2e%2e/%2e%2e/%2e%2e/x",
    ".securemfg",
    "a/.securemfg/keys",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_out_or_into_our_own_folder_are_refused(repository: Any, store: Store, path: str) -> None:
    from mlflow.exceptions import MlflowException

    tree("in", note=b"hello")
    repository.log_artifact("in/note")
    before = store.stored()
    for attempt in (
        lambda: repository.log_artifact("in/note", path),
        lambda: repository.log_artifacts("in", path),
        lambda: repository.download_artifacts(path),
        lambda: repository.delete_artifacts(path),
    ):
        try:
            attempt()
        except (MlflowException, SecureMfgError, OSError, ValueError):
            continue
        # a name that only looks like a way out is a name: then it must lie below the root, encrypted
        assert "%2e" in path, attempt
    added = {name: data for name, data in store.stored().items() if name not in before}
    assert all("%2e" in name and looks_like_message(data) for name, data in added.items())
    assert read(repository, "note") == b"hello"


def test_a_large_file_goes_in_parts_and_comes_back(repository: Any, store: Store) -> None:
    data = os.urandom(13_000_000)
    tree("in", model=data)
    repository.log_artifact("in/model", "large")
    assert read(repository, "large/model") == data
    (stored,) = [body for path, body in store.stored().items() if path.endswith("large/model")]
    assert looks_like_message(stored)
    assert data[:64] not in stored


def test_presigned_parts_really_go_past_the_server(presigned_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    parts: list[int] = []
    upload = HttpArtifactRepository._upload_part

    def counted(credential: Any, local_file: str, size: int, start_byte: int) -> Any:
        parts.append(size)
        return upload(credential, local_file, size, start_byte)

    monkeypatch.setattr(HttpArtifactRepository, "_upload_part", staticmethod(counted))
    tree("in", model=os.urandom(13_000_000))
    for _ in use(presigned_store):
        with securemfg.step("training"), mlflow.start_run() as run:
            get_artifact_repository(run.info.artifact_uri).log_artifact("in/model")
    assert len(parts) == 3


def test_traces_data_comes_back_and_what_is_damaged_is_refused(store: Store) -> None:
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for _ in use(store):
        with securemfg.step("inference"), mlflow.start_run() as run:
            root = run.info.artifact_uri.replace(run.info.run_id, "tr-" + ID)
            repository = get_artifact_repository(root)
            repository.upload_trace_data(json.dumps({"spans": [{"name": "press", "inputs": "canary"}]}))
            assert repository.download_trace_data() == {"spans": [{"name": "press", "inputs": "canary"}]}
            (name,) = [path for path in store.stored() if path.endswith(f"tr-{ID}/artifacts/traces.json")]
            assert b"canary" not in store.stored()[name]
            store.put(name, b'{"spans": []}')
            with pytest.raises(SecureMfgError, match="not encrypted"):
                repository.download_trace_data()


def test_an_id_in_a_users_path_is_only_a_path(repository: Any, store: Store) -> None:
    """The root's id comes from the root's own address, whatever a path below it looks like."""
    tree("in", note=b"hello")
    path = f"{ID}/artifacts/copied"
    repository.log_artifact("in/note", path)
    assert read(repository, f"{path}/note") == b"hello"
    root = repository.artifact_uri.rstrip("/").rsplit("/", 2)[1]
    records = [name for name in store.stored() if f"{root}/artifacts/.securemfg/keys/" in name]
    assert len(records) == 1
    assert ID not in records[0]
