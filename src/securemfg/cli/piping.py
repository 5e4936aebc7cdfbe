"""Messages through standard input and output: `securemfg encrypt - < model.bin > model.bin.esdk`."""

from __future__ import annotations

import os
import select
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from securemfg.cli.output import Bar, Speaker, progress
from securemfg.cli.paths import PIPE
from securemfg.encryption.keys import Key
from securemfg.encryption.message import Context
from securemfg.encryption.pipes import decrypt_stream, encrypt_stream
from securemfg.encryption.source import open_source, unchanged
from securemfg.encryption.stream import Message, Opened, claimed, message_of, naming
from securemfg.encryption.target import replacing, target_errors
from securemfg.errors import ConfigError, EncryptionError

_CHUNK: Final = 1 << 20  # bytes
_MODE: Final = 0o600  # of a file made from a pipe, which has no mode to hand on


class Inlet:
    """Reads a descriptor, and waits where it would block."""

    def __init__(self, fd: int, bar: Bar | None = None) -> None:
        self._fd = fd
        self._bar = bar

    def read(self, size: int, /) -> bytes:
        while True:
            try:
                data = os.read(self._fd, size)
            except BlockingIOError:
                select.select([self._fd], [], [])
                continue
            if self._bar is not None:
                self._bar.more(len(data))
            return data


class Outlet:
    """Writes to a descriptor, waits where it would block, and knows how much has gone out."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.written = 0

    def write(self, data: Any, /) -> int:
        self.put(data)
        return len(data)

    def put(self, data: memoryview) -> None:
        """Write all of it. Raises EncryptionError; BrokenPipeError when whoever reads has enough."""
        rest = memoryview(data)
        while rest:
            try:
                count = os.write(self._fd, rest)
            except BlockingIOError:
                select.select([], [self._fd], [])
                continue
            except BrokenPipeError:
                raise
            except OSError as error:
                raise EncryptionError(f"the target cannot be written: {error.strerror}") from error
            self.written += count
            rest = rest[count:]


def standard_input(speaker: Speaker) -> int:
    """Its descriptor. Raises ConfigError when there is none."""
    if sys.stdin is None:
        raise ConfigError("standard input is closed: pipe something in, or name a file")
    if sys.stdin.isatty():
        speaker.note("reading from the terminal; Ctrl-D ends it")
    return sys.stdin.fileno()


def standard_output(*, force: bool, as_json: bool) -> int:
    """Its descriptor, for bytes. Raises ConfigError when a person would get them on the screen."""
    if as_json:
        raise ConfigError("--json and the file both want standard output: name a file with -o, or leave --json out")
    if sys.stdout is None:
        raise ConfigError("standard output is closed: name a file with -o")
    if sys.stdout.isatty() and not force:
        raise ConfigError("standard output is a terminal: redirect it, name a file with -o, or insist with --force")
    sys.stdout.flush()
    return sys.stdout.fileno()


@contextmanager
def source_of(argument: str, speaker: Speaker) -> Iterator[tuple[int, os.stat_result]]:
    """The descriptor to read: standard input, or a regular file that must not change meanwhile."""
    if argument == PIPE:
        fd = standard_input(speaker)
        yield fd, os.fstat(fd)
        return
    path = Path(argument)
    fd, status = open_source(path)
    try:
        yield fd, status
        unchanged(fd, status, path)
    finally:
        os.close(fd)


@contextmanager
def target_of(output: str | None, *, force: bool, as_json: bool) -> Iterator[Outlet]:
    """Where the bytes go: standard output, or a file that is there whole or not at all."""
    if output is None or output == PIPE:
        yield Outlet(standard_output(force=force, as_json=as_json))
        return
    target = Path(output)
    if target.is_dir():
        raise ConfigError(f"-o {output} is a folder, and a pipe has no name: name the file")
    with target_errors(target), replacing(target, mode=_MODE, durable=True, overwrite=force) as fd:
        yield Outlet(fd)


def encrypt_pipe(
    argument: str, out: Outlet, *, keys: Sequence[Key], context: Context, speaker: Speaker, as_json: bool
) -> Message:
    """Encrypt standard input, or a file, to `out`. Raises EncryptionError, KeyUnavailable."""
    with source_of(argument, speaker) as (fd, status), _bar("encrypting", status, as_json=as_json) as bar:
        return encrypt_stream(Inlet(fd, bar), out, key=keys, context=context)


def decrypt_pipe(
    argument: str,
    out: Outlet,
    *,
    keys: Sequence[Key],
    context: Context,
    suites: Collection[int],
    folder: Path | None,
    speaker: Speaker,
    as_json: bool,
) -> Message:
    """Decrypt standard input, or a file, to `out`; nothing goes out before all of it verified. Raises DecryptionError.

    What a pipe gives is kept meanwhile, encrypted as it is, in a file without a name in `folder`.
    """
    if argument == PIPE:
        with source_of(argument, speaker) as (fd, status), _bar("reading", status, as_json=as_json) as bar:
            return decrypt_stream(Inlet(fd, bar), out, key=keys, context=context, folder=folder, suites=suites)
    path = Path(argument)
    with source_of(argument, speaker) as (fd, status), naming(path):
        opened = Opened(fd, status, path, keys, context, suites)
        opened.frames(lambda _part, _offset: None)
        opened.frames(lambda part, _offset: out.put(part), workers=1)
        return message_of(path, opened.header, opened.geometry)


def inspect_pipe(speaker: Speaker) -> Message:
    """What the message on standard input says of itself: all of it is read, for its size, and nothing kept."""
    with source_of(PIPE, speaker) as (fd, status):
        if stat.S_ISREG(status.st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0:
            return _claims(fd)
        with tempfile.TemporaryFile() as kept:
            inlet = Inlet(fd)
            try:
                while data := inlet.read(_CHUNK):
                    kept.write(data)
                kept.flush()
            except OSError as error:
                raise EncryptionError(f"standard input cannot be read or kept: {error.strerror}") from error
            return _claims(kept.fileno())


def _claims(fd: int) -> Message:
    return replace(claimed(fd, os.fstat(fd).st_size, Path(PIPE)), path=None)


def _bar(what: str, status: os.stat_result, *, as_json: bool) -> AbstractContextManager[Bar]:
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    if stat.S_ISCHR(status.st_mode):  # a person is typing there
        total = 0
    return progress(what, 1, total, as_json=as_json)
