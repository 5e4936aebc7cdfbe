"""Threads and forks as the leases need them: work that never holds the process up, and a child that starts clean."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol


class _Forgetful(Protocol):
    def forget(self) -> None: ...


_forgetful: weakref.WeakSet[_Forgetful] = weakref.WeakSet()


def forget_after_fork(thing: _Forgetful) -> None:
    """Call `thing.forget()` in every forked child: locks, threads, sockets and tokens of the parent are not its own."""
    _forgetful.add(thing)


def _after_fork() -> None:
    for thing in list(_forgetful):
        thing.forget()


os.register_at_fork(after_in_child=_after_fork)


def start(name: str, work: Callable[[], None]) -> threading.Thread | None:
    """Run `work` in a daemon thread, in a copy of the caller's context (so its events belong to the caller's step).

    While the interpreter ends no thread can be started: then `work` runs here, and the result is None.
    """
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name=f"securemfg-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
        return None
    return thread


def start_loop(name: str, work: Callable[[], None]) -> threading.Thread | None:
    """Run `work`, which ends with the process only, in a daemon thread of no step. None while the interpreter ends."""
    context = contextvars.Context()
    thread = threading.Thread(target=context.run, args=(work,), name=f"securemfg-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
