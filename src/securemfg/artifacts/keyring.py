"""Run keys in use: made once per process and artifact root for writing, opened and briefly kept for reading.

A store is whatever can put, get and list files below a root; the repository hands one in.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final, Protocol, TypeAlias

from securemfg.artifacts.location import Root
from securemfg.artifacts.protection import Protection
from securemfg.encryption.records import record_path
from securemfg.encryption.run_key import KeyGroups, RunKey, create_run_key, open_run_key
from securemfg.errors import EncryptionError, KeyUnavailable
from securemfg.forking import forget_after_fork

_KEPT: Final = 1024  # run keys in memory
_LIFETIME: Final = 300.0  # seconds that an opened run key is kept for reading
_Place: TypeAlias = tuple[str, str, int]  # root, key, scope


class RecordStore(Protocol):
    """Puts and gets the small files below an artifact root."""

    def put_record(self, root: Root, path: str, data: bytes) -> None: ...

    def get_record(self, root: Root, path: str) -> bytes:
        """Raises KeyUnavailable when it is not there or cannot be had."""
        ...


class Keyring:
    """The run keys of this process. Emptied after a fork: a run key is never shared between processes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start anew, in a forked child too."""
        self._lock = threading.Lock()
        self._writing: OrderedDict[tuple[str, tuple[str, ...]], RunKey] = OrderedDict()
        self._reading: OrderedDict[_Place, tuple[float, RunKey]] = OrderedDict()
        self._timer: threading.Timer | None = None
        self._making: dict[str, threading.Lock] = {}

    def drop(self, key_id: str) -> None:
        """Forget one run key: it was destroyed."""
        with self._lock:
            for place in [place for place, key in self._writing.items() if key.key_id == key_id]:
                del self._writing[place]
            for kept in [kept for kept in self._reading if kept[1] == key_id]:
                del self._reading[kept]

    def clear(self) -> None:
        with self._lock:
            self._writing.clear()
            self._reading.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def for_writing(
        self,
        root: Root,
        store: RecordStore,
        protection: Protection,
        groups: KeyGroups | None = None,
        *,
        but: Collection[str] = (),
    ) -> RunKey:
        """This process's run key for `root`, its record stored and read back before it is first used.

        `groups` are the keys it is for, else those of the current step; one of `but` is not used any more. Raises
        KeyUnavailable or EncryptionError; then nothing may be written.
        """
        groups = protection.writing_keys() if groups is None else groups
        if not groups or not all(groups.values()):
            raise KeyUnavailable("no key to encrypt for: set keys.default")
        place = (root.uri, tuple(f"{name}: {keys!r}" for name, keys in groups.items()))
        with self._lock:
            found = self._writing.get(place)
            if found is not None and found.key_id not in but:
                return found
            making = self._making.setdefault(root.uri, threading.Lock())
        with making:  # one record, however many threads come first
            with self._lock:
                found = self._writing.get(place)
            if found is not None and found.key_id not in but:
                return found
            key, record = create_run_key(groups, root.binding)
            store.put_record(root, key.record, record)
            if store.get_record(root, key.record) != record:
                raise EncryptionError(f"the run key's record at {root.uri}/{key.record} does not read back as written")
            protection.emit(
                "key.created",
                resource=key.key_id,
                kind="run-key",
                detail={
                    "root": str(root),
                    "recipients": ", ".join(repr(key) for keys in groups.values() for key in keys),
                },
            )
            with self._lock:
                self._writing[place] = key
                self._making.pop(root.uri, None)
                while len(self._writing) > _KEPT:
                    self._writing.popitem(last=False)
            return key

    def for_reading(self, key_id: str, root: Root, store: RecordStore, protection: Protection) -> RunKey:
        """The run key `key_id` of `root`, opened with the settings' keys. Raises KeyUnavailable, DecryptionError."""
        place = (root.uri, key_id, id(protection.scope))
        found = self._kept(place)
        if found is not None:
            return found
        with self._lock:
            opening = self._making.setdefault(f"{root.uri}/{key_id}", threading.Lock())
        with opening:  # one call of the key's service, however many threads come first
            found = self._kept(place)
            if found is not None:
                return found
            record = store.get_record(root, record_path(key_id))
            key = open_run_key(record, key_id, protection.reading_keys(), root.binding)
            protection.versions.check(key)
            with self._lock:
                self._reading[place] = (self._clock(), key)
                self._making.pop(f"{root.uri}/{key_id}", None)
                while len(self._reading) > _KEPT:
                    self._reading.popitem(last=False)
            self._purge_later()
            return key

    def _kept(self, place: _Place) -> RunKey | None:
        with self._lock:
            self._purge()
            kept = self._reading.get(place)
            return kept[1] if kept is not None else None

    def _purge(self) -> None:
        oldest = self._clock() - _LIFETIME
        while self._reading and next(iter(self._reading.values()))[0] <= oldest:  # in the order they were opened
            self._reading.popitem(last=False)

    def _purge_later(self) -> None:
        """A process that reads no more must not keep what it opened: one timer, while anything is kept."""
        with self._lock:
            if self._timer is not None or not self._reading:
                return
            wait = next(iter(self._reading.values()))[0] + _LIFETIME - self._clock()
            self._timer = threading.Timer(max(0.1, wait), self._expired)
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._timer = None

    def _expired(self) -> None:
        with self._lock:
            self._timer = None
            self._purge()
        self._purge_later()


KEYRING: Final = Keyring()
atexit.register(KEYRING.clear)
