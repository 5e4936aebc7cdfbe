"""MLflow's registry of artifact repositories, taken over: every scheme goes through us, and none can be taken back.

Only the registry's dictionary is exchanged: many modules hold `get_artifact_repository` by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn, Self

from securemfg.artifacts.plugin import Resolving, Wrapped
from securemfg.artifacts.state import STATE
from securemfg.errors import EncryptionError

REGISTRY: Final = "mlflow.store.artifact.artifact_repository_registry"
# These only look up another URI and ask the registry again.
RESOLVERS: Final = frozenset({"runs", "models"})


def _wrapped(scheme: str, factory: Any) -> Wrapped:
    if isinstance(factory, Wrapped):
        return factory
    return (Resolving if scheme in RESOLVERS else Wrapped)(scheme, factory)


class Owned(dict[str, Any]):
    """The registry's dictionary while encryption is on. A new scheme is wrapped; to replace a scheme is refused.

    `original` is kept as MLflow would have it, to be put back.
    """

    def __init__(self, original: dict[str, Any], importing: Callable[[], bool]) -> None:
        super().__init__({scheme: _wrapped(scheme, factory) for scheme, factory in original.items()})
        self.original = original
        self._importing = importing  # while MLflow fills it, the last one wins, as ever

    def __setitem__(self, scheme: str, factory: Any) -> None:
        if self.get(scheme) is factory:
            return
        if scheme in self and not self._importing():
            self._refuse(scheme, "registered again")
        super().__setitem__(scheme, _wrapped(scheme, factory))
        self.original[scheme] = factory

    def setdefault(self, scheme: str, factory: Any = None) -> Any:
        if scheme not in self:
            self[scheme] = factory
        return self[scheme]

    def update(self, *others: Mapping[str, Any] | Iterable[tuple[str, Any]], **more: Any) -> None:  # type: ignore[override]
        for scheme, factory in dict(*others, **more).items():
            self[scheme] = factory

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __delitem__(self, scheme: str) -> None:
        self._refuse(scheme, "removed")

    def pop(self, scheme: str, *_: Any) -> NoReturn:
        self._refuse(scheme, "removed")

    def popitem(self) -> NoReturn:
        self._refuse("", "removed")

    def clear(self) -> NoReturn:
        self._refuse("", "removed")

    @staticmethod
    def _refuse(scheme: str, what: str) -> NoReturn:
        name = repr(scheme) if scheme else "bare paths"
        reason = f"MLflow's artifact repository for {name} cannot be {what} while artifacts are encrypted"
        if STATE.protection is not None:
            STATE.protection.emit(
                "artifact.refused", resource=scheme or "file", kind="scheme", outcome="denied", reason=reason
            )
        raise EncryptionError(f"{reason}: what it carries would leave in plaintext; do it before activation")


def _holder() -> Any:
    return getattr(sys.modules.get(REGISTRY), "_artifact_repository_registry", None)


def take_over(module: str) -> None:
    """Own every scheme of the registry in `module`, also of one that is just filling it. Raises EncryptionError."""
    holder = _holder()
    found = getattr(holder, "_registry", None)
    if not isinstance(found, dict):
        raise EncryptionError(f"this MLflow's {module} has no registry that securemfg knows: nothing is encrypted")
    if not isinstance(found, Owned):
        spec = getattr(sys.modules[REGISTRY], "__spec__", None)
        holder._registry = Owned(found, lambda: bool(getattr(spec, "_initializing", False)))
    check_ownership()


def give_back() -> None:
    """The registry as MLflow would have it."""
    holder = _holder()
    found = getattr(holder, "_registry", None)
    if isinstance(found, Owned):
        holder._registry = found.original


def ownership() -> dict[str, bool]:
    """For every scheme that MLflow serves: whether it goes through securemfg. Empty while MLflow is not imported."""
    found = getattr(_holder(), "_registry", None)
    return {scheme: isinstance(factory, Wrapped) for scheme, factory in found.items()} if found else {}


def check_ownership() -> None:
    """Raise EncryptionError unless every scheme that MLflow serves goes through securemfg."""
    lost = [scheme or "bare paths" for scheme, ours in ownership().items() if not ours]
    if lost:
        raise EncryptionError(
            f"MLflow would bypass securemfg for {', '.join(lost)}: another plugin registered itself after activation; "
            "nothing was written. Remove it, or activate securemfg after it"
        )
