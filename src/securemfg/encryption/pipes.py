"""Messages through pipes and uploads: in order, with neither side seekable, and memory that does not grow.

A message can be made while its plaintext arrives. It cannot be given away while it is opened: what a frame holds is
true when its tag verifies, but that nothing is missing is known at the last one. So a message from a pipe is first kept
as it is, in a file without a name, and read twice: once to verify all of it, once to give it out.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from securemfg.encryption.frames import new_message, seal
from securemfg.encryption.keys import Key, open_keys
from securemfg.encryption.message import (
    FINAL_OVERHEAD,
    FRAME_LENGTH,
    MAX_FRAMES,
    Context,
    Geometry,
)
from securemfg.encryption.stream import Message, Opened, message_of, naming
from securemfg.errors import EncryptionError

_CHUNK: Final = 1 << 20  # bytes
PIPE: Final = Path("-")  # how a pipe is named in messages


class Readable(Protocol):
    """What gives bytes: a file, a pipe's end, an HTTP body."""

    def read(self, size: int, /) -> bytes | None: ...


class Writable(Protocol):
    """What takes bytes."""

    def write(self, data: Any, /) -> int | None: ...


class EncryptingReader(io.RawIOBase):
    """The message of what `source` gives, as a file to read: hand it to boto3's `upload_fileobj`, or copy it to a pipe.

    Two frames of memory. When its end has been read, `message` says what it was. Raises EncryptionError,
    KeyUnavailable.
    """

    def __init__(
        self, source: Readable, *, key: Key | str | Sequence[Key | str], context: Context | None = None
    ) -> None:
        super().__init__()
        self._source = source
        self._key, self._header = new_message(open_keys(key), dict(context or {}), FRAME_LENGTH)
        self._part = bytearray(FRAME_LENGTH)  # read, not yet sealed: whether it is the last one is known one later
        self._next = bytearray(FRAME_LENGTH)
        self._held = _fill(source, memoryview(self._part))
        self._frame = memoryview(bytearray(FRAME_LENGTH + FINAL_OVERHEAD))
        self._ready = memoryview(self._header.body + self._header.tag)
        self._sequence = 0
        self._length = 0
        self.message: Message | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with memoryview(buffer).cast("B") as target:
            if not self._ready and self.message is None:
                self._seal_next()
            count = min(len(target), len(self._ready))
            target[:count] = self._ready[:count]
            self._ready = self._ready[count:]
            return count

    def _seal_next(self) -> None:
        following = _fill(self._source, memoryview(self._next)) if self._held == FRAME_LENGTH else 0
        final = following == 0
        if self._sequence >= MAX_FRAMES:
            raise EncryptionError("too large for the format's frame count: cut it into several")
        self._sequence += 1
        part = memoryview(self._part)[: self._held]
        self._ready = self._frame[: seal(self._key, self._sequence, part, self._frame, final=final)]
        self._length += self._held
        self._part, self._next, self._held = self._next, self._part, following
        if final:
            self.message = message_of(None, self._header, Geometry.plan(self._header, self._length))


def _fill(source: Readable, buffer: memoryview) -> int:
    """Fill `buffer` as far as `source` goes; return how much there was. Raises EncryptionError."""
    done = 0
    while done < len(buffer):
        try:
            data = source.read(len(buffer) - done)
        except OSError as error:
            raise EncryptionError(f"the source cannot be read: {error.strerror or error}") from error
        if data is None:
            raise EncryptionError("the source is non-blocking and has nothing now: hand in a blocking one")
        if not data:
            break
        buffer[done : done + len(data)] = data
        done += len(data)
    return done


def encrypt_stream(
    source: Readable, target: Writable, *, key: Key | str | Sequence[Key | str], context: Context | None = None
) -> Message:
    """Encrypt what `source` gives to `target`, in order, as `encrypt_file` does. Returns what was written.

    When it raises, the target holds a message without an end, which nobody takes for a whole one. Raises
    EncryptionError, KeyUnavailable.
    """
    reader = EncryptingReader(source, key=key, context=context)
    buffer = memoryview(bytearray(_CHUNK))
    while count := reader.readinto(buffer):
        _write(target, buffer[:count])
    assert reader.message is not None
    return reader.message


def decrypt_stream(
    source: Readable,
    target: Writable,
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    folder: Path | None = None,
    suites: Collection[int] = (),
) -> Message:
    """Decrypt what `source` gives to `target`. Nothing is written before the last frame has been verified.

    The message is kept meanwhile, encrypted as it is, in a file without a name in `folder` (built in: the system's
    temporary folder). Raises DecryptionError, KeyUnavailable, EncryptionError.
    """
    keys = open_keys(key)
    with _kept(source, folder) as file, naming(PIPE):
        message = Opened(file.fileno(), os.fstat(file.fileno()), PIPE, keys, context, suites)
        message.frames(lambda _part, _offset: None)
        # each frame once more, in order: what is given out is what verifies, whoever wrote to the file meanwhile
        message.frames(lambda part, _offset: _write(target, part), workers=1)
    return message_of(None, message.header, message.geometry)


def _kept(source: Readable, folder: Path | None) -> Any:
    """What `source` gives, in a file without a name."""
    try:
        kept = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise EncryptionError(f"no temporary file in {folder or tempfile.gettempdir()}: {error.strerror}") from error
    buffer = memoryview(bytearray(_CHUNK))
    try:
        while count := _fill(source, buffer):
            kept.write(buffer[:count])
        kept.flush()
    except OSError as error:
        kept.close()
        raise EncryptionError(
            f"the message cannot be kept in {folder or tempfile.gettempdir()}: {error.strerror}; nothing was written"
        ) from error
    except BaseException:
        kept.close()
        raise
    return kept


def _write(target: Writable, data: memoryview) -> None:
    done = 0
    while done < len(data):
        try:
            count = target.write(data[done:])
        except BlockingIOError:
            raise EncryptionError("the target is non-blocking and takes nothing now: hand in a blocking one") from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever reads has enough: the command line ends quietly
            raise EncryptionError(f"the target cannot be written: {error.strerror or error}") from error
        if count is None and isinstance(target, io.RawIOBase):
            raise EncryptionError("the target is non-blocking and takes nothing now: hand in a blocking one")
        if count is None:  # what some writers of other kinds return when they took all
            count = len(data) - done
        done += count
