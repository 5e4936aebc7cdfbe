"""Parts of messages: only what is needed is read, and only what verifies is given."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from securemfg.encryption import create_local_key, encrypt_file, open_message, open_range
from securemfg.encryption.message import FRAME_OVERHEAD, Geometry
from securemfg.encryption.source import reading
from securemfg.encryption.stream import inspect_file, read_header
from securemfg.errors import DecryptionError

FRAME = 1 << 20
DATA = os.urandom(3 * FRAME + 12345)


@pytest.fixture
def key() -> str:
    create_local_key(Path("keys/dev.key"))
    return "local:keys/dev.key"


@pytest.fixture
def message(key: str) -> Path:
    Path("plain").write_bytes(DATA)
    encrypt_file("plain", "message", key=key, context={"plant": "7"})
    return Path("message")


def frame_offset(path: Path, index: int) -> int:
    with path.open("rb") as file:
        return Geometry.of(read_header(reading(file.fileno(), path), path), path.stat().st_size).offset(index)


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, 0), (0, 1), (0, len(DATA)), (5, 100), (FRAME - 1, 2), (FRAME, FRAME), (FRAME - 3, 2 * FRAME),
        (3 * FRAME, 12345), (3 * FRAME + 12344, 1), (len(DATA) - 1, 10), (len(DATA), 10), (len(DATA) + 5, 10),
        (2 * FRAME + 7, 1 << 40),
    ],
)  # fmt: skip
def test_a_range_is_what_a_slice_would_be(message: Path, key: str, start: int, length: int) -> None:
    assert open_range(message, start, length, key=key) == DATA[start : start + length]


def test_negative_ranges_are_refused(message: Path, key: str) -> None:
    for start, length in ((-1, 5), (0, -5)):
        with pytest.raises(ValueError, match="0 or more"):
            open_range(message, start, length, key=key)


def test_the_file_object_reads_seeks_and_tells_as_a_file_does(message: Path, key: str) -> None:
    with open_message(message, key=key, context={"plant": "7"}) as file, Path("plain").open("rb") as plain:
        for offset, whence, count in ((0, 0, 10), (FRAME - 5, 0, 10), (-100, 2, 200), (-50, 1, 20), (7, 0, -1)):
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell()
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_an_empty_message_is_an_empty_file(key: str) -> None:
    Path("empty").write_bytes(b"")
    encrypt_file("empty", "message", key=key)
    with open_message("message", key=key) as file:
        assert file.read() == b""


def test_only_the_frames_of_the_range_are_read(message: Path, key: str) -> None:
    damaged = bytearray(message.read_bytes())
    damaged[frame_offset(message, 1) + FRAME_OVERHEAD] ^= 1  # the second frame
    message.write_bytes(damaged)
    assert open_range(message, 0, FRAME, key=key) == DATA[:FRAME]
    assert open_range(message, 2 * FRAME, 10, key=key) == DATA[2 * FRAME : 2 * FRAME + 10]
    with pytest.raises(DecryptionError, match="frame 2 was changed"):
        open_range(message, FRAME + 5, 1, key=key)


def test_a_message_without_its_end_opens_at_no_place(message: Path, key: str) -> None:
    data = message.read_bytes()
    for cut in (data[:-1], data[: frame_offset(message, 3)], data[: frame_offset(message, 2)]):
        message.write_bytes(cut)
        with pytest.raises(DecryptionError):
            open_range(message, 0, 1, key=key)


def test_a_moved_frame_is_refused(message: Path, key: str) -> None:
    data = bytearray(message.read_bytes())
    first, second, third = (frame_offset(message, index) for index in range(3))
    data[first:second], data[second:third] = data[second:third], data[first:second]
    message.write_bytes(data)
    with pytest.raises(DecryptionError, match="sequence number"):
        open_range(message, 0, 1, key=key)


def test_the_wrong_context_or_key_opens_nothing(message: Path, key: str) -> None:
    with pytest.raises(DecryptionError, match="moved or swapped"):
        open_message(message, key=key, context={"plant": "8"})
    create_local_key(Path("keys/other.key"))
    with pytest.raises(DecryptionError, match="no key at hand"):
        open_message(message, key="local:keys/other.key")


def test_refused_messages_leave_no_descriptor_open(message: Path, key: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(DecryptionError):
            open_message(message, key=key, context={"plant": "8"})
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_share_one_file(message: Path, key: str) -> None:
    from securemfg.encryption.ranges import MessageFile

    wrong: list[int] = []
    with MessageFile(message, key=key) as shared:

        def read(start: int) -> None:
            for step in range(20):
                at = (start + step * 131_071) % (len(DATA) - 1000)
                buffer = bytearray(1000)
                shared.read_range(at, memoryview(buffer))
                if buffer != DATA[at : at + 1000]:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(n * 400_000,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_pandas_and_pyarrow_read_through_it(key: str) -> None:
    pd = pytest.importorskip("pandas", reason="needs pandas: pip install pandas")
    pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install pyarrow")
    table = pd.DataFrame({"torque": range(50_000), "name": ["a", "b"] * 25_000})
    table.to_parquet("table.parquet")
    table.to_csv("table.csv", index=False)
    for name in ("table.parquet", "table.csv"):
        encrypt_file(name, f"{name}.esdk", key=key)
    with open_message("table.parquet.esdk", key=key) as file:
        assert pq.read_table(file, columns=["torque"]).num_rows == 50_000
    with open_message("table.parquet.esdk", key=key) as file:
        assert pd.read_parquet(file)["torque"].sum() == table["torque"].sum()
    with open_message("table.csv.esdk", key=key) as file:
        assert len(pd.read_csv(io.TextIOWrapper(file))) == 50_000
    assert inspect_file("table.csv.esdk").plaintext_length == Path("table.csv").stat().st_size
