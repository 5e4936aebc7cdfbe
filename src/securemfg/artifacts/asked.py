"""Whether encryption is to be on as soon as MLflow is imported: by a parent process, the environment or the settings.

MLflow loads the plugin in the middle of its own import, in every program: a look at the environment and at settings
files that speak of it has to be cheap, and the settings themselves are read only when one does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from securemfg.errors import ConfigError
from securemfg.forking import ACTIVE

_SERVING: Final = frozenset({"server", "ui", "gc", "db", "gateway", "migrate-filestore"})  # commands of mlflow's own
_SETTINGS: Final = ("securemfg.toml", "pyproject.toml")


def asked() -> bool:
    """Whether importing MLflow turns encryption on here. Never for MLflow's servers: they carry ciphertext as it is."""
    if is_server(sys.orig_argv, os.environ):
        return False
    active = os.environ.get(ACTIVE, "").strip().lower() not in {"", "0", "false", "no"}
    if not active and not _mentioned(os.environ):
        return False
    if active and "SECUREMFG_DISABLED" not in os.environ:
        return True
    from securemfg.config import load

    try:
        config = load()
    except ConfigError:
        return True  # what cannot be read may ask for it: each write will say what is wrong
    return not config.disabled and (active or config.settings.artifacts.activate)


def is_server(argv: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether this is `mlflow server`, `ui`, `gc` or `db`, one of their workers, or a job that they run."""
    if any(name.startswith(("_MLFLOW_SERVER_", "_MLFLOW_SGI_NAME")) for name in environment):
        return True
    if any(word.startswith(("mlflow.server:", "mlflow.server.")) for word in argv):
        return True
    for at, word in enumerate(argv):
        program = os.path.basename(word)
        called = program in {"mlflow", "mlflow.exe"} and (at < 2 or argv[at - 1] == "-m")
        if called or word.endswith(os.path.join("mlflow", "__main__.py")):
            return _command(argv[at + 1 :]) in _SERVING
    return False


def _command(words: Sequence[str]) -> str:
    """The first word that is neither an option nor the value of `--env-file`."""
    value = False
    for word in words:
        if value or word.startswith("-"):
            value = not value and word == "--env-file"
            continue
        return word
    return ""


def _mentioned(environment: Mapping[str, str]) -> bool:
    """Whether a setting or a settings file in reach speaks of activation: then they are read."""
    if any(name.startswith("SECUREMFG_ARTIFACTS") for name in environment):
        return True
    named = environment.get("SECUREMFG_CONFIG")
    try:
        start = Path(named).expanduser() if named else Path.cwd()
    except OSError:  # the working folder is gone
        return False
    files = [start] if start.is_file() else []
    files += [folder / name for folder in (start, *start.absolute().parents) for name in _SETTINGS]
    return any(b"activate" in _content(file) for file in files)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes() if file.is_file() else b""
    except OSError:
        return b"activate"  # config says what is wrong with it
