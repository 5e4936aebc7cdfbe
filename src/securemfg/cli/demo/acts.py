"""The demo's acts, each a script of its own in a process of its own, as a user would run them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from securemfg.cli.demo import openbao
from securemfg.cli.output import Speaker
from securemfg.errors import ConfigError, SecureMfgError
from securemfg.transport.certificates import DevelopmentCA, Issued

_SCRIPTS: Final = Path(__file__).parent
_NEEDED: Final = ("mlflow", "sklearn", "pandas", "matplotlib")


_CATALOG: Final = """\
# What data the demo handles, how sensitive it is, and who may do what with it.
data_assets:
  - name: production_sensor_data
    sensitivity: confidential
    categories: [machine.telemetry]
    roles:
      DataEngineer: [ingest]
      MLResearcher: [training]
      OperatorService: [inference]
"""


class ActFailed(SecureMfgError):
    """One of the demo's scripts ended with an error."""


def perform(folder: Path, data: Path | None, speaker: Speaker, *, quiet: bool) -> float:
    """Run every act in `folder`; return how long it took, in seconds. Raises ConfigError, ActFailed."""
    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"the demo needs {', '.join(lacking)}: pip install 'securemfg[mlflow]' scikit-learn matplotlib pandas"
        )
    begun = time.monotonic()
    (folder / "data_flow.yaml").write_text(_CATALOG, encoding="utf-8")
    ca = DevelopmentCA.create(folder / "ca")
    issued = ca.issue(["localhost", "127.0.0.1"])
    with _Progress(speaker, quiet=quiet) as progress, contextlib.ExitStack() as stack:
        program = openbao.binary()
        vault: dict[str, str] = {}
        if program is not None:
            progress.act("OpenBao: starting a real server")
            vault = {"DEMO_VAULT": json.dumps(_vault_settings(stack, program, folder, issued))}
        given = ["--data", str(data)] if data else []
        _run(folder, progress, "ingest: machine data", ["ingest.py", "data.csv", *given], vault)
        _run(folder, progress, "training: scikit-learn and MLflow, unchanged", ["train.py", "data.csv"], {})
        model_uri = (folder / "model_uri.txt").read_text(encoding="utf-8")
        files = [str(issued.certificate), str(issued.key), str(issued.ca_file)]
        _run(
            folder, progress, "inference: load and serve over TLS 1.3", ["serve.py", model_uri, "data.csv", *files], {}
        )
    return time.monotonic() - begun


def _vault_settings(stack: contextlib.ExitStack, program: str, folder: Path, issued: Issued) -> Mapping[str, object]:
    secret = {"username": "trainer", "password": os.urandom(12).hex()}
    ready = stack.enter_context(openbao.running(program, folder / "openbao", issued, secret))
    return {
        "vault.address": ready.address,
        "vault.ca_file": str(ready.ca_file),
        "vault.auth.role_id": ready.role_id,
        "vault.auth.secret_id_file": str(ready.secret_id_file),
        "credentials.features-db.vault": "secret/features-db",
    }


class _Progress:
    """A spinner with the act's last line on a terminal; one line per act elsewhere."""

    def __init__(self, speaker: Speaker, *, quiet: bool) -> None:
        self._speaker = speaker
        self._quiet = quiet
        self._live = speaker.err.is_terminal and not quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[line]}"),
            console=speaker.err,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._live:
            self._bar.stop()

    def _end(self) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=1, total=1)

    def act(self, text: str) -> None:
        if self._live:
            self._end()
            self._task = self._bar.add_task(text, total=None, line="")
        elif not self._quiet:
            self._speaker.note(f"- {text}")

    def line(self, text: str) -> None:
        if self._live and self._task is not None:
            self._bar.update(self._task, line=text)
        elif not self._quiet:
            self._speaker.note(f"    {text}")


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: nobody's settings, no cloud credentials, nothing sent home."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SECUREMFG_", "MLFLOW_", "AWS_", "VAULT_", "BAO_"))
    }
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet", "PYTHONUNBUFFERED": "1"}
    return {**kept, **quiet, **extra}


def _run(folder: Path, progress: _Progress, title: str, arguments: list[str], extra: Mapping[str, str]) -> None:
    progress.act(title)
    script, *rest = arguments
    log = folder / f"{script.removesuffix('.py')}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own scripts, no shell
            [sys.executable, str(_SCRIPTS / script), *rest],
            cwd=folder,
            env=_environment(extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        for line in _lines(process):
            progress.line(line)
    if process.returncode != 0:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
        raise ActFailed(f"{title}: {script} ended with {process.returncode}; the end of {log}:\n" + "\n".join(tail))


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    try:
        with process.stdout:
            for line in process.stdout:
                if line.strip():
                    yield line.rstrip()
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
