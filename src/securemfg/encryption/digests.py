"""SHA-256 digests of a message, from the very bytes that are encrypted or decrypted: nothing is read a second time.

A file is digested in shards of one frame's length, so that each thread digests the frames that it works on. A shard is
the end of one frame (as long as the header) and all of the next one but its end.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from securemfg.encryption.frames import run_shared, workers_for
from securemfg.encryption.message import FRAME_LENGTH, FRAME_OVERHEAD

SHARD: Final = FRAME_LENGTH + FRAME_OVERHEAD  # bytes; the last one of a file is what is left


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file's bytes are, in shards of SHARD bytes."""

    size: int  # bytes
    shards: tuple[str, ...]  # SHA-256 (hex) of each


def digest_file(read: Callable[[memoryview, int], int], size: int) -> FileDigest:
    """The digest of `size` bytes that `read` gives: into a buffer, from an offset; how many there were."""
    shards: dict[int, str] = {}

    def work(draw: Callable[[], int | None]) -> None:
        buffer = memoryview(bytearray(min(SHARD, size)))
        while (index := draw()) is not None:
            count = read(buffer[: min(SHARD, size - index * SHARD)], index * SHARD)
            shards[index] = hashlib.sha256(buffer[:count]).hexdigest()

    count = -(-size // SHARD)
    run_shared(work, count, workers_for(size))
    return FileDigest(size, tuple(shards[index] for index in range(count)))


class MessageDigest:
    """The digest of a header and its frames of FRAME_LENGTH, which several threads give in any order."""

    def __init__(self, header: bytes, frames: int) -> None:
        """`frames` of full length come before the final one."""
        self._header = header
        self._frames = frames
        self._size = len(header)
        self._shards: dict[int, str] = {}
        self._ends = {-1: header}  # of frames, until the next one comes: what its shard begins with
        self._turn = threading.Condition()
        self._failed = False

    def add(self, index: int, frame: memoryview) -> None:
        """Take frame `index` (from 0) as it is stored. Waits for the one before it to come, not to be digested."""
        cut = SHARD - len(self._header)
        with self._turn:
            self._size += len(frame)
            if index < self._frames:
                self._ends[index] = bytes(frame[cut:])
                self._turn.notify_all()
            self._turn.wait_for(lambda: self._failed or index - 1 in self._ends)
            start = self._ends.pop(index - 1, b"")
        shard = hashlib.sha256(start)
        shard.update(frame[:cut])
        self._shards[index] = shard.hexdigest()
        if index == self._frames and len(frame) > cut:
            self._shards[index + 1] = hashlib.sha256(frame[cut:]).hexdigest()

    def abandon(self) -> None:
        """A frame will never come: let nobody wait for it."""
        with self._turn:
            self._failed = True
            self._turn.notify_all()

    def whole(self) -> FileDigest:
        """The digest, once every frame has come."""
        return FileDigest(self._size, tuple(digest for _, digest in sorted(self._shards.items())))
