"""Puts a report's files in place: each is whole or absent, never half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from securemfg.errors import ConfigError
from securemfg.governance.report.html import render_html
from securemfg.governance.report.markdown import render_markdown
from securemfg.governance.report.model import Report

NAME: Final = "compliance-report"


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write the HTML page and the Markdown text into `folder`, made when absent. Returns both paths.

    The files are readable by their owner only: the report names hosts, roles and endpoints.
    Raises ConfigError when the folder cannot be written.
    """
    page, text = folder / f"{NAME}.html", folder / f"{NAME}.md"
    contents = {page: render_html(report), text: render_markdown(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            _replace(path, content)
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {folder}: {error.strerror}; name a folder that you can write to"
        ) from error
    return page, text


def _replace(path: Path, content: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)  # noqa: PTH105 - the name is text already
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
