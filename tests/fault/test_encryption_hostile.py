"""Inputs made to harm, through every way of reading: a typed error, little memory, and no part of a target."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from securemfg.encryption.legacy import SUITES
from securemfg.encryption.message import FRAME_OVERHEAD, parse_header
from securemfg.encryption.pipes import decrypt_stream
from securemfg.encryption.ranges import open_message, open_range, reencrypt_file
from securemfg.encryption.stream import decrypt_bytes, decrypt_file, inspect_file, verify_file
from securemfg.errors import EncryptionError
from tests.unit.encryption.parts import a_key, folder_holds, frames_of, message_of

KEY = a_key()
FRAME = 64  # bytes
MEMORY = 8 << 20  # bytes: a header is read in pieces of up to 1 MiB, a pipe too
MESSAGE = message_of(bytes(range(200)), KEY, FRAME, {"asset": "press-7"})
HEADER = parse_header(MESSAGE)
HEAD, BODY = MESSAGE[: HEADER.length], frames_of(MESSAGE, HEADER.length, FRAME)
LENGTH_AT = HEADER.length - 16 - 32 - 4  # where the frame length stands
CONTEXT_AT = 3 + 32  # where the context's length stands
COUNT_AT = MESSAGE.index(b"\x00\x01\x00\x05tests")  # where the count of recipients stands
RECIPIENT = MESSAGE[COUNT_AT + 2 : LENGTH_AT - 1]


def with_context(pairs: bytes) -> bytes:
    return MESSAGE[:CONTEXT_AT] + struct.pack(">H", len(pairs)) + pairs + MESSAGE[COUNT_AT:]


def version_1(rest: bytes, count: int = 1) -> bytes:
    return struct.pack(">BBH16sHH", 1, 0x80, 0x0178, bytes(16), 0, count) + rest


HOSTILE: dict[str, bytes] = {
    "0 bytes": b"",
    "1 byte": MESSAGE[:1],
    "only the header": HEAD,
    "frames of 4 GiB": MESSAGE[:LENGTH_AT] + b"\xff\xff\xff\xff" + MESSAGE[LENGTH_AT + 4 :],
    "frames of 64 MiB": MESSAGE[:LENGTH_AT] + struct.pack(">I", 1 << 26) + MESSAGE[LENGTH_AT + 4 :],
    "frames of 1 byte": MESSAGE[:LENGTH_AT] + struct.pack(">I", 1) + MESSAGE[LENGTH_AT + 4 :],
    "65,535 recipients claimed": MESSAGE[:COUNT_AT] + b"\xff\xff" + MESSAGE[COUNT_AT + 2 :],
    "65,535 recipients": MESSAGE[:COUNT_AT] + b"\xff\xff" + RECIPIENT * 65535 + MESSAGE[LENGTH_AT - 1 :],
    "64 recipients of 192 KiB": MESSAGE[:COUNT_AT] + b"\x00\x40" + (b"\xff\xff" + bytes(65535)) * 192,
    "no recipient": MESSAGE[:COUNT_AT] + b"\x00\x00" + MESSAGE[LENGTH_AT - 1 :],
    "duplicate context keys": with_context(b"\x00\x02\x00\x01a\x00\x01x\x00\x01a\x00\x01y"),
    "65,535 context pairs claimed": with_context(b"\xff\xff\x00\x01a\x00\x01x"),
    "endless context key": with_context(b"\x00\x01\xff\xff" + bytes(60000)),
    "trailing byte": MESSAGE + b"\0",
    "trailing frame": MESSAGE + BODY[0],
    "trailing message": MESSAGE + MESSAGE,
    "trailing megabytes": MESSAGE + bytes(3 << 20),
    "swapped frames": HEAD + BODY[1] + BODY[0] + b"".join(BODY[2:]),
    "swapped final frame": HEAD + BODY[-1] + b"".join(BODY[:-1]),
    "zeros": bytes(1 << 20),
    "noise": os.urandom(1 << 20),
    "version 1, 65,535 recipients": version_1(RECIPIENT * 100, count=65535),
    "version 1, frames of 4 GiB": version_1(RECIPIENT + struct.pack(">BIBI", 2, 0, 12, 0xFFFFFFFF) + bytes(100)),
    "version 1, body of 2^64 bytes": version_1(
        RECIPIENT + struct.pack(">BIBI", 1, 0, 12, 0) + bytes(28 + 12) + b"\xff" * 8 + bytes(100)
    ),
}


def read_whole(path: Path) -> bytes:
    with open_message(path, key=KEY, suites=SUITES) as file:
        return file.read()


READERS: dict[str, Callable[[Path, Path], object]] = {
    "decrypt_bytes": lambda path, _: decrypt_bytes(path.read_bytes(), key=KEY, suites=SUITES),
    "decrypt_file": lambda path, out: decrypt_file(path, out / "x", key=KEY, suites=SUITES),
    "verify_file": lambda path, _: verify_file(path, key=KEY, suites=SUITES),
    "open_message": lambda path, _: read_whole(path),
    "open_range": lambda path, _: open_range(path, 0, 1 << 40, key=KEY, suites=SUITES),
    "reencrypt_file": lambda path, out: reencrypt_file(path, out / "x", key=KEY, new_key=KEY, suites=SUITES),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def refused(read: Callable[[], object], kept: int) -> int:
    """That `read` raises typed; how many bytes it took beyond the `kept` ones of the message itself."""
    tracemalloc.start()
    try:
        with pytest.raises(EncryptionError):
            read()
        return tracemalloc.get_traced_memory()[1] - kept
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_typed_in_little_memory_and_leaves_nothing(
    tmp_path: Path, out: Path, name: str, reader: str
) -> None:
    source = tmp_path / "hostile.esdk"
    source.write_bytes(HOSTILE[name])
    taken = refused(lambda: READERS[reader](source, out), len(HOSTILE[name]) if reader == "decrypt_bytes" else 0)
    assert taken < MEMORY
    assert folder_holds(out) == []
    (out / "x").write_bytes(b"old")
    refused(lambda: READERS[reader](source, out), 0)
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pipe_is_refused_before_a_byte_is_given_out(name: str) -> None:
    given = io.BytesIO()
    taken = refused(lambda: decrypt_stream(io.BytesIO(HOSTILE[name]), given, key=KEY, suites=SUITES), 0)
    assert taken < MEMORY
    assert given.getvalue() == b""


@pytest.mark.parametrize("name", HOSTILE)
def test_inspecting_a_hostile_file_ends_well_or_typed_in_little_memory(tmp_path: Path, name: str) -> None:
    source = tmp_path / "hostile.esdk"
    source.write_bytes(HOSTILE[name])
    said = ""
    tracemalloc.start()
    try:
        inspect_file(source)
    except EncryptionError as error:
        said = str(error)
    finally:
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken < MEMORY
    assert not said or str(source) in said
    assert len(said) < 1000


def test_sparse_file_of_a_terabyte_takes_no_memory(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "hostile.esdk"
    for start in (HOSTILE["frames of 64 MiB"], HOSTILE["version 1, body of 2^64 bytes"], MESSAGE):
        source.write_bytes(start)
        try:
            os.truncate(source, 1 << 40)
        except OSError:
            pytest.skip("needs a file system with large sparse files")
        for reader in ("decrypt_file", "verify_file", "open_message"):
            assert refused(lambda reader=reader: READERS[reader](source, out), 0) < MEMORY
    assert folder_holds(out) == []


@pytest.mark.parametrize("reader", READERS)
def test_small_message_cut_at_any_byte_is_refused_and_leaves_nothing(tmp_path: Path, out: Path, reader: str) -> None:
    source = tmp_path / "cut.esdk"
    for length in range(len(MESSAGE)):
        source.write_bytes(MESSAGE[:length])
        with pytest.raises(EncryptionError):
            READERS[reader](source, out)
    assert folder_holds(out) == []
    source.write_bytes(MESSAGE)
    READERS[reader](source, out)  # whole, it opens


def test_message_of_many_empty_looking_frames_costs_what_it_weighs(tmp_path: Path, out: Path) -> None:
    source = tmp_path / "x.esdk"
    source.write_bytes(message_of(bytes(2000), KEY, 1))
    assert source.stat().st_size > 2000 * FRAME_OVERHEAD
    tracemalloc.start()
    decrypt_file(source, out / "x", key=KEY)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (out / "x").read_bytes() == bytes(2000)
    assert taken < MEMORY
