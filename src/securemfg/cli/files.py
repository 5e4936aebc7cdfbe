"""`securemfg encrypt` and `decrypt`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from securemfg.cli import inspection
from securemfg.cli.batch import Batch
from securemfg.cli.output import Json, ends_well
from securemfg.errors import ConfigError

Paths = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, quoted patterns like 'runs/**/*.bin', or - for a pipe.",
        metavar="PATH",
        show_default=False,
    ),
]
Keys = Annotated[list[str] | None, typer.Option("--key", help="A key, like local:PATH; repeat for several.")]
Out = Annotated[
    str | None, typer.Option("-o", "--output", help="Target file, - for standard output; a folder for several files.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing targets; let bytes go to a terminal.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, max=256, help="Small files done at once. Built in: one per core.")
]
Bound = Annotated[list[str] | None, typer.Option("--context", help="NAME=VALUE to bind to the message; repeat.")]
Expected = Annotated[list[str] | None, typer.Option("--context", help="NAME=VALUE it must be bound to; repeat.")]


def add_to(root: typer.Typer) -> None:
    root.command("encrypt")(encrypt)
    root.command("decrypt")(decrypt)
    inspection.add_to(root)


def encrypt(
    paths: Paths,
    *,
    key: Keys = None,
    output: Out = None,
    force: Force = False,
    context: Bound = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Encrypt files, folders and pipes to PATH.esdk; the sources stay."""
    with ends_well(as_json=as_json) as speaker:
        work = Batch(speaker, encrypting=True, context=_pairs(context), force=force, as_json=as_json)
        work.run(paths, key, output, workers)


def decrypt(
    paths: Paths,
    *,
    key: Keys = None,
    output: Out = None,
    force: Force = False,
    context: Expected = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Decrypt PATH.esdk to PATH; nothing is written unless all of it verifies."""
    with ends_well(as_json=as_json) as speaker:
        work = Batch(speaker, encrypting=False, context=_pairs(context), force=force, as_json=as_json)
        work.run(paths, key, output, workers)


def _pairs(given: Sequence[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigError(f"--context must be like NAME=VALUE, got {text!r}")
        if name in pairs:
            raise ConfigError(f"--context names {name!r} twice: give one value")
        pairs[name] = value
    return pairs
