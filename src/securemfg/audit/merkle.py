"""The Merkle tree of RFC 6962 section 2.1, kept as its frontier: appending costs one hash, the root a few.

A leaf's entry is an event's hash (SHA-256 of its canonical bytes, 32 bytes), so that a tree can be kept without
the events.
"""

from __future__ import annotations

from hashlib import sha256

__all__ = ["EMPTY_ROOT", "Frontier"]

EMPTY_ROOT = sha256(b"").digest()


class Frontier:
    """The roots of the complete subtrees, largest first: all that a growing tree must remember."""

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, entry: bytes) -> None:
        """Add the leaf of `entry`."""
        node = sha256(b"\x00" + entry).digest()
        size = self.size
        while size & 1:  # a complete subtree of this size is waiting: join them
            node = sha256(b"\x01" + self._peaks.pop() + node).digest()
            size >>= 1
        self._peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The tree's root now, 32 bytes."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = sha256(b"\x01" + peak + node).digest()
        return node
