"""A place of its own for each test's temporary files and staged plaintext, so that all of it can be searched."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from securemfg.encryption.keys import create_local_key


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `tmp`, for everybody's temporary files, and `staging`, for plaintext in use."""
    folder = tmp_path / "scratch"
    for name in ("tmp", "staging"):
        (folder / name).mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    monkeypatch.setenv("SECUREMFG_ARTIFACTS__STAGING", str(folder / "staging"))
    create_local_key(tmp_path / "dev.key")
    monkeypatch.setenv("SECUREMFG_KEYS__DEFAULT", f"local:{tmp_path / 'dev.key'}")
    return folder
