"""Keys and messages that the encryption tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from securemfg.encryption.keys import Key, RawAesKey
from securemfg.encryption.message import (
    FINAL_OVERHEAD,
    FRAME_OVERHEAD,
    MESSAGE_ID_LENGTH,
    Context,
    EncryptedDataKey,
    Geometry,
    MessageKey,
)
from securemfg.encryption.stream import seal
from securemfg.errors import KeyUnavailable

FRAME = 1 << 20


def a_key(name: str = "test") -> RawAesKey:
    return RawAesKey("tests", name, os.urandom(32))


class DataKey:
    """A key that already knows the data key, as a test vector does."""

    def __init__(self, data_key: bytes) -> None:
        self.data_key = data_key

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:
        raise KeyUnavailable("this key only opens")

    def matches(self, edk: EncryptedDataKey) -> bool:
        return True

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        return self.data_key


class Unreachable(RawAesKey):
    """A key whose service does not answer."""

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        raise KeyUnavailable(f"the service of {self.name} does not answer")


class Meddling(RawAesKey):
    """A key that does something else while it wraps or unwraps: the world changes in the middle of a call."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__("tests", "meddling", bytes(32))
        self.act = act

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:
        self.act()
        return super().wrap(data_key, context)

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        self.act()
        return super().unwrap(edk, context)


def message_of(plaintext: bytes, key: Key, frame_length: int, context: Context | None = None) -> bytes:
    """A message with frames as short as the test likes."""
    data_key = os.urandom(32)
    message_key = MessageKey(data_key, os.urandom(MESSAGE_ID_LENGTH))
    header = message_key.header(context or {}, [key.wrap(data_key, context or {})], frame_length)
    geometry = Geometry.plan(header, len(plaintext))
    parts = [header.body + header.tag]
    for index in range(geometry.frames + 1):
        part = plaintext[index * frame_length : (index + 1) * frame_length]
        out = memoryview(bytearray(len(part) + FINAL_OVERHEAD))
        parts.append(bytes(out[: seal(message_key, index + 1, memoryview(part), out, final=index == geometry.frames)]))
    return b"".join(parts)


def frames_of(message: bytes, header_length: int, frame_length: int) -> list[bytes]:
    """The regular frames of `message`, and its final one."""
    frames, at, size = [], header_length, frame_length + FRAME_OVERHEAD
    while message[at : at + 4] != b"\xff\xff\xff\xff":
        frames.append(message[at : at + size])
        at += size
    return [*frames, message[at:]]


def folder_holds(folder: Path) -> Sequence[str]:
    return sorted(os.listdir(folder))
