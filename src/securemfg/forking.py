"""What a forked child must not take over from its parent: locks, threads, sockets, keys and tokens."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Forgetful(Protocol):
    def forget(self) -> None: ...


_forgetful: weakref.WeakSet[_Forgetful] = weakref.WeakSet()


def forget_after_fork(thing: _Forgetful) -> None:
    """Call `thing.forget()` in every forked child, for as long as the thing lives."""
    _forgetful.add(thing)


def _after_fork() -> None:
    for thing in list(_forgetful):
        thing.forget()


os.register_at_fork(after_in_child=_after_fork)
