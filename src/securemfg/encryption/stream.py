"""Messages to and from files and bytes.

File to file runs on positioned reads and writes by several threads where `cryptography` releases the GIL (50 and
newer), else by one. The limit is the copy, not the cipher, so buffers are made once per thread and reused; memory
does not grow with the file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securemfg.encryption.digests import FileDigest, MessageDigest
from securemfg.encryption.frames import new_message, open_frame, open_single, run_shared, seal, workers_for
from securemfg.encryption.keys import Key, open_keys, unlock
from securemfg.encryption.layout import ReadAt, check_end, lay_out, verify_signature
from securemfg.encryption.legacy import SUITES as LEGACY_SUITES
from securemfg.encryption.message import (
    FINAL_OVERHEAD,
    FRAME_LENGTH,
    FRAME_OVERHEAD,
    MAX_HEADER,
    Context,
    Geometry,
    Header,
    MessageKey,
    Truncated,
    parse_header,
    suite_name,
)
from securemfg.encryption.source import as_path, open_source, read_at, read_whole, reading, unchanged
from securemfg.encryption.target import replacing, target_errors, write_at
from securemfg.errors import DecryptionError, EncryptionError

Fill = Callable[[memoryview, int], None]  # buffer, offset: fills it whole with plaintext, or raises
Sink = Callable[[memoryview, int], None]  # plaintext, offset: called by several threads
Witness = Callable[[FileDigest], None]  # of a whole message: what it raises refuses the file

_MODE: Final = 0o777  # of the source's mode; set-uid and set-gid are not handed on
_HEADER_READ: Final = 1 << 12  # bytes; nearly every header fits
_READ_WHOLE: Final = 1 << 18  # bytes; a message up to here is read at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What is known of an encrypted file. From `inspect_file` it is only claimed: no tag was verified."""

    path: Path | None
    suite: int
    message_id: str  # hex
    context: Context
    recipients: tuple[str, ...]  # provider/name
    frame_length: int  # bytes
    frames: int  # with the final one
    plaintext_length: int  # bytes
    message_length: int  # bytes

    @property
    def version(self) -> int:
        """Of the message format: 1 for the suites without key commitment, else 2."""
        return 1 if self.suite in LEGACY_SUITES else 2

    @property
    def suite_name(self) -> str:
        """The suite's algorithms, for people."""
        return suite_name(self.suite)


def message_of(path: Path | None, header: Header, geometry: Geometry) -> Message:
    return Message(
        path=path,
        suite=header.suite,
        message_id=header.message_id.hex(),
        context=dict(header.context),
        recipients=tuple(edk.shown for edk in header.encrypted_data_keys),
        frame_length=header.frame_length,
        frames=geometry.frames + 1,
        plaintext_length=geometry.plaintext_length,
        message_length=geometry.message_length,
    )


# -- files ------------------------------------------------------------------------------------------------------------


def encrypt_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    durable: bool = True,
    overwrite: bool = True,
    witness: Witness | None = None,
) -> Message:
    """Encrypt a file for every key in `key`, as an AWS Encryption SDK v2 message (suite 0x0478, 1 MiB frames).

    `context` is bound to the message and stays readable in it. `durable` fsyncs file and folder. `target` gets the
    source's mode and appears whole or not at all, after `witness` was told its digest. Raises EncryptionError.
    """
    source, target = as_path(source), as_path(target)
    keys = open_keys(key)
    fd, status = open_source(source, target)
    return _encrypt(
        fd, status, source, target, keys, dict(context or {}), durable=durable, overwrite=overwrite, witness=witness
    )


def encrypt_in_place(
    path: Path, *, key: Key | Sequence[Key], context: Context | None = None, durable: bool = True
) -> Message:
    """Put the message of a file in its place: whole, or the file stays as it was. Raises as `encrypt_file`."""
    keys = open_keys(key)
    fd, status = open_source(path)
    return _encrypt(fd, status, path, path, keys, dict(context or {}), durable=durable, overwrite=True)


