"""Ctrl-C during work in threads: what is in hand is finished, then the command ends. A second one ends it at once.

An exception in the middle of a lock's own code can leave it held for ever, so none is raised before the threads are
done.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deferred() -> Iterator[threading.Event]:
    """Yield an event that the first interrupt sets. Raises KeyboardInterrupt at the end, if there was one."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def once(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        stop.set()

    if previous is signal.SIG_IGN or previous is None:  # in the background, or set by a host program
        yield stop
        return
    signal.signal(signal.SIGINT, once)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
    if stop.is_set():
        raise KeyboardInterrupt
