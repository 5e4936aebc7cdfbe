"""The real command in a process of its own, with pipes and terminals, and files for it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

KEY: Final = "local:.securemfg/keys/default.key"
COMMAND: Final = [sys.executable, "-m", "securemfg"]
FRAME: Final = 1 << 20


def tree(**files: str) -> None:
    """Files below `data`; `__` is a slash."""
    for name, text in files.items():
        path = Path("data", *name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def below(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if not path.is_dir()}


def piped(*arguments: str, given: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=given, capture_output=True, timeout=60, check=False, **options)


def on_terminal(arguments: Sequence[str], stream: str, **environment: str) -> tuple[int, bytes]:
    """Run with `stream` (stdout or stderr) on a terminal; the exit code and what the terminal got."""
    parent, child = pty.openpty()
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen([*COMMAND, *arguments], **(streams | {stream: child}), env=env | environment) as process:
        os.close(child)
        said = b""
        while True:
            try:
                more = os.read(parent, 1 << 16)
            except OSError:  # the terminal is gone: it has ended
                break
            if not more:
                break
            said += more
        process.communicate(timeout=60)
    os.close(parent)
    return process.returncode, said


def started(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a run in the background ignores it
    )  # fmt: skip