def _encrypt(
    fd: int,
    status: os.stat_result,
    source: Path,
    target: Path,
    keys: Sequence[Key],
    context: Context,
    *,
    durable: bool,
    overwrite: bool,
    witness: Witness | None = None,
) -> Message:
    def fill(buffer: memoryview, offset: int) -> None:
        if read_at(fd, buffer, offset, source) != len(buffer):
            raise EncryptionError(f"{source} became shorter while it was read: nothing was written")

    try:
        with (
            target_errors(target),
            replacing(target, mode=status.st_mode & _MODE, durable=durable, overwrite=overwrite) as out,
        ):
            header, geometry = write_message(out, fill, status.st_size, keys, context, witness)
            unchanged(fd, status, source)
    finally:
        os.close(fd)
    return message_of(target, header, geometry)


def _encrypt_frames(
    fill: Fill, out: int, key: MessageKey, header: Header, geometry: Geometry, digest: MessageDigest | None
) -> None:
    start = header.body + header.tag
    if geometry.frames == 0:  # small: one read, one write
        data = bytearray(geometry.final_length)
        fill(memoryview(data), 0)
        message = bytearray(geometry.message_length)
        view = memoryview(message)
        view[: len(start)] = start
        seal(key, 1, memoryview(data), view[len(start) :], final=True)
        if digest is not None:
            digest.add(0, view[len(start) :])
        write_at(out, view, 0)
        return
    write_at(out, memoryview(start), 0)

    def work(draw: Callable[[], int | None]) -> None:
        plaintext = memoryview(bytearray(geometry.frame_length))
        frame = memoryview(bytearray(geometry.frame_length + FINAL_OVERHEAD))
        while (index := draw()) is not None:
            final = index == geometry.frames
            part = plaintext[: geometry.final_length] if final else plaintext
            fill(part, index * geometry.frame_length)
            length = seal(key, index + 1, part, frame, final=final)
            if digest is not None:
                digest.add(index, frame[:length])
            write_at(out, frame[:length], geometry.offset(index))

    run_shared(abandoning(work, digest), geometry.frames + 1, workers_for(geometry.plaintext_length))


def write_message(
    out: int, fill: Fill, length: int, keys: Sequence[Key], context: Context, witness: Witness | None = None
) -> tuple[Header, Geometry]:
    """Write the message of `length` bytes of plaintext to the descriptor `out`. Raises EncryptionError."""
    message_key, header = new_message(keys, context, FRAME_LENGTH)
    geometry = Geometry.plan(header, length)
    digest = MessageDigest(header.body + header.tag, geometry.frames) if witness is not None else None
    _encrypt_frames(fill, out, message_key, header, geometry, digest)
    if witness is not None and digest is not None:
        witness(digest.whole())
    return header, geometry


