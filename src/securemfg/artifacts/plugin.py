"""What MLflow's registry calls for a URI: the built-in repository as it is, or encrypted while that is on.

MLflow loads this module by entry points in the middle of its own import, so nothing of MLflow is imported before the
first call. A server that has the plugin installed does not encrypt by accident: without `activate` it changes nothing.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from securemfg.artifacts.state import STATE
from securemfg.errors import EncryptionError

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
        if STATE.protection is None or _is_staged(artifact_uri):
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
        if STATE.protection is None:
            return self.inner(artifact_uri, **named(tracking_uri, registry_uri))
        from securemfg.artifacts.refusals import no_bypass, raising
        from securemfg.artifacts.registration import listening, pinned

        with listening() as told:
            repository = self.inner(artifact_uri, **named(tracking_uri, registry_uri))
        no_bypass(repository, artifact_uri, STATE.protection)
        for name, around in (("download_artifacts", raising), ("_download_file", lambda call: call)):
            setattr(repository, name, around(pinned(getattr(repository, name), repository, artifact_uri, told)))
        return repository


def _is_staged(uri: str) -> bool:
    """Whether `uri` is a path into staging: no store, but what MLflow is saving or has loaded."""
    if not uri.startswith("/"):
        return False
    from securemfg.artifacts.staging import is_staged

    return is_staged(Path(os.path.normpath(uri)))


def _built_in(scheme: str, module: str, name: str) -> Wrapped:
    def inner(artifact_uri: str, **options: Any) -> Any:
        return getattr(importlib.import_module(f"mlflow.store.artifact.{module}"), name)(artifact_uri, **options)

    inner.__name__ = name
    return Wrapped(scheme, inner)


_OFFERED: Final = {  # by the names that the package's entry points give
    "file_repository": _built_in("file", "local_artifact_repo", "LocalArtifactRepository"),
    "s3_repository": _built_in("s3", "s3_artifact_repo", "S3ArtifactRepository"),
    "mlflow_artifacts_repository": _built_in("mlflow-artifacts", "mlflow_artifacts_repo", "MlflowArtifactsRepository"),
    "http_repository": _built_in("http", "http_artifact_repo", "HttpArtifactRepository"),
    "https_repository": _built_in("https", "http_artifact_repo", "HttpArtifactRepository"),
}


def __getattr__(name: str) -> Wrapped:
    """MLflow asks for an entry point: the moment to turn encryption on where it is to be on from the start."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if STATE.protection is None:
        _begin()
    return _OFFERED[name]


def _begin() -> None:
    try:
        from securemfg.artifacts.asked import asked

        if asked():
            from securemfg.artifacts.activation import inherit

            inherit()
    except (ImportError, AttributeError) as error:  # MLflow would only warn, and go on in plaintext
        raise EncryptionError(
            f"artifacts are to be encrypted here, and securemfg cannot be loaded ({error}): reinstall it"
        ) from error
