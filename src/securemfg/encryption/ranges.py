"""Parts of a message: decrypt and verify only the frames that hold them.

The header and the final frame are verified first, so the length is true before anything is read; then each frame as it
is needed. A range proves nothing about the frames it does not touch.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from securemfg.encryption.frames import open_frame
from securemfg.encryption.keys import Key, open_keys, unlock
from securemfg.encryption.message import FINAL_OVERHEAD, FRAME_OVERHEAD, RESERVED_CONTEXT, Context, Geometry
from securemfg.encryption.source import open_source, read_at, reading
from securemfg.encryption.stream import Message, check_expected, message_of, read_header, write_message
from securemfg.encryption.target import replacing, target_errors
from securemfg.errors import DecryptionError

_KEPT: Final = 2  # decrypted frames in memory


class MessageFile(io.RawIOBase):
    """The plaintext of a message as a read-only, seekable file. Safe to use from several threads."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: Key | str | Sequence[Key | str],
        context: Context | None = None,
        suites: Collection[int] = (),
    ) -> None:
        super().__init__()
        self._path = Path(path)
        self._fd = -1
        keys = open_keys(key)
        self._fd, status = open_source(self._path)
        try:
            header = read_header(reading(self._fd, self._path), self._path, suites)
            if header.signed or not header.frame_length:
                raise DecryptionError(
                    f"{self._path} is signed or has no frames, so no part of it can be verified alone: decrypt it whole"
                )
            self._geometry = Geometry.of(header, status.st_size)
            self.message = message_of(self._path, header, self._geometry)
            self._key = unlock(header, keys)
            check_expected(header, context)
            self.context = dict(header.context)
            self.mode = status.st_mode & 0o777
            self._frames: OrderedDict[int, memoryview] = OrderedDict()
            self._lock = threading.RLock()
            self._position = 0
            self._frame(self._geometry.frames)  # from here on the length is proven
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._geometry.plaintext_length

    @property
    def name(self) -> str:
        return str(self._path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._checked()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._checked()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}.get(whence)
        if start is None:
            raise ValueError(f"whence must be 0, 1 or 2, got {whence}")
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}: before the start")
        with self._lock:
            self._position = start + offset
            return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` as far as the plaintext goes. Raises DecryptionError."""
        self._checked()
        with memoryview(buffer).cast("B") as target, self._lock:
            count = self.read_range(self._position, target)
            self._position += count
            return count

    def read_range(self, start: int, target: memoryview) -> int:
        """Fill `target` from `start` without moving the position; return how much there was."""
        at = 0
        for part in self.parts(start, len(target)):
            target[at : at + len(part)] = part
            at += len(part)
        return at

    def parts(self, start: int, length: int) -> Iterator[memoryview]:
        """`length` bytes from `start`, frame by frame; fewer at the end. Raises DecryptionError."""
        end = min(self.size, start + length)
        while start < end:
            index = min(start // self._geometry.frame_length, self._geometry.frames)
            first = index * self._geometry.frame_length
            part = self._frame(index)[start - first : end - first]
            yield part
            start += len(part)

    def _frame(self, index: int) -> memoryview:
        with self._lock:
            kept = self._frames.get(index)
            if kept is not None:
                self._frames.move_to_end(index)
                return kept
            geometry = self._geometry
            final = index == geometry.frames
            length = geometry.final_length if final else geometry.frame_length
            whole = memoryview(bytearray(length + (FINAL_OVERHEAD if final else FRAME_OVERHEAD)))
            if read_at(self._fd, whole, geometry.offset(index), self._path) != len(whole):
                raise DecryptionError(f"{self._path} became shorter while it was read")
            plaintext = memoryview(bytearray(length))
            open_frame(self._key, index + 1, whole, plaintext, final=final)
            self._frames[index] = plaintext
            while len(self._frames) > _KEPT:
                self._frames.popitem(last=False)
            return plaintext

    def _checked(self) -> None:
        if self.closed:
            raise ValueError("the message is closed")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if hasattr(self, "_frames"):
                self._frames.clear()
        super().close()


def open_message(
    path: str | os.PathLike[str],
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    suites: Collection[int] = (),
) -> io.BufferedReader:
    """A seekable binary file with the plaintext of a message, for pandas, pyarrow, torch.load and the like.

    Every pair of `context` must be in the message's; `suites` as in `decrypt_file`. Reading raises DecryptionError at
    the first frame that does not verify; what was read before it was verified. Raises DecryptionError, KeyUnavailable.
    """
    return buffered(MessageFile(path, key=key, context=context, suites=suites))


def buffered(file: MessageFile) -> io.BufferedReader:
    """`file` for readers that ask for a few bytes at a time."""
    return io.BufferedReader(file, buffer_size=1 << 18)


def open_range(
    path: str | os.PathLike[str],
    start: int,
    length: int,
    *,
    key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    suites: Collection[int] = (),
) -> bytes:
    """`length` bytes of the plaintext from byte `start`; fewer at its end. Raises DecryptionError, KeyUnavailable."""
    if start < 0 or length < 0:
        raise ValueError(f"a range has a start and a length of 0 or more, got {start} and {length}")
    with MessageFile(path, key=key, context=context, suites=suites) as message:
        return b"".join(message.parts(start, length))


def reencrypt_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: Key | str | Sequence[Key | str],
    new_key: Key | str | Sequence[Key | str],
    context: Context | None = None,
    new_context: Context | None = None,
    durable: bool = True,
    suites: Collection[int] = (),
) -> Message:
    """Encrypt the plaintext of a message anew, under a fresh data key for `new_key`; it never reaches a disk.

    `context` must be in the old message; the new one is bound to `new_context`, else to the same pairs as the old one.
    `target` may be `source`. Raises DecryptionError, EncryptionError, KeyUnavailable.
    """
    source, target = Path(source), Path(target)
    keys = open_keys(new_key)
    with MessageFile(source, key=key, context=context, suites=suites) as message:

        def fill(buffer: memoryview, offset: int) -> None:
            message.read_range(offset, buffer)

        bound = {name: value for name, value in message.context.items() if not name.startswith(RESERVED_CONTEXT)}
        with (
            target_errors(target),
            replacing(target, mode=message.mode, durable=durable, overwrite=True) as out,
        ):
            header, geometry = write_message(
                out, fill, message.size, keys, dict(new_context) if new_context is not None else bound
            )
    return message_of(target, header, geometry)
