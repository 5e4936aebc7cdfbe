"""A private place for what must not lie about: plaintext being loaded, ciphertext on its way.

On tmpfs where there is one, 0700, one folder per process, removed at exit.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from pathlib import Path

from securemfg.errors import EncryptionError

_lock = threading.Lock()
_folders: dict[tuple[int, Path | None], Path] = {}


def _parent(chosen: Path | None) -> Path:
    if chosen is not None:
        return chosen
    memory = Path("/dev/shm")  # noqa: S108 - private folders are made in it
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def staging_folder(chosen: Path | None = None) -> Path:
    """This process's staging folder below `chosen` (setting `artifacts.staging`), made on first use."""
    place = (os.getpid(), chosen)
    with _lock:
        folder = _folders.get(place)
        if folder is None or not folder.is_dir():
            parent = _parent(chosen)
            try:
                folder = Path(tempfile.mkdtemp(prefix=f"securemfg-{os.getpid()}-", dir=parent))
            except OSError as error:
                raise EncryptionError(
                    f"no staging folder in {parent}: {error.strerror}; set artifacts.staging to a folder you can write"
                ) from error
            if not _folders:
                atexit.register(sweep)
            _folders[place] = folder
        return folder


def fresh_folder(chosen: Path | None = None) -> Path:
    """A new empty folder inside the staging folder."""
    return Path(tempfile.mkdtemp(dir=staging_folder(chosen)))


def is_staged(path: Path) -> bool:
    """Whether `path` (resolved) lies in a staging folder of this process."""
    with _lock:
        mine = [folder for place, folder in _folders.items() if place[0] == os.getpid()]
    return any(folder.resolve() in path.parents for folder in mine)


def sweep() -> None:
    """Remove everything this process staged."""
    with _lock:
        mine = [place for place in _folders if place[0] == os.getpid()]
        folders = [_folders.pop(place) for place in mine]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _folders.clear()  # the parent's


os.register_at_fork(after_in_child=_after_fork)
