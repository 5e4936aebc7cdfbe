"""A target file that is there whole or not at all: written without a name where the system can, then renamed.

SIGKILL, a full disk or a tag that does not verify leave either the old target or the whole new one, and
(with O_TMPFILE) not even a temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from securemfg.errors import EncryptionError


@cache
def _can_be_named_later() -> bool:
    return hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd")


def _unnamed(folder: Path) -> int | None:
    """A private file without a name in `folder`, or None where the file system has no such thing."""
    if not _can_be_named_later():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}:
            return None  # the file system, or a kernel, without it; a missing folder fails below with its name
        raise


@contextlib.contextmanager
def replacing(target: Path, *, mode: int, durable: bool, overwrite: bool) -> Iterator[int]:
    """Yield a descriptor to write; when the block ends well, `target` becomes that file with `mode`.

    `durable` fsyncs file and folder before returning (NIST SP 800-53 SI-7, in spirit). An exception leaves
    `target` as it was. Raises EncryptionError when it exists and `overwrite` is False.
    """
    folder = target.parent
    if not overwrite and os.path.lexists(target):  # asked again at the end, when it counts
        raise _exists(target)
    name: Path | None = None
    fd = _unnamed(folder)
    if fd is None:
        name = folder / f".{target.name[:200]}.{secrets.token_hex(8)}.tmp"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
        os.fchmod(fd, mode)
        if durable:
            os.fsync(fd)
        if name is None:
            name = _linked(fd, target, overwrite=overwrite)
        if name is not None:
            _put(name, target, overwrite=overwrite)
            name = None
        if durable:
            sync_folder(folder)
    finally:
        os.close(fd)
        if name is not None:
            name.unlink(missing_ok=True)


def _exists(target: Path) -> EncryptionError:
    return EncryptionError(f"{target} exists already: choose another target, or allow overwriting (--force)")


def _linked(fd: int, target: Path, *, overwrite: bool) -> Path | None:
    """Give the unnamed file its name: `target` itself when it is free (None), else a temporary one to rename."""
    source = f"/proc/self/fd/{fd}"
    try:  # with some descriptor Python calls linkat and follows the link in /proc; link() would not
        os.link(source, target, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:
        if not overwrite:
            raise _exists(target) from None
    else:
        return None
    name = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")
    os.link(source, name, src_dir_fd=fd, follow_symlinks=True)
    return name


def _put(name: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(name, target)
        return
    try:
        os.link(name, target)  # fails when it exists, unlike rename
    except FileExistsError:
        raise _exists(target) from None
    name.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(fd: int, data: memoryview, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


class target_errors:  # noqa: N801 - used as a statement
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
