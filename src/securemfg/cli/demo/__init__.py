"""`securemfg demo`: the whole main job on this machine, with no cloud, and a summary of what was proven."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from securemfg.cli.output import Json, ends_well
from securemfg.errors import ConfigError


def add_to(root: typer.Typer) -> None:
    root.command("demo")(demo)


def demo(
    *,
    data: Annotated[Path | None, typer.Option("--data", help="A CSV with the columns of AI4I 2020.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where things go; it must not exist. Built in: a new temporary folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train, log, load and serve a model with everything on, and show what was protected."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.cli.demo.acts import perform
        from securemfg.cli.demo.summary import show, summarise

        if data is not None and not data.is_file():
            raise ConfigError(f"there is no file {data}: name a CSV with the columns of AI4I 2020")
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="securemfg-demo-"))
        elif folder.exists():
            raise ConfigError(f"{folder} exists already: the demo makes its own folder")
        else:
            folder.mkdir(parents=True, mode=0o700)
        seconds = perform(folder.absolute(), data.absolute() if data else None, speaker, quiet=as_json)
        summary = summarise(folder.absolute(), seconds)
        if as_json:
            speaker.json(summary)
        else:
            show(summary, speaker)
