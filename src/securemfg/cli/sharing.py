"""Files shared among threads, so that an interrupt finds none of them half done and none uncounted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from securemfg.cli.interrupts import deferred
from securemfg.cli.paths import Found

Do = Callable[[Found, Path], None]


def share(one: Do, pairs: Sequence[tuple[Found, Path]], workers: int) -> None:
    """Do `pairs` in threads of their own. An interrupt or a failure ends it once the files in hand are whole."""
    if not pairs:
        return
    with deferred() as stop:
        failed = threading.Event()

        def unless_ended(found: Found, target: Path) -> None:
            if not stop.is_set() and not failed.is_set():
                one(found, target)

        with ThreadPoolExecutor(min(workers, len(pairs)), thread_name_prefix="securemfg-files") as pool:
            try:
                for future in as_completed([pool.submit(unless_ended, found, target) for found, target in pairs]):
                    future.result()
            except BaseException:
                failed.set()
                raise
