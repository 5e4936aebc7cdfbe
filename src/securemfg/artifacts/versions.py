"""Which version of each rewrapped record this host has seen, so that an older one put back is refused.

A record that was never rewrapped has version 1 and needs no memory. The file lies in the home, one line a record.
What this host has never seen, it cannot know: only a signed manifest kept elsewhere can (trust rule 9).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from securemfg.encryption.run_key import RunKey
from securemfg.errors import DecryptionError, EncryptionError
from securemfg.forking import forget_after_fork

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class RecordVersions:
    """The highest version seen of each record, in a file. Without a path, in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start anew: what is known is read again."""
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._read_to = 0  # bytes of the file

    def check(self, key: RunKey) -> None:
        """Refuse a record older than one seen before; remember a newer one. Raises DecryptionError."""
        with self._lock:
            self._refresh()
            known = self._seen.get(key.key_id, 1)
            if key.version < known:
                raise DecryptionError(
                    f"the record of run key {key.key_id} is version {key.version}, and version {known} was seen "
                    f"before: an older one was put back, with recipients that were taken off it; restore the newer one "
                    f"(remembered in {self._path or 'memory'})"
                )
            if key.version > known:
                self._remember(key)

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            if os.stat(self._path).st_size == self._read_to:  # it only grows: nothing is new
                return
            with self._path.open("rb") as file:
                file.seek(self._read_to)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]  # another process may be in the middle of a line
        self._read_to += len(whole)
        for line in whole.splitlines():
            key_id, _, version = line.decode("ascii", "replace").partition(" ")
            if version.isdecimal():
                self._seen[key_id] = max(int(version), self._seen.get(key_id, 1))

    def _remember(self, key: RunKey) -> None:
        self._seen[key.key_id] = key.version
        if self._path is None:
            return
        line = f"{key.key_id} {key.version}\n".encode()
        try:
            try:
                fd = os.open(self._path, _APPEND, 0o600)
            except FileNotFoundError:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(self._path, _APPEND, 0o600)
            try:
                os.write(fd, line)
                if os.fstat(fd).st_size == self._read_to + len(line):  # nobody else wrote: no need to read it back
                    self._read_to += len(line)
            finally:
                os.close(fd)
        except OSError as error:
            raise EncryptionError(f"{self._path} cannot be written: {error.strerror}") from error
