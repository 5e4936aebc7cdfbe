"""Every test has its own home, working folder and environment, and leaves no process-wide state behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.parts.mlflow_server", "tests.parts.moto", "tests.parts.openbao"]


def pytest_configure() -> None:
    """Signals as a terminal's program has them: nohup and background jobs hand down that some are ignored."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for name in list(os.environ):
        if name.startswith(("SECUREMFG_", "AWS_", "VAULT_", "BAO_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    monkeypatch.chdir(work)
    yield work
    _leave_nothing_behind()


def _leave_nothing_behind() -> None:
    import sys

    workflow = sys.modules.get("securemfg.workflow")
    if workflow is not None:
        workflow.reset()
