"""The SHA-256 of a message, from the very bytes that are encrypted or decrypted: nothing is read a second time."""

from __future__ import annotations

import hashlib
import threading
from typing import Final

_AHEAD: Final = 16  # frames that may wait for an earlier one: memory stays flat


class MessageDigest:
    """SHA-256 over a header and its frames, which several threads give in nearly any order."""

    def __init__(self, header: bytes) -> None:
        self._hash = hashlib.sha256(header)
        self._turn = threading.Condition()
        self._next = 0
        self._waiting: dict[int, bytes] = {}
        self._hashing = False
        self._failed = False

    def add(self, index: int, frame: memoryview) -> None:
        """Take frame `index` (from 0) as it is stored. Waits while too many earlier ones are missing.

        Whoever brings the next one hashes, without the lock, until none is left: the others go on with their work.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._failed or index < self._next + _AHEAD)
            if self._hashing or index != self._next:
                self._waiting[index] = bytes(frame)  # the caller uses its buffer again
                return
            self._hashing = True
        following: memoryview | bytes | None = frame
        while following is not None:
            self._hash.update(following)
            with self._turn:
                self._next += 1
                following = self._waiting.pop(self._next, None)
                self._hashing = following is not None
                self._turn.notify_all()

    def abandon(self) -> None:
        """A frame will never come: let nobody wait for it."""
        with self._turn:
            self._failed = True
            self._turn.notify_all()

    def hex(self) -> str:
        return self._hash.hexdigest()
