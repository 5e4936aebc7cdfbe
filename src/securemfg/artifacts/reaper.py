"""What removes staged plaintext when its process cannot: a small helper process that outlives a killed one.

The helper reads folder names from a pipe whose only writer is the process it serves. When that process ends, however it
ends, the kernel closes the pipe, and the helper removes what it was told of. It is this file, run by the interpreter
alone: nothing heavy is imported at its top.
"""

from __future__ import annotations

import errno
import os

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WATCH, _UNWATCH = b"+", b"-"


def remove(folder: str | bytes) -> bool:
    """Remove a folder and all in it, following no symbolic link. Whether it is gone."""
    try:
        above = os.open(os.path.dirname(folder) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        _remove(os.path.basename(folder), above)
    finally:
        os.close(above)
    return not os.path.lexists(folder)


def _remove(name: str | bytes, above: int) -> None:
    try:
        try:
            inside = os.open(name, _OPEN, dir_fd=above)
        except PermissionError:  # a copied tree keeps its modes; it lies in a folder that is ours alone
            os.chmod(name, 0o700, dir_fd=above)
            inside = os.open(name, _OPEN, dir_fd=above)
    except NotADirectoryError:
        _unlink(name, above)
        return
    except OSError as error:
        if error.errno == errno.ELOOP:  # a symbolic link
            _unlink(name, above)
        return
    try:
        os.fchmod(inside, 0o700)
        with os.scandir(inside) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_folder in found:
            (_remove if is_folder else _unlink)(child, inside)
        os.rmdir(name, dir_fd=above)
    except OSError:
        pass  # the caller looks whether it is gone
    finally:
        os.close(inside)


def _unlink(name: str | bytes, above: int) -> None:
    try:  # noqa: SIM105 - nothing more is imported here
        os.unlink(name, dir_fd=above)
    except OSError:
        pass


class Reaper:
    """The serving end: starts the helper with the first folder, and again should it be gone. Thread- and fork-safe."""

    def __init__(self) -> None:
        import threading

        self._lock = threading.RLock()
        self._pipe = -1  # its write end
        self._watched: set[bytes] = set()
        # no fork while a pipe is being made: a child that holds the write end unknowingly would keep it open
        os.register_at_fork(
            before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._in_child
        )

    def watch(self, folder: str | os.PathLike[str]) -> None:
        """Have `folder` removed when this process ends. Raises EncryptionError when nothing can see to that."""
        name = os.fsencode(folder)
        with self._lock:
            self._watched.add(name)
            if not self._tell(_WATCH, name):
                try:
                    self._start()
                except BaseException:
                    self._watched.discard(name)
                    raise

    def unwatch(self, folder: str | os.PathLike[str]) -> None:
        """Forget a folder that has been removed, or whose content may stay."""
        name = os.fsencode(folder)
        with self._lock:
            if name in self._watched:
                self._watched.discard(name)
                self._tell(_UNWATCH, name)

    def _tell(self, what: bytes, name: bytes) -> bool:
        if self._pipe < 0:
            return False
        try:
            return os.write(self._pipe, what + name + b"\0") == len(name) + 2
        except OSError:  # it is gone, or stopped and its pipe full
            return False

    def _start(self) -> None:
        import subprocess
        import sys

        from securemfg.errors import EncryptionError

        self._close()
        program = _source()
        interpreter = _interpreter()
        if program is None or interpreter is None:
            raise EncryptionError(
                f"no plaintext is staged: the helper that removes it after a crash needs a Python interpreter and this "
                f"module's source, and sys.executable is {sys.executable!r}; load in a process of a plain interpreter"
            )
        reading, writing = os.pipe()
        try:
            kept = {name: value for name, value in os.environ.items() if name in {"LD_LIBRARY_PATH", "SYSTEMROOT"}}
            started = subprocess.run(  # noqa: S603 - the program forks and its first process ends at once: no child of ours stays
                [interpreter, "-I", "-S", "-c", program],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=kept,
                cwd="/",
                start_new_session=True,  # a signal to our group does not reach it
                check=False,
            )
            if started.returncode != 0:
                raise OSError(f"it ended with {started.returncode}")
            os.set_blocking(writing, False)
        except (OSError, subprocess.SubprocessError) as error:
            os.close(writing)
            raise EncryptionError(
                f"no plaintext is staged: the helper that removes it after a crash cannot be started with "
                f"{interpreter} ({error}); allow this process to start one more"
            ) from error
        finally:
            os.close(reading)
        self._pipe = writing
        if not all(self._tell(_WATCH, name) for name in self._watched):
            raise EncryptionError("no plaintext is staged: the helper that removes it after a crash does not listen")

    def _close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _in_child(self) -> None:
        self._lock.release()
        self._watched.clear()
        self._close()  # else the parent's end would not be noticed before the child's


def _source() -> str | None:
    loader = globals().get("__loader__")
    try:
        source: str | None = loader.get_source(__name__) if loader is not None else None
    except (OSError, ImportError, AttributeError):
        return None
    return source


def _interpreter() -> str | None:
    """A Python interpreter: `sys.executable`, or its installation's own where Python is embedded."""
    import sys

    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own = sys.executable if "python" in os.path.basename(sys.executable or "").lower() else ""
    for path in (own, getattr(sys, "_base_executable", ""), os.path.join(sys.base_exec_prefix, "bin", version)):
        if path and "python" in os.path.basename(path).lower() and os.access(path, os.X_OK):
            return path
    return None


def _main() -> None:
    import _signal  # type: ignore[import-not-found]  # `signal` brings in enum, and with it a megabyte
    import time

    for number in (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_IGN)  # it ends with its process, not before
    if os.fork():
        os._exit(0)
    watched: set[bytes] = set()
    rest = b""
    while chunk := os.read(0, 1 << 16):
        *records, rest = (rest + chunk).split(b"\0")
        for record in records:
            (watched.add if record[:1] == _WATCH else watched.discard)(record[1:])
    for attempt in range(60):  # a child of the dead process may still be writing
        watched = {folder for folder in watched if not remove(folder)}
        if not watched:
            break
        time.sleep(min(0.02 * (attempt + 1), 1))


if __name__ == "__main__":
    _main()
