"""Turning encrypted artifacts on and off: take over every scheme of MLflow's registry, and prove that we have it.

MLflow only warns when a plugin fails to load and then goes on in plaintext, so ownership is asserted here, and again
at each write. Children of this process are told by the environment, and turn it on when they import MLflow.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from securemfg import context, forking
from securemfg.artifacts import registration, schemes, scratch, shortcuts, tracking
from securemfg.artifacts.draining import drain
from securemfg.artifacts.schemes import REGISTRY, check_ownership, ownership
from securemfg.artifacts.staging import sweep, sweep_dead
from securemfg.artifacts.state import STATE
from securemfg.errors import ConfigError, EncryptionError
from securemfg.transport.arrival import Watch

if TYPE_CHECKING:
    from securemfg.artifacts.protection import Protection

__all__ = [
    "activate",
    "active",
    "check_ownership",
    "deactivate",
    "drain",
    "inherit",
    "ownership",
    "prepare",
    "reset",
]


def activate(protection: Protection) -> None:
    """Encrypt every artifact that MLflow writes in this process from now on. Counted: each call needs a `deactivate`.

    Works before or after MLflow is imported. Raises EncryptionError when a scheme cannot be taken over.
    """
    with STATE.lock:
        STATE.holders += 1
        if STATE.protection is not None:
            if _asleep():
                STATE.protection = protection
            return
        STATE.protection = protection
        STATE.check_ownership = check_ownership
        try:
            scratch.divert()
            _watch.start()
            registration.start()
            shortcuts.start()
            tracking.activate()
        except BaseException:
            _off()
            raise


def prepare(*, staging: Path | None, environment: Mapping[str, str]) -> None:
    """What goes with the first activation: children are told, and dead processes' traces are removed."""
    global _prepared
    with STATE.lock:
        if _prepared or STATE.protection is None:
            return
        _prepared = True
        forking.hand_down({forking.ACTIVE: "1", **environment})
    sweep_dead(staging)


def deactivate() -> None:
    """Undo one `activate`. The last one waits for what MLflow still has queued, and then MLflow is as it was before.

    Raises ConfigError when there was none; EncryptionError when the queues cannot be emptied: then it stays on.
    """
    with STATE.lock:
        if STATE.holders == 0:
            raise ConfigError("encrypted artifacts are not active: deactivate() was called more often than activate()")
        if STATE.holders > 1:
            STATE.holders -= 1
            return
    drain()  # without the lock: what is queued may enter a step
    with STATE.lock:
        if STATE.holders > 0:  # else another one was quicker
            STATE.holders -= 1
            if STATE.holders == 0:
                _off()


def reset() -> None:
    """Off, whoever holds it, once what is queued is written. Raises EncryptionError when it cannot be: it stays on."""
    if STATE.protection is None:
        return
    drain()
    with STATE.lock:
        if STATE.protection is not None:
            _off()


def active() -> bool:
    return STATE.protection is not None


def inherit() -> None:
    """On from MLflow's import. The settings are read with the first artifact: what is wrong with them fails it."""
    activate(cast("Protection", _Asleep()))


class _Asleep:
    """The default workflow's rules, before anybody has asked for them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _wake()
        protection = STATE.protection
        if protection is None or _asleep():
            raise EncryptionError("encrypted artifacts were switched off while one was being handled")
        return getattr(protection, name)


def _asleep() -> bool:
    return isinstance(STATE.protection, _Asleep)


def _wake() -> None:
    with STATE.lock:
        if not _asleep():
            return
    context.default_workflow().activate_artifacts()
    with STATE.lock:  # the workflow's own hold takes the place of that activation
        STATE.holders -= 1
        if STATE.holders == 0:
            _off()


def _off() -> None:
    global _prepared
    STATE.holders = 0
    STATE.protection = None
    STATE.check_ownership = lambda: None
    _prepared = False
    _watch.stop()
    registration.stop()
    shortcuts.stop()
    schemes.give_back()
    tracking.deactivate()
    scratch.restore()
    _forget_repositories()
    forking.take_back()
    keyring = sys.modules.get("securemfg.artifacts.keyring")
    if keyring is not None:
        keyring.KEYRING.clear()
    sweep()


def _arrived(module: str) -> None:
    if module == REGISTRY:
        schemes.take_over(module)
        _forget_repositories()
    else:
        scratch.arrived(sys.modules.get(module))


def _forget_repositories() -> None:
    """MLflow keeps repositories by run id: those made before must not be used after."""
    utils = sys.modules.get("mlflow.tracking._tracking_service.utils")
    old = getattr(sys.modules.get("mlflow.tracking._tracking_service.client"), "TrackingServiceClient", None)  # 2.8
    for holder in (utils, old):
        cached = getattr(holder, "_artifact_repos_cache", None)
        if cached is not None:
            cached.clear()


_prepared = False
_watch = Watch([REGISTRY, scratch.FILES], _arrived)  # now if MLflow is imported already, else when it is


def _after_fork() -> None:
    STATE.lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