class Opened:
    """A message whose header verified and whose data key is at hand. Its frames are still to be verified."""

    def __init__(
        self,
        fd: int,
        status: os.stat_result,
        source: Path,
        keys: Sequence[Key],
        context: Context | None,
        suites: Collection[int] = (),
    ) -> None:
        self.fd = fd
        self.source = source
        self.status = status
        self._whole: memoryview | None = None
        self._read = reading(fd, source)
        if status.st_size <= _READ_WHOLE:
            self._whole = whole = read_whole(fd, status.st_size, source)
            self._read = lambda offset, count: bytes(whole[offset : offset + count])
        self.header = read_header(self._read, source, suites)
        self.geometry, self._signature = lay_out(self.header, status.st_size, self._read)
        self.key = unlock(self.header, keys)
        check_expected(self.header, context)

    def frames(self, sink: Sink, *, workers: int | None = None, witness: Witness | None = None) -> None:
        """Verify and decrypt every frame and hand it to `sink`: by one worker in order, by several in any order.

        When this returns, the message was whole; nothing handed out before may be used. `witness` is told the digest of
        the bytes that were decrypted. Raises DecryptionError.
        """
        digest = None
        if witness is not None:
            if self.geometry.frame_length != FRAME_LENGTH or self._signature is not None or self.header.iv is not None:
                raise DecryptionError("the message is not of the one suite and frame length that artifacts have")
            digest = MessageDigest(self.header.body + self.header.tag, self.geometry.frames)
        if self.geometry.frame_length:
            run_shared(
                abandoning(lambda draw: self._work(draw, sink, digest), digest),
                self.geometry.frames + 1,
                workers or workers_for(self.geometry.plaintext_length),
            )
        else:
            body = self._read(self.geometry.header_length, self.geometry.message_length - self.geometry.header_length)
            sink(memoryview(open_single(self.key, memoryview(body))), 0)
        if self._signature is not None:
            verify_signature(self.header, self._signature, self.geometry.message_length, self._read)
        unchanged(self.fd, self.status, self.source)
        if witness is not None and digest is not None:
            witness(digest.whole())

    def _work(self, draw: Callable[[], int | None], sink: Sink, digest: MessageDigest | None) -> None:
        geometry = self.geometry
        # no larger than the message itself: a frame length is an attacker's choice
        longest = geometry.frame_length if geometry.frames else geometry.final_length
        buffer = memoryview(bytearray(longest + FINAL_OVERHEAD)) if self._whole is None else None
        plaintext = memoryview(bytearray(longest))
        while (index := draw()) is not None:
            final = index == geometry.frames
            frame = self._frame(
                geometry.offset(index),
                geometry.final_length + FINAL_OVERHEAD if final else longest + FRAME_OVERHEAD,
                buffer,
            )
            if digest is not None:
                digest.add(index, frame)
            length = open_frame(self.key, index + 1, frame, plaintext, final=final)
            sink(plaintext[:length], index * geometry.frame_length)

    def _frame(self, offset: int, length: int, buffer: memoryview | None) -> memoryview:
        if buffer is None:
            assert self._whole is not None
            frame = self._whole[offset : offset + length]
            count = len(frame)
        else:
            frame = buffer[:length]
            count = read_at(self.fd, frame, offset, self.source)
        if count != length:
            raise DecryptionError("the message became shorter while it was read")
        return frame


def abandoning(
    work: Callable[[Callable[[], int | None]], None], digest: MessageDigest | None
) -> Callable[[Callable[[], int | None]], None]:
    """`work` that lets nobody wait for a frame when it fails."""
    if digest is None:
        return work

    def working(draw: Callable[[], int | None]) -> None:
        try:
            work(draw)
        except BaseException:
            digest.abandon()
            raise

    return working


@contextlib.contextmanager
def naming(source: Path) -> Iterator[None]:
    """Put the source's name before what is wrong with it."""
    try:
        yield
    except DecryptionError as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error.__cause__


def decrypt_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    durable: bool = True,
    overwrite: bool = True,
    suites: Collection[int] = (),
    witness: Witness | None = None,
) -> Message:
    """Decrypt a message that one of `key` opens. Every pair of `context` must be in the message's.

    Nothing reaches `target` before the last frame has been verified. `suites` are those without key commitment that may
    be read: none, unless the settings name them (`Config.read_suites`). `witness` is told the digest of the message as
    it was read, before `target` appears. Raises DecryptionError, KeyUnavailable.
    """
    source, target = as_path(source), as_path(target)
    keys = open_keys(key)
    fd, status = open_source(source, target)
    try:
        with naming(source):
            message = Opened(fd, status, source, keys, context, suites)
            with (
                target_errors(target),
                replacing(target, mode=status.st_mode & _MODE, durable=durable, overwrite=overwrite) as out,
            ):
                message.frames(lambda part, offset: write_at(out, part, offset), witness=witness)
    finally:
        os.close(fd)
    return message_of(target, message.header, message.geometry)


