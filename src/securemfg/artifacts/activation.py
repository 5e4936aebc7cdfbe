"""Turning encrypted artifacts on and off: take over every scheme of MLflow's registry, and prove that we have it.

MLflow only warns when a plugin fails to load and then goes on in plaintext, so ownership is asserted here, and again
at each write. Only the registry's dictionary is changed: many modules hold `get_artifact_repository` by name.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Final

from securemfg.artifacts.plugin import Resolving, Wrapped
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.staging import sweep
from securemfg.artifacts.state import STATE
from securemfg.errors import ConfigError, EncryptionError
from securemfg.transport.arrival import Watch

REGISTRY: Final = "mlflow.store.artifact.artifact_repository_registry"
# These only look up another URI and ask the registry again.
RESOLVERS: Final = frozenset({"runs", "models"})

_saved: dict[str, Any] = {}


def activate(protection: Protection) -> None:
    """Encrypt every artifact that MLflow writes in this process from now on. Counted: each call needs a `deactivate`.

    Works before or after MLflow is imported. Raises EncryptionError when a scheme cannot be taken over.
    """
    with STATE.lock:
        STATE.holders += 1
        if STATE.protection is not None:
            return
        STATE.protection = protection
        STATE.check_ownership = check_ownership
        try:
            _watch.start()
        except BaseException:
            _off()
            raise


def deactivate() -> None:
    """Undo one `activate`. With the last one, MLflow is as it was before. Raises ConfigError when there was none."""
    with STATE.lock:
        if STATE.holders == 0:
            raise ConfigError("encrypted artifacts are not active: deactivate() was called more often than activate()")
        STATE.holders -= 1
        if STATE.holders == 0:
            _off()


def reset() -> None:
    """Off at once, whoever holds it."""
    with STATE.lock:
        if STATE.protection is not None:
            _off()


def active() -> bool:
    return STATE.protection is not None


def _off() -> None:
    from securemfg.artifacts.keyring import KEYRING

    STATE.holders = 0
    STATE.protection = None
    STATE.check_ownership = lambda: None
    _watch.stop()
    registry = _registry()
    if registry is not None:
        for scheme, factory in _saved.items():
            registry[scheme] = factory
    _saved.clear()
    _forget_repositories()
    KEYRING.clear()
    sweep()


def _registry() -> dict[str, Any] | None:
    module = sys.modules.get(REGISTRY)
    holder = getattr(module, "_artifact_repository_registry", None)
    found = getattr(holder, "_registry", None)
    return found if isinstance(found, dict) else None


def _take_over(module: str) -> None:
    registry = _registry()
    if registry is None:
        raise EncryptionError(f"this MLflow's {module} has no registry that securemfg knows: nothing is encrypted")
    for scheme, factory in list(registry.items()):
        if not isinstance(factory, Wrapped):
            _saved[scheme] = factory
            registry[scheme] = (Resolving if scheme in RESOLVERS else Wrapped)(scheme, factory)
    _forget_repositories()
    check_ownership()


def ownership() -> dict[str, bool]:
    """For every scheme that MLflow serves: whether it goes through securemfg. Empty while MLflow is not imported."""
    registry = _registry()
    if registry is None:
        return {}
    return {scheme: isinstance(factory, Wrapped) for scheme, factory in registry.items()}


def check_ownership() -> None:
    """Raise EncryptionError unless every scheme that MLflow serves goes through securemfg."""
    lost = [scheme or "bare paths" for scheme, ours in ownership().items() if not ours]
    if lost:
        raise EncryptionError(
            f"MLflow would bypass securemfg for {', '.join(lost)}: another plugin registered itself after activation; "
            "nothing was written. Remove it, or activate securemfg after it"
        )


def _forget_repositories() -> None:
    """MLflow keeps repositories by run id: those made before must not be used after."""
    utils = sys.modules.get("mlflow.tracking._tracking_service.utils")
    cached = getattr(utils, "_artifact_repos_cache", None)
    if cached is not None:
        cached.clear()


_watch = Watch([REGISTRY], _take_over)  # now if MLflow is imported already, else when it is


def _after_fork() -> None:
    STATE.lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
