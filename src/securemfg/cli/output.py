"""How the command line speaks: tables for people, `--json` for programs, one exit code per kind of end."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from securemfg.errors import (
    CatalogError,
    ConfigError,
    CredentialError,
    EvidenceError,
    KeyUnavailable,
    SecureMfgError,
    TransportError,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


class Exit(IntEnum):
    CLEAN = 0
    FINDINGS = 1  # also a failed verification or decryption
    USAGE = 2  # also settings
    OUT_OF_REACH = 3  # a service
    UNEXPECTED = 4
    INTERRUPTED = 130


_CODES: Final[tuple[tuple[type[SecureMfgError], Exit], ...]] = (
    (ConfigError, Exit.USAGE),
    (CatalogError, Exit.USAGE),
    (KeyUnavailable, Exit.USAGE),
    (CredentialError, Exit.OUT_OF_REACH),
    (TransportError, Exit.OUT_OF_REACH),
    (EvidenceError, Exit.OUT_OF_REACH),
)


class Speaker:
    """Where output goes. Made per call, so that it sees the terminal as it is then."""

    def __init__(self) -> None:
        self.out = Console(highlight=False, soft_wrap=False)
        self.err = Console(stderr=True, highlight=False)

    def json(self, value: Any) -> None:
        sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, indent=2) + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
        table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self.out.print(table)

    def say(self, text: str) -> None:
        self.out.print(text, markup=False)

    def note(self, text: str) -> None:
        """For people, on stderr: it does not get into a pipe."""
        self.err.print(text, markup=False)


def _cell(value: object) -> str:
    from rich.markup import escape

    return escape("-" if value is None else str(value))


def plain(value: Any) -> Any:
    """`value` as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def exit_code(error: SecureMfgError) -> Exit:
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FINDINGS)


def fail(error: BaseException, code: Exit, *, as_json: bool) -> NoReturn:
    """Say what went wrong and end."""
    kinds = (one for one in type(error).__mro__ if one.__module__ == SecureMfgError.__module__)
    kind = next(kinds, type(error)).__name__  # the tree's own name: rooms have finer ones
    text = str(error) or kind
    if as_json:
        Speaker().json({"error": {"type": kind, "message": text, "exit": int(code)}})
    else:
        Speaker().err.print(f"[bold red]error[/] [dim]{kind}[/]", end=" ")
        Speaker().err.print(text, markup=False)
    raise SystemExit(int(code))


@contextmanager
def ends_well(*, as_json: bool) -> Iterator[Speaker]:
    """Around every verb: errors become a message and an exit code."""
    try:
        yield Speaker()
    except SecureMfgError as error:
        fail(error, exit_code(error), as_json=as_json)


def size(count: int) -> str:
    """Bytes, as people read them."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


Verb = Callable[..., Any]
