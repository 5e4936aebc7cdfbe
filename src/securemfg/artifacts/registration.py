"""Models and their manifests: pinned as they are registered or logged, expected as they are loaded.

The pin is a tag of the registered version, in the registry, or of the logged model, in the tracking store: who can
write to the artifact store alone cannot change it. Loaded with the activation, so what takes long to import is imported
where it is used.
"""

from __future__ import annotations

import functools
import inspect
import posixpath
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from securemfg.artifacts.state import STATE
from securemfg.errors import DecryptionError, EncryptionError
from securemfg.transport.arrival import Watch

if TYPE_CHECKING:
    from securemfg.artifacts.location import Location
    from securemfg.artifacts.protection import Protection

TAG: Final = "securemfg.manifest"
_FRESH: Final = 5.0  # seconds that an answer of the tracking store is taken for its answer now
_CLIENT: Final = "mlflow.tracking._model_registry.client"
_NOT_THERE: Final = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ENDPOINT_NOT_FOUND"})
_PROMPT: Final = "mlflow.prompt.is_prompt"  # prompts are registered models without artifacts


# -- loading ----------------------------------------------------------------------------------------------------------


class Told:
    """The tags of logged models, by id, that a resolver was told when it asked where they lie.

    They hold for one download, and only right after: an older answer could bring an older model back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._tags: dict[str, dict[str, str]] = {}

    def add(self, model_id: str, tags: dict[str, str]) -> None:
        self._tags[model_id] = tags

    def take(self) -> dict[str, dict[str, str]]:
        """What still holds. Nothing of it does afterwards."""
        tags, self._tags = self._tags, {}
        return tags if self._clock() - self._at < _FRESH else {}


class _Answers(threading.local):
    def __init__(self) -> None:
        self.coming: Told | None = None  # while a resolver asks
        self.known: dict[str, dict[str, str]] = {}  # while what it resolved is loaded


_answers = _Answers()


@contextmanager
def listening() -> Iterator[Told]:
    """While a resolver is made: what it is told, so that the same question need not be put again at once."""
    from mlflow import MlflowClient

    with STATE.lock:
        if STATE.protection is not None:
            _take_over(MlflowClient, "get_logged_model", _listened_to)
    told = Told()
    before, _answers.coming = _answers.coming, told
    try:
        yield told
    finally:
        _answers.coming = before


def pinned(download: Callable[..., Any], resolver: Any, uri: str, told: Told) -> Callable[..., Any]:
    """A resolver's download that expects the manifest its registered version, or its logged model, is pinned to.

    `told` answers for the logged model where it still holds, else the tracking store is asked.
    """

    @functools.wraps(download)
    def downloaded(*args: Any, **options: Any) -> Any:
        protection = STATE.protection
        signatures = protection.signatures if protection is not None else None
        version = _version(resolver, uri) if signatures is not None and signatures.required else None
        if version is None:
            before, _answers.known = _answers.known, told.take()
            try:
                return download(*args, **options)
            finally:
                _answers.known = before
        from securemfg.artifacts.authenticity import Pin, expecting

        tags = _client(resolver).get_model_version(*version).tags
        with expecting(Pin("/".join(version), tags.get(TAG))):
            return download(*args, **options)

    return downloaded


def _version(resolver: Any, uri: str) -> tuple[str, str] | None:
    """Name and version that a `models:` resolver was made for, or None for a logged model."""
    name, version = getattr(resolver, "model_name", None), getattr(resolver, "model_version", None)
    if name is not None and version is not None:
        return str(name), str(version)
    if not uri.startswith("models:") or getattr(resolver, "is_logged_model_uri", False):
        return None
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    found = get_model_name_and_version(_client(resolver), uri)
    return (str(found[0]), str(found[1])) if len(found) == 2 else None


def _client(resolver: Any) -> Any:
    import mlflow

    return mlflow.MlflowClient(registry_uri=getattr(resolver, "registry_uri", None) or mlflow.get_registry_uri())


# -- registering ------------------------------------------------------------------------------------------------------


def pin_of(source: str, protection: Protection) -> str | None:
    """The pin of the model at `source` (any URI of MLflow's), its manifest verified; None when nobody signs here.

    Raises DecryptionError.
    """
    signatures = protection.signatures
    if signatures is None or not signatures.required:
        return None
    from securemfg.artifacts.authenticity import name_of
    from securemfg.artifacts.manifest import FILE, MAX_MANIFEST, verified

    tried: list[str] = []
    for repository, location in stored_at(source):
        path = posixpath.join(location.path, FILE)
        try:
            bundle = repository.get_small(location.root, path, MAX_MANIFEST)
        except Exception as error:  # noqa: BLE001 - every store has errors of its own for "not there"
            tried.append(f"{name_of(location.root, location.path)}: {error}"[:200])
            continue
        manifest = verified(bundle, signatures.pinned(), origin=signatures.origin)
        if manifest.name != name_of(location.root, location.path):
            raise DecryptionError(f"the manifest at {source} is that of {manifest.name}: it was moved or swapped")
        return manifest.pin
    raise DecryptionError(
        f"{source} is not signed, so no version can be pinned to it: log it where artifacts.signer is set, or, if you "
        f"trust what is stored, 'securemfg artifacts sign' it ({'; '.join(tried) or 'it belongs to no run or model'})"
    )


def stored_at(uri: str) -> Iterator[tuple[Any, Location]]:
    """Our repositories that a URI of MLflow's leads to, each with its place: of `runs:` the run's, then the model's."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from securemfg.artifacts.location import locate
    from securemfg.artifacts.repository import EncryptedRepository

    repository: Any = get_artifact_repository(uri)
    while not isinstance(repository, EncryptedRepository):
        logged = getattr(repository, "_get_logged_model_artifact_repo", None)
        inner = getattr(repository, "repo", None)
        if inner is None:
            return
        if logged is not None and isinstance(inner, EncryptedRepository):
            location = locate(inner.artifact_uri)
            if location is not None:
                yield inner, location
            run_id, path = repository.parse_runs_uri(repository.artifact_uri)
            inner = logged(run_id=run_id, name=path) if path else None
            if inner is None:
                return
        repository = inner
    location = locate(repository.artifact_uri)
    if location is not None:
        yield repository, location


def pin_version(uri: str, pin: str) -> None:
    """Pin the registered version that a `models:` address names, if it names one."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    resolver = get_artifact_repository(uri)
    version = _version(resolver, uri)
    if version is not None:
        _client(resolver).set_model_version_tag(*version, TAG, pin)


# -- logged models ----------------------------------------------------------------------------------------------------


def pin_logged(model_id: str, pin: str, tracking_uri: str | None) -> bool:
    """Pin a logged model to its manifest. False when the tracking store knows no such model.

    Raises EncryptionError: without its new pin the model would be refused.
    """
    try:
        _of_logged(model_id, tracking_uri, lambda client: client.set_logged_model_tags(model_id, {TAG: pin}))
    except _Unknown:
        return False
    except Exception as error:
        raise EncryptionError(
            f"model {model_id} is signed, and its tag {TAG!r} could not be set ({error}): it cannot be loaded before "
            f"'securemfg artifacts sign' has set it"
        ) from error
    return True


def logged_pin(model_id: str, tracking_uri: str | None) -> str | None:
    """What a logged model is pinned to, or None where nothing says so. Raises DecryptionError."""
    if tracking_uri is None and model_id in _answers.known:
        return _answers.known[model_id].get(TAG)
    try:
        tags = _of_logged(model_id, tracking_uri, lambda client: client.get_logged_model(model_id).tags)
    except _Unknown:
        return None
    except Exception as error:
        raise DecryptionError(f"what model {model_id} is pinned to cannot be asked for: {error}") from error
    return tags.get(TAG) if tags else None


class _Unknown(Exception):
    """The tracking store knows no such model, or no logged models at all."""


def _of_logged(model_id: str, tracking_uri: str | None, ask: Callable[[Any], Any]) -> Any:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return ask(MlflowClient(tracking_uri=tracking_uri))
    except MlflowException as error:
        said: BaseException | None = error
        while said is not None:  # MLflow wraps its own in others, with a hint and without the code
            if isinstance(said, MlflowException) and said.error_code in _NOT_THERE:
                raise _Unknown(model_id) from error
            said = said.__cause__ or said.__context__
        raise


def _registering(create: Callable[..., Any]) -> Callable[..., Any]:
    """The registry client's `create_model_version`, which tags the version with its pin."""
    signature = inspect.signature(create)

    @functools.wraps(create)
    def created(*args: Any, **options: Any) -> Any:
        protection = STATE.protection
        if protection is None:
            return create(*args, **options)
        bound = signature.bind(*args, **options)
        tags = bound.arguments.get("tags") or {}
        if _PROMPT in tags:
            return create(*args, **options)
        source = str(bound.arguments["source"])
        try:
            pin = pin_of(source, protection)
        except DecryptionError as error:
            enforcing = protection.enforcing
            protection.emit(
                "artifact.refused",
                resource=source,
                kind="model",
                outcome="denied" if enforcing else "failure",
                reason=str(error),
            )
            if enforcing:
                raise
            pin = None
        bound.arguments["tags"] = {**tags, TAG: pin} if pin else tags
        return create(*bound.args, **bound.kwargs)

    return created


def _listened_to(get: Callable[..., Any]) -> Callable[..., Any]:
    """The tracking client's `get_logged_model`, whose answer is kept while a resolver asks."""

    @functools.wraps(get)
    def got(*args: Any, **options: Any) -> Any:
        model = get(*args, **options)
        if _answers.coming is not None:
            _answers.coming.add(model.model_id, dict(model.tags or {}))
        return model

    return got


_replaced: dict[str, tuple[Any, Any]] = {}  # method: its class, and as it was


def _take_over(client: Any, method: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    if method not in _replaced and hasattr(client, method):  # old MLflow has no logged models
        _replaced[method] = client, getattr(client, method)
        setattr(client, method, around(getattr(client, method)))


def _arrived(module: str) -> None:
    _take_over(sys.modules[module].ModelRegistryClient, "create_model_version", _registering)


_watch = Watch([_CLIENT], _arrived)


def start() -> None:
    """Pin what is registered from now on. Works before or after MLflow is imported."""
    _watch.start()


def stop() -> None:
    """MLflow's clients are as they were."""
    _watch.stop()
    while _replaced:
        method, (client, original) = _replaced.popitem()
        setattr(client, method, original)
