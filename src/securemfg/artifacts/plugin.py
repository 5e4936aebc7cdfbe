"""What MLflow's registry calls for a URI: the built-in repository as it is, or encrypted while that is on.

MLflow loads this module by entry points in the middle of its own import, so nothing of MLflow is imported before the
first call. A server that has the plugin installed does not encrypt by accident: without `activate` it changes nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from securemfg.artifacts.state import STATE

Factory: TypeAlias = Callable[..., Any]


def named(tracking_uri: str | None, registry_uri: str | None) -> dict[str, str]:
    """A repository's optional arguments; older MLflow has none of them."""
    return {
        name: value
        for name, value in (("tracking_uri", tracking_uri), ("registry_uri", registry_uri))
        if value is not None
    }


class Wrapped:
    """A factory for one scheme, around the factory that serves it."""

    def __init__(self, scheme: str, inner: Factory) -> None:
        self.scheme = scheme
        self.inner = inner
        self.__name__ = getattr(inner, "__name__", f"{scheme}_repository")  # MLflow names dataset sources after it

    def __call__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
        if STATE.protection is None:
            return self.inner(artifact_uri, **named(tracking_uri, registry_uri))
        from securemfg.artifacts.repository import EncryptedRepository

        return EncryptedRepository(self.inner, artifact_uri, tracking_uri, registry_uri)

    def __repr__(self) -> str:
        return f"<securemfg around {self.scheme or 'bare paths'}>"


class Resolving(Wrapped):
    """A factory for `runs:` and `models:`, which look up another URI and ask the registry again.

    MLflow's resolvers swallow what their inner repositories raise, and fill the temporary folder: a refusal is raised
    again here, and what is downloaded goes to our staging.
    """

    def __call__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
        repository = self.inner(artifact_uri, **named(tracking_uri, registry_uri))
        if STATE.protection is not None:
            from securemfg.artifacts.refusals import no_bypass, raising

            no_bypass(repository, artifact_uri, STATE.protection)
            repository.download_artifacts = raising(repository.download_artifacts)
        return repository


def _built_in(scheme: str, module: str, name: str) -> Wrapped:
    def inner(artifact_uri: str, **options: Any) -> Any:
        return getattr(importlib.import_module(f"mlflow.store.artifact.{module}"), name)(artifact_uri, **options)

    inner.__name__ = name
    return Wrapped(scheme, inner)


file_repository: Final = _built_in("file", "local_artifact_repo", "LocalArtifactRepository")
s3_repository: Final = _built_in("s3", "s3_artifact_repo", "S3ArtifactRepository")
mlflow_artifacts_repository: Final = _built_in("mlflow-artifacts", "mlflow_artifacts_repo", "MlflowArtifactsRepository")
http_repository: Final = _built_in("http", "http_artifact_repo", "HttpArtifactRepository")
https_repository: Final = _built_in("https", "http_artifact_repo", "HttpArtifactRepository")
