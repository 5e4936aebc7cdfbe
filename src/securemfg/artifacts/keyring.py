"""Run keys in use: made once per process and artifact root for writing, opened and briefly kept for reading.

A store is whatever can put, get and list files below a root; the repository hands one in.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from securemfg.artifacts.location import Root
from securemfg.artifacts.protection import Protection
from securemfg.encryption.run_key import RunKey, create_run_key, open_run_key, record_path
from securemfg.errors import EncryptionError, KeyUnavailable
from securemfg.forking import forget_after_fork

_KEPT: Final = 1024  # run keys in memory
_LIFETIME: Final = 300.0  # seconds that an opened run key is kept for reading


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
        self._reading: OrderedDict[tuple[str, str, int], tuple[float, RunKey]] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}

    def clear(self) -> None:
        with self._lock:
            self._writing.clear()
            self._reading.clear()

    def for_writing(self, root: Root, store: RecordStore, protection: Protection) -> RunKey:
        """This process's run key for `root`, its record stored and read back before it is first used.

        Raises KeyUnavailable or EncryptionError; then nothing may be written.
        """
        groups = protection.writing_keys()
        if not groups or not all(groups):
            raise KeyUnavailable("no key to encrypt for: set keys.default")
        place = (root.uri, tuple(repr(group) for group in groups))
        with self._lock:
            found = self._writing.get(place)
            if found is not None:
                return found
            making = self._making.setdefault(root.uri, threading.Lock())
        with making:  # one record, however many threads come first
            with self._lock:
                found = self._writing.get(place)
            if found is not None:
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
                    "recipients": ", ".join(repr(k) for group in groups for k in group),
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
        now = self._clock()
        with self._lock:
            kept = self._reading.get(place)
            if kept is not None and now - kept[0] < _LIFETIME:
                return kept[1]
        record = store.get_record(root, record_path(key_id))
        key = open_run_key(record, key_id, protection.reading_keys(), root.binding)
        with self._lock:
            self._reading[place] = (now, key)
            while len(self._reading) > _KEPT:
                self._reading.popitem(last=False)
        return key


KEYRING: Final = Keyring()
