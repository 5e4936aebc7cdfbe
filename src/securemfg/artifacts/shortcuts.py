"""Where MLflow opens a stored file itself because its address is a local path, past its registry and past us.

Replaced while encryption is on, so that such a file is verified and decrypted like any other; everything is put back
when it goes off. Nothing here imports MLflow.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Final

from securemfg.artifacts.location import locate
from securemfg.artifacts.state import STATE
from securemfg.transport.arrival import Watch

_UTILS: Final = "mlflow.models.utils"
_READ: Final = "_read_file_content"  # of a model's folder: its input examples

_replaced: dict[str, tuple[Any, Any]] = {}  # name -> ours, MLflow's


def start() -> None:
    _watch.start()


def stop() -> None:
    _watch.stop()
    module = sys.modules.get(_UTILS)
    for name, (ours, original) in _replaced.items():
        if getattr(module, name, None) is ours:
            setattr(module, name, original)
    _replaced.clear()


def _arrived(_module: str) -> None:
    module = sys.modules[_UTILS]
    original = getattr(module, _READ, None)
    if original is None or _READ in _replaced:  # older ones download it
        return
    ours = _reading(original)
    _replaced[_READ] = (ours, original)
    setattr(module, _READ, ours)


def _reading(original: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(original)
    def read(uri_or_path: Any, file_name: str) -> str:
        place = f"{str(uri_or_path).rstrip('/')}/{file_name}"
        if STATE.protection is None or locate(place) is None:
            return original(uri_or_path, file_name)
        from mlflow.artifacts import load_text

        text: str = load_text(place)
        return text

    return read


_watch = Watch([_UTILS], _arrived)
