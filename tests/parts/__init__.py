"""Real parts for tests: servers that a fixture starts on a free port, with a private home.

A part that is missing skips the test and says what it needs; with STRICT_PARTS=1 (CI) it fails it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

SHARED = Path(os.environ.get("SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def missing(part: str, remedy: str) -> NoReturn:
    """This test cannot run here: say what it needs and how to get it."""
    text = f"needs {part}: {remedy}"
    if os.environ.get("STRICT_PARTS") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def shared(name: str) -> Path:
    """A file of the shared data folder. Its absence is the one skip that CI permits."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs shared data: {name} (looked in {SHARED}; set SHARED_DATA)")
    return path


def until(condition: Callable[[], object], *, within: float = 20.0, what: str = "condition") -> object:
    """Await `condition` becoming true, and return its value."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come true within {within} s")
