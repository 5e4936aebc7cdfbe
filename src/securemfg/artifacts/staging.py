"""A private place for plaintext while it is being used: in memory, 0700, and gone when its step or process is.

Nothing plain goes to a disk unless `artifacts.staging` names one. Each process has one folder in the place, and in it
one for each step and one for what belongs to none: a step's is removed with the step, the rest at exit. The reaper
removes it all when the process is killed, and the next activation what a dead process of ours left all the same.

MLflow's loaders take paths, so a model that is loaded lies here whole until its step ends: what a flavour
opens later (a Spark model, files that a PyFunc model reads in `predict`) has to be used inside the step.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securemfg import context
from securemfg.artifacts.reaper import Reaper, remove
from securemfg.errors import EncryptionError

_NAME: Final = re.compile(r"securemfg-(?P<pid>\d+)-(?P<start>\d+)-(?P<space>\d+)-\w+")
_LOCK: Final = ".lock"  # held while the process lives
_OUTSIDE: Final = "process"  # for what belongs to no step
_YOUNG: Final = 60.0  # seconds that a folder without a lock is left alone
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


@dataclass(frozen=True)
class _Root:
    """This process's folder in one place."""

    folder: Path
    lock: int  # a descriptor


_lock = threading.RLock()
_roots: dict[Path | None, _Root] = {}
_partial: set[Path] = set()
_REAPER: Final = Reaper()


# -- where ------------------------------------------------------------------------------------------------------------


def _candidates() -> Iterator[Path]:
    yield Path("/dev/shm")  # noqa: S108 - private folders are made in it
    if "XDG_RUNTIME_DIR" in os.environ:
        yield Path(os.environ["XDG_RUNTIME_DIR"])
    yield Path(f"/run/user/{os.geteuid()}")
    yield Path(tempfile.gettempdir())


def _in_memory(place: Path) -> bool:
    """Whether `place` lies on tmpfs, by the kernel's table of mounts."""
    try:
        device = os.stat(place).st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if fields.split(" ", 3)[2:3] == [number]:
            return kind.split(" ", 1)[0] in _MEMORY
    return False


def _free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _in_the_way(place: Path) -> str | None:
    """Why `place` cannot hold private folders, or None."""
    try:
        found = os.lstat(place)
    except OSError as error:
        return str(error.strerror)
    if stat.S_ISLNK(found.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a folder"
    if found.st_uid not in {0, os.geteuid()}:
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        return "others may rename what is in it"
    return None if os.access(place, os.W_OK | os.X_OK) else "it cannot be written"


def _parent(chosen: Path | None, need: int) -> Path:
    if chosen is not None:
        why = _in_the_way(chosen)
        if why is not None:
            raise EncryptionError(
                f"no plaintext can be staged in {chosen}: {why}; set artifacts.staging to a folder of your own, "
                "by its real path"
            )
        return chosen
    usable = [place for place in _candidates() if _in_memory(place) and _in_the_way(place) is None]
    if not usable:
        raise EncryptionError(
            "no memory-backed folder (tmpfs) is here to stage plaintext in, and none of it goes to a disk unasked: set "
            "artifacts.staging to a private folder"
        )
    return next((place for place in usable if _free(place) >= need), usable[0])


def _check_room(place: Path, need: int) -> None:
    free = _free(place)
    if need > free:
        raise EncryptionError(
            f"{place} has {free} bytes free and {need} are to be staged: enlarge it, or set artifacts.staging to a "
            "private folder with more room"
        )


@contextlib.contextmanager
def room_for(target: Path, need: int) -> Iterator[None]:
    """Around writing `need` bytes to `target`: when that is staged and does not fit, an error that names the setting.

    Raises EncryptionError.
    """
    root = next((folder for folder in target.parents if _is_root(folder)), None)
    if root is None:
        yield
        return
    _check_room(root, need)
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise full(root) from error
            cause = cause.__cause__
        raise


def full(place: Path) -> EncryptionError:
    """What to raise when staging has run full on the way."""
    return EncryptionError(
        f"{place} is full: nothing was kept; enlarge it, or set artifacts.staging to a private folder with more room"
    )


# -- this process's folders -------------------------------------------------------------------------------------------


def _made(chosen: Path | None, need: int) -> _Root:
    parent = _parent(chosen, need)
    _check_room(parent, need)
    name = f"securemfg-{os.getpid()}-{_started(os.getpid())}-{_space()}-"
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=name, dir=parent))
        _REAPER.watch(folder)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if folder is not None:
            remove(str(folder))
        raise EncryptionError(
            f"no plaintext can be staged in {parent}: {error.strerror}; set artifacts.staging to a private folder"
        ) from error
    except EncryptionError:
        if folder is not None:
            remove(str(folder))
        raise
    return _Root(folder, lock)


