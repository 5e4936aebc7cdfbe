"""What a forked child must not take over from its parent (locks, threads, sockets, keys, tokens), and what every child
is told by the environment.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Final, Protocol

ACTIVE: Final = "SECUREMFG_ACTIVE"  # "1": the parent encrypts its artifacts, so the child does


class _Forgetful(Protocol):
    def forget(self) -> None: ...


_forgetful: weakref.WeakSet[_Forgetful] = weakref.WeakSet()


def forget_after_fork(thing: _Forgetful) -> None:
    """Call `thing.forget()` in every forked child, for as long as the thing lives."""
    _forgetful.add(thing)


_handed: dict[str, tuple[str, str | None]] = {}  # variable -> what children are told, what stood there before


def hand_down(values: Mapping[str, str]) -> None:
    """Set environment variables for the children of this process, until `take_back`."""
    for name, value in values.items():
        before = os.environ.get(name)
        if before != value:
            _handed[name] = (value, before)
            os.environ[name] = value


def take_back() -> None:
    """The environment as it was before `hand_down`, but for what somebody has changed since."""
    for name, (value, before) in _handed.items():
        if os.environ.get(name) != value:
            continue
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    _handed.clear()


def own_environment() -> dict[str, str]:
    """This process's environment without what only its children are told."""
    found = dict(os.environ)
    for name, (value, before) in _handed.items():
        if found.get(name) == value:
            del found[name]
            if before is not None:
                found[name] = before
    return found


def _after_fork() -> None:
    for thing in list(_forgetful):
        thing.forget()


os.register_at_fork(after_in_child=_after_fork)