def verify_file(
    path: str | os.PathLike[str],
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    suites: Collection[int] = (),
    witness: Witness | None = None,
) -> Message:
    """Verify every frame of a message that one of `key` opens; write nothing. `suites`, `witness` as in `decrypt_file`.

    Raises DecryptionError, KeyUnavailable.
    """
    path = Path(path)
    keys = open_keys(key)
    fd, status = open_source(path)
    try:
        with naming(path):
            message = Opened(fd, status, path, keys, context, suites)
            message.frames(lambda _part, _offset: None, witness=witness)
    finally:
        os.close(fd)
    return message_of(path, message.header, message.geometry)


def read_header(read: ReadAt, source: Path, suites: Collection[int] = ()) -> Header:
    size = _HEADER_READ
    while True:
        data = read(0, size)
        try:
            return parse_header(data, suites)
        except Truncated as error:
            if len(data) < size or size > MAX_HEADER:
                what = "is empty" if not data else f"is not a whole message: {error}"
                raise DecryptionError(f"{source} {what}") from None
        size *= 16


def check_expected(header: Header, context: Context | None) -> None:
    for name, value in (context or {}).items():
        if name not in header.context:
            raise DecryptionError(f"the message is not bound to {name!r}: it is not the one that was asked for")
        if header.context[name] != value:
            raise DecryptionError(
                f"the message is bound to {name!r} = {header.context[name]!r}, not {value!r}: it was moved or swapped"
            )


def inspect_file(path: str | os.PathLike[str]) -> Message:
    """What a message of any known suite says of itself, without a key. Nothing is verified. Raises EncryptionError."""
    path = Path(path)
    fd, status = open_source(path)
    try:
        return claimed(fd, status.st_size, path)
    finally:
        os.close(fd)


def claimed(fd: int, size: int, source: Path) -> Message:
    """As `inspect_file`, of an open file of `size` bytes."""
    with naming(source):
        read = reading(fd, source)
        header = read_header(read, source, LEGACY_SUITES)  # only its claims: nothing is opened here
        geometry, _ = lay_out(header, size, read)
        check_end(geometry, read)
        return message_of(source, header, geometry)


# -- bytes ------------------------------------------------------------------------------------------------------------


def encrypt_bytes(data: bytes, *, key: Key | str | Sequence[Key | str], context: Context | None = None) -> bytes:
    """`data` as one message. For small things: records, values, texts."""
    message_key, header = new_message(open_keys(key), dict(context or {}), FRAME_LENGTH)
    geometry = Geometry.plan(header, len(data))
    message = bytearray(geometry.message_length)
    view, plaintext = memoryview(message), memoryview(data)
    view[: header.length] = header.body + header.tag
    for index in range(geometry.frames + 1):
        at = index * geometry.frame_length
        part = plaintext[at : at + geometry.frame_length]
        seal(message_key, index + 1, part, view[geometry.offset(index) :], final=index == geometry.frames)
    return bytes(message)


def decrypt_bytes(
    message: bytes,
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    suites: Collection[int] = (),
) -> bytes:
    """The plaintext of one message, whole and verified. `suites` as in `decrypt_file`.

    Raises DecryptionError, KeyUnavailable.
    """
    return decrypt_parsed(message, parse_header(message, suites), open_keys(key), context)


def decrypt_parsed(message: bytes, header: Header, keys: Sequence[Key], context: Context | None) -> bytes:
    """As `decrypt_bytes`, of a message whose `header` has been parsed."""

    def read(offset: int, count: int) -> bytes:
        return message[offset : offset + count]

    geometry, signature = lay_out(header, len(message), read)
    message_key = unlock(header, keys)
    check_expected(header, context)
    if signature is not None:
        verify_signature(header, signature, geometry.message_length, read)
    if not geometry.frame_length:
        return open_single(message_key, memoryview(message)[geometry.header_length : geometry.message_length])
    plaintext = bytearray(geometry.plaintext_length)
    view = memoryview(plaintext)
    for index in range(geometry.frames + 1):
        final = index == geometry.frames
        end = geometry.message_length if final else geometry.offset(index + 1)
        frame = memoryview(message)[geometry.offset(index) : end]
        at = index * geometry.frame_length
        open_frame(message_key, index + 1, frame, view[at:], final=final)
    return bytes(plaintext)