def _root(chosen: Path | None, need: int = 0) -> Path:
    root = _roots.get(chosen)
    if root is None or not _is_root(root.folder):
        if root is not None:
            os.close(root.lock)
            _REAPER.unwatch(root.folder)
            del _roots[chosen]
        root = _roots[chosen] = _made(chosen, need)
    else:
        _REAPER.watch(root.folder)  # it costs a write, and finds out that the helper was killed
        _check_room(root.folder, need)
    return root.folder


def staging_folder(chosen: Path | None = None, need: int = 0, *, outside: bool = False) -> Path:
    """The current step's staging folder below `chosen` (setting `artifacts.staging`), with room for `need` bytes.

    With `outside`, or in no running step, the one that stays until the process ends. Raises EncryptionError.
    """
    here = None if outside else context.current()
    running = here is not None and any(step.step_id == here.step_id for step in context.active())
    with _lock:
        folder = _root(chosen, need) / (here.step_id if here is not None and running else _OUTSIDE)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        return folder


def fresh_folder(chosen: Path | None = None, need: int = 0) -> Path:
    """A new empty folder inside the staging folder."""
    return Path(tempfile.mkdtemp(dir=staging_folder(chosen, need)))


def partial_folder(target: Path) -> Path:
    """A hidden folder in `target` for what has not been verified whole yet, until `partial_done`.

    It goes with the process too, however that ends. Raises EncryptionError when nothing can see to that.
    """
    folder = Path(tempfile.mkdtemp(prefix=".securemfg-", dir=target.absolute()))
    if not is_staged(folder):
        with _lock:
            try:
                _REAPER.watch(folder)
            except EncryptionError:
                remove(str(folder))
                raise
            _partial.add(folder)
    return folder


def partial_done(folder: Path) -> None:
    """Remove a partial folder and what is left in it; another one stays as it is."""
    with _lock:
        if folder not in _partial:
            return
        _partial.discard(folder)
    remove(str(folder))
    _REAPER.unwatch(folder)


def is_staged(path: Path) -> bool:
    """Whether `path` (resolved) is or lies in a staging folder of this user: this process's, or one's it works for."""
    return any(_is_root(folder) for folder in (path, *path.parents))


def _is_root(folder: Path) -> bool:
    if _NAME.fullmatch(folder.name) is None:
        return False
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


# -- the end ----------------------------------------------------------------------------------------------------------


def end_step(step_id: str) -> None:
    """Remove what a step staged. What cannot be removed now goes with the process."""
    if not _roots:
        return
    with _lock:
        folders = [root.folder / step_id for root in _roots.values()]
    for folder in folders:
        remove(str(folder))


def sweep() -> None:
    """Remove everything this process staged."""
    with _lock:
        for chosen, root in list(_roots.items()):
            if remove(str(root.folder)):
                os.close(root.lock)
                _REAPER.unwatch(root.folder)
                del _roots[chosen]
        for folder in list(_partial):
            remove(str(folder))


def sweep_dead(chosen: Path | None = None) -> None:
    """Remove what processes of this user left that are dead: killed together with their reaper, say."""
    for place in dict.fromkeys((*_candidates(), *((chosen,) if chosen is not None else ()))):
        with contextlib.suppress(OSError):
            for name in os.listdir(place):
                folder = place / name
                if _is_root(folder) and _is_dead(folder):
                    remove(str(folder))


def _is_dead(folder: Path) -> bool:
    """Whether the process that made `folder` has ended: by its number and start time, and by the lock it would hold."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    here = int(match["space"]) == _space()
    if here and _started(int(match["pid"])) == int(match["start"]):
        return False
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # a container's process that shares the place may just be making it
        return here or time.time() - os.lstat(folder).st_mtime > _YOUNG
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _started(pid: int) -> int:
    """When a process started, in the kernel's ticks since boot: with the number it names one process. 0: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {b"Z", b"X"} else int(fields[19])  # fields 3 and 22, proc(5)


def _space() -> int:
    """The namespace that process numbers are counted in."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    for root in _roots.values():
        with contextlib.suppress(OSError):
            os.close(root.lock)  # the parent's: its copy goes on holding the lock
    _roots.clear()
    _partial.clear()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(sweep)
