"""Messages to and from files and bytes.

File to file runs on positioned reads and writes by several threads where `cryptography` releases the GIL (50 and
newer), else by one. The limit is the copy, not the cipher, so buffers are made once per thread and reused; memory
does not grow with the file.
"""

from __future__ import annotations

import itertools
import os
import secrets
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from cryptography import __version__ as cryptography_version
from cryptography.exceptions import InvalidTag

from securemfg.encryption.keys import GeneratingKey, Key, open_keys, unlock
from securemfg.encryption.layout import ReadAt, lay_out, verify_signature
from securemfg.encryption.message import (
    FINAL_MARK,
    FINAL_OVERHEAD,
    FRAME_LENGTH,
    FRAME_OVERHEAD,
    IV_LENGTH,
    KEY_LENGTH,
    MAX_HEADER,
    MESSAGE_ID_LENGTH,
    TAG_LENGTH,
    UNFRAMED_OVERHEAD,
    Context,
    Geometry,
    Header,
    MessageKey,
    Truncated,
    check_context,
    parse_header,
)
from securemfg.encryption.target import replacing
from securemfg.errors import DecryptionError, EncryptionError

_PARALLEL_FROM: Final = 4 * FRAME_LENGTH  # bytes; below it a second thread costs more than it brings
_MODE: Final = 0o777  # of the source's mode; set-uid and set-gid are not handed on
_HEADER_READ: Final = 1 << 12  # bytes; nearly every header fits


@cache
def parallel() -> bool:
    """Whether this `cryptography` releases the GIL while it encrypts, so that threads help."""
    return int(cryptography_version.split(".", 1)[0]) >= 50


def workers_for(plaintext_length: int) -> int:
    """How many threads one file is worth."""
    if not parallel() or plaintext_length < _PARALLEL_FROM:
        return 1
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


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


def _message(path: Path | None, header: Header, geometry: Geometry) -> Message:
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


# -- frames -----------------------------------------------------------------------------------------------------------


def _new_message(keys: Sequence[Key], context: Context, frame_length: int) -> tuple[MessageKey, Header]:
    check_context(context)
    first, *others = keys
    if isinstance(first, GeneratingKey):  # its service makes the data key: one call instead of none and one
        data_key, wrapped = first.generate(context)
    else:
        data_key = secrets.token_bytes(KEY_LENGTH)
        wrapped = first.wrap(data_key, context)
    message_key = MessageKey(data_key, secrets.token_bytes(MESSAGE_ID_LENGTH))
    recipients = [wrapped, *(key.wrap(data_key, context) for key in others)]
    return message_key, message_key.header(context, recipients, frame_length)


def _seal(key: MessageKey, sequence: int, plaintext: memoryview, out: memoryview, *, final: bool) -> int:
    """Write one whole frame to `out`; return its length. Its IV is its sequence number, so it is used once."""
    number = sequence.to_bytes(4)
    iv = sequence.to_bytes(IV_LENGTH)
    length = len(plaintext)
    start = number + iv
    if final:
        start = FINAL_MARK + start + length.to_bytes(4)
    at = len(start)
    out[:at] = start
    end = at + length + TAG_LENGTH
    aad = key.frame_aad(sequence, length, final=final)
    if parallel():
        key.aead.encrypt_into(iv, plaintext, aad, out[at:end])
    else:
        out[at:end] = key.aead.encrypt(iv, plaintext, aad)
    return end


def open_frame(key: MessageKey, sequence: int, frame: memoryview, out: memoryview, *, final: bool) -> int:
    """Verify and decrypt one whole frame into `out`; return the plaintext's length. Raises DecryptionError."""
    at = 0
    if final:
        if bytes(frame[:4]) != FINAL_MARK:
            raise DecryptionError(f"frame {sequence} is not marked as the final one: cut off, or frames were moved")
        at = 4
    if int.from_bytes(frame[at : at + 4]) != sequence:
        raise DecryptionError(f"frame {sequence} has another sequence number: frames were moved or removed")
    iv = frame[at + 4 : at + 4 + IV_LENGTH]  # as stored: other implementations choose other IVs
    at += 4 + IV_LENGTH
    length = len(frame) - at - TAG_LENGTH
    if final:
        length -= 4
        if int.from_bytes(frame[at : at + 4]) != length:
            raise DecryptionError("the final frame's length is wrong: cut off, or bytes left over")
        at += 4
    aad = key.frame_aad(sequence, length, final=final)
    try:
        if parallel():
            key.aead.decrypt_into(iv, frame[at:], aad, out[:length])
        else:
            out[:length] = key.aead.decrypt(iv, frame[at:], aad)
    except InvalidTag:
        raise DecryptionError(f"frame {sequence} was changed: its tag does not verify") from None
    return length


