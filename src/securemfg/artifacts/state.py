"""Whether encrypted artifacts are on in this process, and for whom. One object, shared by the room's files.

MLflow loads this with the plugin, and goes on in plaintext when that fails: nothing is imported here that could.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from securemfg.artifacts.protection import Protection


class State:
    """`protection` is None while inactive. `check_ownership` raises when MLflow would bypass us."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.protection: Protection | None = None
        self.holders = 0
        self.check_ownership: Callable[[], None] = lambda: None


STATE = State()
