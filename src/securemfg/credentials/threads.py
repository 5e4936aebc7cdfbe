"""Threads as the leases need them: work that never holds the process up."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable


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
