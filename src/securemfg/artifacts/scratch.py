"""MLflow's own temporary files, kept with what is staged while artifacts are encrypted.

`log_text`, `log_table`, `log_model` and their like write plaintext to a temporary folder before they hand it on. MLflow
removes it, unless it is killed. All of it asks `tempfile.gettempdir` for the place, through `tempfile`'s own functions:
that one is replaced, and answers MLflow's code alone differently. Elsewhere in the process nothing changes.

What names a folder of its own does not come through here: Databricks' local folders, MLFLOW_DFS_TMP for Spark.
"""

from __future__ import annotations

import errno
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

from securemfg.artifacts.staging import full, is_staged, staging_folder
from securemfg.artifacts.state import STATE

FILES: Final = "mlflow.utils.file_utils"  # its TempDir holds a model while it is being saved
_KEPT: Final = "get_or_create_tmp_dir"  # MLflow remembers this one's answer for as long as the process lives

_replaced: tuple[Callable[[], str], Callable[[], str]] | None = None  # MLflow's answer, and everybody's
_exits: dict[type, Any] = {}


def divert() -> None:
    """Answer MLflow's questions for a temporary folder with the staging folder, until `restore`."""
    global _replaced
    if _replaced is not None:
        return
    original = tempfile.gettempdir

    @functools.wraps(original)
    def gettempdir() -> str:
        protection = STATE.protection
        if protection is None:
            return original()
        asking = _asking(sys._getframe(1))
        if asking is None:
            return original()
        return str(staging_folder(protection.staging, outside=asking.f_code.co_name == _KEPT))

    _replaced = (gettempdir, original)
    tempfile.gettempdir = gettempdir


def restore() -> None:
    """Everything as it was before `divert`."""
    global _replaced
    if _replaced is not None and tempfile.gettempdir is _replaced[0]:  # else another one's stands on it, and it stays
        tempfile.gettempdir = _replaced[1]
        _replaced = None
    for kind, original in _exits.items():
        kind.__exit__ = original  # type: ignore[attr-defined]
    _exits.clear()


def arrived(module: ModuleType | None) -> None:
    """MLflow's file tools are there: a model that does not fit while it is being saved is an error that says so."""
    kind = getattr(module, "TempDir", None)
    if kind is None or kind in _exits:
        return
    original = _exits[kind] = kind.__exit__

    @functools.wraps(original)
    def leaving(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        path = getattr(self, "_path", None)
        result = original(self, kind, error, trace)
        overrun = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        if overrun and path and is_staged(Path(path)):
            raise full(Path(path).parent) from error
        return result

    kind.__exit__ = leaving


def _asking(frame: FrameType | None) -> FrameType | None:
    """MLflow's frame that made `tempfile` ask, or None: who asks for the folder's name itself gets it as before."""
    if frame is None or frame.f_globals.get("__name__") != tempfile.__name__:
        return None
    while frame is not None and frame.f_globals.get("__name__") == tempfile.__name__:
        frame = frame.f_back
    name = str(frame.f_globals.get("__name__", "")) if frame is not None else ""
    return frame if name == "mlflow" or name.startswith("mlflow.") else None
