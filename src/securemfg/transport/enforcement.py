"""One TLS policy for the whole process, whichever library connects: reference-counted and reversible.

Covered: every TLS handshake of Python's `ssl` (see `choke`), and plain http by http.client (and so urllib,
urllib3, requests, hvac, botocore, MLflow), httpcore (httpx) and aiohttp (see `guard`). Plaintext on other
sockets (database and broker protocols, StatsD) is not seen; nor are native stacks and processes started
without securemfg. A fork keeps the policy. Satisfies NIST SC-8, SC-13 and SC-23 for what it covers.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Final

from securemfg.context import Emit
from securemfg.errors import TransportError
from securemfg.transport import choke, guard, patching
from securemfg.transport.observation import Activation, Connection, observed, quiet, refused_count
from securemfg.transport.policy import TlsPolicy

__all__ = ["Connection", "active", "enforce", "observed", "quiet", "refused_count", "release", "restore"]


@dataclass(slots=True)
class _Hold:
    activation: Activation
    count: int


_lock = threading.Lock()
_holds: Final[list[_Hold]] = []
_activations: tuple[Activation, ...] = ()
_choke: list[patching.Patch] = []
_idle: Activation | None = None  # the last one released


def enforce(policy: TlsPolicy, emit: Emit) -> None:
    """Hold every connection of this process to `policy`, until as many `release` calls.

    With several policies at once a connection must satisfy each of them. Calling it again with the same
    policy and trail only counts. Raises TransportError when a library that is loaded cannot be guarded.
    """
    global _activations
    with _lock:
        for hold in _holds:
            held = hold.activation
            if (held.policy is policy or held.policy == policy) and held.emit == emit:
                hold.count += 1
                return
        if not _choke:
            _install()
        if _idle is not None and _idle.policy is policy and _idle.emit is emit:
            activation = _idle  # the next step of a loop
        else:
            activation = Activation(policy, emit)
        _holds.append(_Hold(activation, 1))
        _activations = (*_activations, activation)


def release(policy: TlsPolicy | None = None, emit: Emit | None = None, *, keep: bool = False) -> None:
    """Give up one `enforce`: of `policy` (and `emit`) when named, else the latest. The last one restores all
    classes.

    With `keep` the patches stay in place and let everything pass, for an `enforce` that soon comes again: between
    two steps of a loop, patching costs more than all else. `restore` takes them out.
    Raises TransportError when there is nothing to release: it would be somebody else's.
    """
    global _activations, _idle
    with _lock:
        for index in range(len(_holds) - 1, -1, -1):
            held = _holds[index].activation
            if policy is not None and held.policy is not policy and held.policy != policy:
                continue
            if emit is None or held.emit == emit:
                break
        else:
            raise TransportError("release() without enforce(): call each once, as a pair")
        _holds[index].count -= 1
        if _holds[index].count:
            return
        _idle = _holds.pop(index).activation
        _activations = tuple(hold.activation for hold in _holds)
        if not _holds and not keep:
            _uninstall()


def restore() -> None:
    """Put every class back as it was, unless somebody enforces now."""
    with _lock:
        if _choke and not _holds:
            _uninstall()


def active() -> bool:
    """Whether any policy is being enforced (or observed) now."""
    return bool(_activations)


def _current() -> tuple[Activation, ...]:
    return _activations


def _install() -> None:
    global _choke
    guard.install(_current)
    _choke = choke.patches(_current)
    patching.apply(_choke)


def _uninstall() -> None:
    global _choke, _idle
    patching.revert(_choke)
    _choke = []
    _idle = None
    guard.uninstall()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
