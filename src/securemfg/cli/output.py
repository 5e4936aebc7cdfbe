"""How the command line speaks: tables for people, `--json` for programs, one exit code per kind of end."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

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


_UNREACHED: Final = (ConnectionError, TimeoutError, socket.gaierror, TransportError, CredentialError)
_WIDE: Final = 1 << 12  # columns, where no terminal cuts a line: what a program reads is not folded
_LONG_BYTES: Final = 64 << 20
_LONG_FILES: Final = 50


class Speaker:
    """Where output goes. Made per call, so that it sees the terminal as it is then."""

    def __init__(self) -> None:
        watched = sys.stdout is not None and sys.stdout.isatty()
        self.out = Console(highlight=False, width=None if watched or "COLUMNS" in os.environ else _WIDE)
        self.err = Console(stderr=True, highlight=False)

    def json(self, value: Any) -> None:
        sys.stdout.write(encodable(json.dumps(plain(value), ensure_ascii=False, indent=2)) + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
        heads = [Column(name, overflow="fold") for name in columns]  # the end of a path or ARN is what tells it apart
        table = Table(*heads, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self.out.print(table)

    def say(self, text: str) -> None:
        self.out.print(readable(text), markup=False, soft_wrap=not self.out.is_terminal)

    def note(self, text: str) -> None:
        """For people, on stderr: it does not get into a pipe."""
        self.err.print(readable(text), markup=False, soft_wrap=not self.err.is_terminal)


def _cell(value: object) -> str:
    from rich.markup import escape

    return escape("-" if value is None else readable(str(value)))


def readable(text: str) -> str:
    """`text` with control characters shown, not sent: a file's name or context is not to steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def encodable(text: str) -> str:
    """`text` with the bytes of file names that are not UTF-8 shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


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
    if isinstance(error, KeyUnavailable) and _unreached(error):
        return Exit.OUT_OF_REACH
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FINDINGS)


def _unreached(error: BaseException | None) -> bool:
    """Whether a service that did not answer is behind this."""
    while error is not None:
        if isinstance(error, _UNREACHED):
            return True
        error = error.__cause__ or error.__context__
    return False


def told(error: BaseException, code: Exit) -> dict[str, object]:
    """An error, for programs."""
    kinds = (one for one in type(error).__mro__ if one.__module__ == SecureMfgError.__module__)
    kind = next(kinds, type(error)).__name__  # the tree's own name: rooms have finer ones
    return {"type": kind, "message": str(error) or kind, "exit": int(code)}


def fail(error: BaseException, code: Exit, *, as_json: bool) -> NoReturn:
    """Say what went wrong and end."""
    what = told(error, code)
    if as_json:
        Speaker().json({"error": what})
    else:
        Speaker().err.print(f"[bold red]error[/] [dim]{what['type']}[/]", end=" ")
        Speaker().note(str(what["message"]))
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


class Bar:
    """How far long work has come: files and bytes. Silent unless a person watches stderr."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0  # of what is finished
        self._lock = threading.Lock()
        self._large: tuple[int, int] | None = None  # bytes read when it began, its size

    def done(self, count: int) -> None:
        """One more file, of so many bytes."""
        with self._lock:
            self.files += 1
            self.bytes += count

    def more(self, count: int) -> None:
        """So many more bytes of a file whose end is not known."""
        with self._lock:
            self.bytes += count

    @contextmanager
    def large(self, count: int) -> Iterator[None]:
        """One file of so many bytes, alone: how far it is shows in what this process has read meanwhile."""
        self._large = _bytes_read(), count
        try:
            yield
        finally:
            self._large = None

    @property
    def now(self) -> int:
        large = self._large
        return self.bytes + (min(large[1], _bytes_read() - large[0]) if large else 0)


def _bytes_read() -> int:
    """What this process has read so far; 0 where the system does not say."""
    try:
        first = Path("/proc/self/io").read_bytes().split(b"\n", 1)[0]
        return int(first.removeprefix(b"rchar:"))
    except (OSError, ValueError):
        return 0


@contextmanager
def progress(what: str, files: int, total: int | None, *, as_json: bool) -> Iterator[Bar]:
    """A bar on stderr while the block runs, when it will be long and a person watches; `total` bytes, if known."""
    bar = Bar()
    long = total is None or total >= _LONG_BYTES or files >= _LONG_FILES
    if as_json or not long or sys.stderr is None or not sys.stderr.isatty():
        yield bar
        return
    from rich import progress as rich

    class Watched(rich.Progress):
        def get_renderables(self) -> Iterator[Any]:
            for task in self.tasks:
                self.update(task.id, completed=bar.now, files=f"{bar.files}/{files}")
            yield from super().get_renderables()

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TextColumn("{task.fields[files]}"),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with Watched(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(what, total=total, files=f"0/{files}")
        yield bar


Verb = Callable[..., Any]
