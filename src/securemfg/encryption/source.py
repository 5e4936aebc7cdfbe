"""A file that is read at given places while others may change it: whole, or an error that names it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from securemfg.encryption.digests import FileDigest, digest_file
from securemfg.encryption.layout import ReadAt
from securemfg.errors import EncryptionError


def as_path(path: str | os.PathLike[str]) -> Path:
    """`path` itself when it is one already: pathlib would parse it anew, which a small file notices."""
    return path if isinstance(path, Path) else Path(path)


def open_source(source: Path, target: Path | None = None) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file that is not `target`. Raises EncryptionError."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is refused, not waited for
    except OSError as error:
        raise EncryptionError(f"{source} cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise EncryptionError(f"{source} is not a regular file")
        if target is not None:
            _not_the_same(source, status, target)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def _not_the_same(source: Path, status: os.stat_result, target: Path) -> None:
    try:
        there = os.stat(target)
    except FileNotFoundError:  # as it mostly is, or a folder of it is missing: said when it is written
        return
    except OSError as error:
        raise EncryptionError(f"{target} cannot be written: {error.strerror}") from error
    if stat.S_ISDIR(there.st_mode):
        raise EncryptionError(f"{target} is a folder: name the target file")
    if os.path.samestat(status, there):
        raise EncryptionError(f"source and target are the same file: {source}")


def unchanged(fd: int, before: os.stat_result, source: Path) -> None:
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise EncryptionError(f"{source} changed while it was read: nothing was written; try again when it rests")


def read_at(fd: int, buffer: memoryview, offset: int, source: Path) -> int:
    """Fill `buffer` from `offset`; return how much there was. Raises EncryptionError."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(fd, (buffer[done:],), offset + done)
        except OSError as error:
            raise EncryptionError(f"{source} cannot be read at byte {offset + done}: {error.strerror}") from error
        if count == 0:
            break
        done += count
    return done


def read_whole(fd: int, length: int, source: Path) -> memoryview:
    """What there is of the first `length` bytes. Raises EncryptionError."""
    buffer = memoryview(bytearray(length))
    return buffer[: read_at(fd, buffer, 0, source)]


def reading(fd: int, source: Path) -> ReadAt:
    def read(offset: int, count: int) -> bytes:
        buffer = memoryview(bytearray(count))
        return bytes(buffer[: read_at(fd, buffer, offset, source)])

    return read


def stored_digest(path: Path) -> FileDigest:
    """The digest of a file as it lies there. Raises EncryptionError."""
    fd, status = open_source(path)
    try:
        digest = digest_file(lambda buffer, offset: read_at(fd, buffer, offset, path), status.st_size)
        unchanged(fd, status, path)
    finally:
        os.close(fd)
    return digest