def open_single(key: MessageKey, body: memoryview) -> bytes:
    """Verify and decrypt a body without frames. Raises DecryptionError."""
    iv, length = body[:IV_LENGTH], int.from_bytes(body[IV_LENGTH : IV_LENGTH + 8])
    if len(body) != length + UNFRAMED_OVERHEAD:
        raise DecryptionError("the message is cut off or has bytes left over")
    try:
        return key.aead.decrypt(iv, body[IV_LENGTH + 8 :], key.single_aad(length))
    except InvalidTag:
        raise DecryptionError("the body was changed: its tag does not verify") from None


# -- positioned input and output --------------------------------------------------------------------------------------


def read_at(fd: int, buffer: memoryview, offset: int, source: Path) -> int:
    """Fill `buffer` from `offset`; return how much there was. Raises EncryptionError."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(fd, [buffer[done:]], offset + done)
        except OSError as error:
            raise EncryptionError(f"{source} cannot be read at byte {offset + done}: {error.strerror}") from error
        if count == 0:
            break
        done += count
    return done


def _reading(fd: int, source: Path) -> ReadAt:
    def read(offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        return bytes(buffer[: read_at(fd, memoryview(buffer), offset, source)])

    return read


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _run(work: Callable[[Callable[[], int | None]], None], count: int, workers: int) -> None:
    """Run `work` in `workers` threads, this one among them; each draws the next index until `count` or a failure."""
    indexes = itertools.count()
    failures: list[BaseException] = []

    def draw() -> int | None:
        index = next(indexes)
        return index if index < count and not failures else None

    def run() -> None:
        try:
            work(draw)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failures.append(error)

    threads: list[threading.Thread] = []
    try:
        for _ in range(workers - 1):
            thread = threading.Thread(target=run, name="securemfg-frames", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending: fewer do it too
                break
            threads.append(thread)
        run()
    except BaseException as error:  # noqa: BLE001 - an interrupt: raised below, once the others have ended
        failures.append(error)
    for thread in threads:
        while thread.is_alive():  # a thread that outlived this call would write to a descriptor's next owner
            try:
                thread.join()
            except BaseException as error:  # noqa: BLE001 - as above
                failures.append(error)
    if failures:
        raise failures[0]


# -- files ------------------------------------------------------------------------------------------------------------


def open_source(source: Path, target: Path) -> tuple[int, os.stat_result]:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
    except OSError as error:
        raise EncryptionError(f"{source} cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise EncryptionError(f"{source} is not a regular file")
        if target.is_dir():
            raise EncryptionError(f"{target} is a folder: name the target file")
        if target.exists() and os.path.samestat(status, target.stat()):
            raise EncryptionError(f"source and target are the same file: {source}")
    except OSError as error:
        os.close(fd)
        raise EncryptionError(f"{target} cannot be written: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _unchanged(fd: int, before: os.stat_result, source: Path) -> None:
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise EncryptionError(f"{source} changed while it was read: nothing was written; try again when it rests")


def encrypt_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    durable: bool = True,
    overwrite: bool = True,
) -> Message:
    """Encrypt a file for every key in `key`, as an AWS Encryption SDK v2 message (suite 0x0478, 1 MiB frames).

    `context` is bound to the message and stays readable in it. `durable` fsyncs file and folder. `target` gets the
    source's mode and appears whole or not at all. Raises EncryptionError, KeyUnavailable.
    """
    source, target = Path(source), Path(target)
    keys = open_keys(key)
    fd, status = open_source(source, target)
    try:
        message_key, header = _new_message(keys, dict(context or {}), FRAME_LENGTH)
        geometry = Geometry.plan(header, status.st_size)
        with (
            _target_errors(target),
            replacing(target, mode=status.st_mode & _MODE, durable=durable, overwrite=overwrite) as out,
        ):
            _encrypt_frames(fd, out, message_key, header, geometry, source)
            _unchanged(fd, status, source)
    finally:
        os.close(fd)
    return _message(target, header, geometry)


def _encrypt_frames(fd: int, out: int, key: MessageKey, header: Header, geometry: Geometry, source: Path) -> None:
    start = header.body + header.tag
    if geometry.frames == 0:  # small: one read, one write
        data = bytearray(geometry.final_length)
        _filled(fd, memoryview(data), 0, source)
        message = bytearray(geometry.message_length)
        view = memoryview(message)
        view[: len(start)] = start
        _seal(key, 1, memoryview(data), view[len(start) :], final=True)
        _write_at(out, view, 0)
        return
    _write_at(out, memoryview(start), 0)

    def work(draw: Callable[[], int | None]) -> None:
        plaintext = memoryview(bytearray(geometry.frame_length))
        frame = memoryview(bytearray(geometry.frame_length + FINAL_OVERHEAD))
        while (index := draw()) is not None:
            final = index == geometry.frames
            part = plaintext[: geometry.final_length] if final else plaintext
            _filled(fd, part, index * geometry.frame_length, source)
            length = _seal(key, index + 1, part, frame, final=final)
            _write_at(out, frame[:length], geometry.offset(index))

    _run(work, geometry.frames + 1, workers_for(geometry.plaintext_length))


def _filled(fd: int, buffer: memoryview, offset: int, source: Path) -> None:
    if read_at(fd, buffer, offset, source) != len(buffer):
        raise EncryptionError(f"{source} became shorter while it was read: nothing was written")


def decrypt_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    durable: bool = True,
    overwrite: bool = True,
) -> Message:
    """Decrypt a message that one of `key` opens. Every pair of `context` must be in the message's.

    Nothing reaches `target` before the last frame has been verified. Raises DecryptionError, KeyUnavailable.
    """
    source, target = Path(source), Path(target)
    keys = open_keys(key)
    fd, status = open_source(source, target)
    try:
        header = read_header(fd, source)
        read = _reading(fd, source)
        geometry, signature = lay_out(header, status.st_size, read)
        message_key = unlock(header, keys)
        check_expected(header, context)
        with (
            _target_errors(target),
            replacing(target, mode=status.st_mode & _MODE, durable=durable, overwrite=overwrite) as out,
        ):
            if geometry.frame_length:
                _decrypt_frames(fd, out, message_key, geometry, source)
            else:
                body = memoryview(read(geometry.header_length, geometry.message_length - geometry.header_length))
                _write_at(out, memoryview(open_single(message_key, body)), 0)
            if signature is not None:  # before the target gets its name
                verify_signature(header, signature, geometry.message_length, read)
            _unchanged(fd, status, source)
    except DecryptionError as error:
        if str(source) in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error.__cause__
    finally:
        os.close(fd)
    return _message(target, header, geometry)


def _decrypt_frames(fd: int, out: int, key: MessageKey, geometry: Geometry, source: Path) -> None:
    def work(draw: Callable[[], int | None]) -> None:
        # no larger than the message itself: a frame length is an attacker's choice
        longest = geometry.frame_length if geometry.frames else geometry.final_length
        frame = memoryview(bytearray(longest + FINAL_OVERHEAD))
        plaintext = memoryview(bytearray(longest))
        while (index := draw()) is not None:
            final = index == geometry.frames
            whole = frame[: geometry.final_length + FINAL_OVERHEAD if final else longest + FRAME_OVERHEAD]
            if read_at(fd, whole, geometry.offset(index), source) != len(whole):
                raise DecryptionError("the message became shorter while it was read")
            length = open_frame(key, index + 1, whole, plaintext, final=final)
            _write_at(out, plaintext[:length], index * geometry.frame_length)

    _run(work, geometry.frames + 1, workers_for(geometry.plaintext_length))


def read_header(fd: int, source: Path) -> Header:
    size = _HEADER_READ
    while True:
        buffer = bytearray(size)
        data = bytes(buffer[: read_at(fd, memoryview(buffer), 0, source)])
        try:
            return parse_header(data)
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


class _target_errors:  # noqa: N801 - used as a statement
    """Translates what the operating system says about the target, once."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise EncryptionError(
                f"{self.target} cannot be written: {error.strerror}; it was left as it was"
            ) from error


