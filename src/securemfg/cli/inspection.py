"""`securemfg inspect`: what messages claim, without any key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securemfg.cli.outcome import tell_skipped
from securemfg.cli.output import Exit, Json, Speaker, ends_well, plain, size
from securemfg.cli.paths import PIPE, find
from securemfg.errors import ConfigError, EncryptionError

if TYPE_CHECKING:
    from securemfg.encryption.stream import Message


def add_to(root: typer.Typer) -> None:
    root.command("inspect")(inspect)


def inspect(
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, folders, quoted patterns, or - for a pipe.", metavar="PATH", show_default=False),
    ],
    *,
    as_json: Json = False,
) -> None:
    """What messages say of themselves, without any key. Nothing of it is verified."""
    with ends_well(as_json=as_json) as speaker:
        if PIPE in paths:
            if len(paths) > 1:
                raise ConfigError("a pipe holds one message: give - alone")
            from securemfg.cli.piping import inspect_pipe

            _tell([(PIPE, inspect_pipe(speaker))], speaker, single=True, as_json=as_json)
            return
        from securemfg.encryption.stream import inspect_file

        given = find(paths)
        rows: list[tuple[str, Message | EncryptionError]] = []
        bad = False
        for found in given.files:
            try:
                rows.append((str(found.source), inspect_file(found.source)))
            except EncryptionError as error:
                if given.single:
                    raise
                bad = bad or found.named
                rows.append((str(found.source), error))
        _tell(rows, speaker, single=given.single, as_json=as_json)
        if not as_json:
            tell_skipped(speaker, given.skipped)
        if bad:
            raise typer.Exit(int(Exit.FINDINGS))


def _tell(
    rows: Sequence[tuple[str, Message | EncryptionError]], speaker: Speaker, *, single: bool, as_json: bool
) -> None:
    if as_json:
        speaker.json([_plain(path, what) for path, what in rows])
    elif single:
        for path, what in rows:
            assert not isinstance(what, EncryptionError)
            _details(path, what, speaker)
    elif rows:
        speaker.table(
            ("file", "suite", "plaintext", "message", "recipients", "context"),
            [_cells(path, what) for path, what in rows],
        )
        speaker.note("claimed by the messages themselves, not verified")
    else:
        speaker.note("no files there")


def _plain(path: str, what: Message | EncryptionError) -> dict[str, Any]:
    if isinstance(what, EncryptionError):
        return {"path": path, "problem": f"not a message: {_why(path, what)}"}
    shown: dict[str, Any] = plain(what)
    return {**shown, "format": f"AWS Encryption SDK message format {what.version}", "suite_name": what.suite_name}


def _why(path: str, error: EncryptionError) -> str:
    return str(error).removeprefix(path).lstrip(": ")


def _cells(path: str, what: Message | EncryptionError) -> tuple[str, ...]:
    if isinstance(what, EncryptionError):
        return path, "not a message", "-", _size(path), "-", "-"
    recipients = ", ".join(what.recipients)
    return (
        path,
        f"0x{what.suite:04x}",
        size(what.plaintext_length),
        size(what.message_length),
        recipients,
        _context(what),
    )


def _size(path: str) -> str:
    try:
        return size(os.stat(path).st_size)  # noqa: PTH116 - a text, whatever characters it has
    except OSError:
        return "-"


def _context(message: Message) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(message.context.items())) or "-"


def _details(path: str, message: Message, speaker: Speaker) -> None:
    several = "s" if message.frames > 1 else ""
    frames = f"{message.frames} frame{several} of {size(message.frame_length)}" if message.frame_length else "one piece"
    speaker.table(
        ("file", path),
        [
            ("format", f"AWS Encryption SDK message format {message.version} (claimed, not verified)"),
            ("suite", f"0x{message.suite:04x} {message.suite_name}"),
            ("context", _context(message)),
            *(("recipient", one) for one in message.recipients),
            ("plaintext", f"{message.plaintext_length} bytes in {frames}"),
            ("message", f"{message.message_length} bytes, id {message.message_id}"),
        ],
    )
