"""What MLflow would carry past us is refused; what it would swallow is raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import securemfg
from securemfg.artifacts.plugin import Resolving
from securemfg.errors import EncryptionError
from tests.parts.trail import events, settings


def databricks(uri: str, **_options: Any) -> Any:
    """Stands for MLflow's resolver of a registry on Databricks, which makes its repository itself."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    resolver = LocalArtifactRepository(str(Path.cwd()))
    resolver.repo = LocalArtifactRepository(str(Path.cwd()))
    return resolver


@pytest.fixture(autouse=True)
def _mlflow() -> None:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'securemfg[mlflow]'")


def test_a_resolver_that_leads_past_the_registry_is_refused_and_audited() -> None:
    with (
        securemfg.step("training"),
        pytest.raises(EncryptionError, match="LocalArtifactRepository, which MLflow makes itself"),
    ):
        Resolving("models", databricks)("models:/press/1")
    (refused,) = events("artifact.refused")
    assert refused["resource"]["id"] == "models:/press/1"


def test_in_observe_it_goes_on_and_is_audited() -> None:
    settings('mode = "observe"\n[keys]\ndefault = "local:k"\n')
    from securemfg.encryption import create_local_key

    create_local_key(Path("k"))
    with securemfg.step("training"):
        assert Resolving("models", databricks)("models:/press/1") is not None
    assert len(events("artifact.refused")) == 1


def test_without_encryption_mlflow_is_left_alone() -> None:
    assert Resolving("models", databricks)("models:/press/1") is not None
    assert events("artifact.refused") == []


def test_a_databricks_registry_of_mlflow_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    from mlflow.store.artifact import models_artifact_repo

    made: list[str] = []

    class Catalog:
        model_name, model_version = "press", "1"

        def __init__(self, artifact_uri: str, **_options: Any) -> None:
            made.append(artifact_uri)

    monkeypatch.setattr(models_artifact_repo, "UnityCatalogModelsArtifactRepository", Catalog)
    mlflow.set_registry_uri("databricks-uc")
    try:
        with securemfg.step("inference"), pytest.raises(EncryptionError, match="Catalog, which MLflow makes itself"):
            mlflow.artifacts.download_artifacts("models:/plant.line.press/1")
    finally:
        mlflow.set_registry_uri("")
    assert made