def inspect_file(path: str | os.PathLike[str]) -> Message:
    """What a message says of itself, without any key. Nothing of it is verified. Raises EncryptionError."""
    path = Path(path)
    fd, status = open_source(path, Path(os.devnull))
    try:
        header = read_header(fd, path)
        return _message(path, header, lay_out(header, status.st_size, _reading(fd, path))[0])
    finally:
        os.close(fd)


# -- bytes ------------------------------------------------------------------------------------------------------------


def encrypt_bytes(data: bytes, *, key: Key | str | Sequence[Key | str], context: Context | None = None) -> bytes:
    """`data` as one message. For small things: records, values, texts."""
    message_key, header = _new_message(open_keys(key), dict(context or {}), FRAME_LENGTH)
    geometry = Geometry.plan(header, len(data))
    message = bytearray(geometry.message_length)
    view, plaintext = memoryview(message), memoryview(data)
    view[: header.length] = header.body + header.tag
    for index in range(geometry.frames + 1):
        at = index * geometry.frame_length
        part = plaintext[at : at + geometry.frame_length]
        _seal(message_key, index + 1, part, view[geometry.offset(index) :], final=index == geometry.frames)
    return bytes(message)


def decrypt_bytes(message: bytes, *, key: Key | str | Sequence[Key | str], context: Context | None = None) -> bytes:
    """The plaintext of one message, whole and verified. Raises DecryptionError, KeyUnavailable."""
    header = parse_header(message)

    def read(offset: int, count: int) -> bytes:
        return message[offset : offset + count]

    geometry, signature = lay_out(header, len(message), read)
    message_key = unlock(header, open_keys(key))
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
