"""Messages that were changed, cut, mixed or made to harm: refused, typed, and the target untouched."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from securemfg.encryption import frames, stream
from securemfg.encryption.message import FINAL_OVERHEAD, FRAME_OVERHEAD, Header, MessageKey, parse_header
from securemfg.encryption.stream import decrypt_bytes, decrypt_file, encrypt_bytes, encrypt_file
from securemfg.errors import DecryptionError, EncryptionError
from tests.unit.encryption.parts import FRAME, a_key, folder_holds, frames_of, message_of

KEY = a_key()
SHORT = 64  # bytes per frame
PLAINTEXT = bytes(range(200))  # three frames and a final one
MESSAGE = message_of(PLAINTEXT, KEY, SHORT, {"asset": "press-7"})
HEADER = parse_header(MESSAGE)
FINAL = len(MESSAGE) - (len(PLAINTEXT) - 3 * SHORT) - FINAL_OVERHEAD  # where the final frame starts


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "x").write_bytes(b"old")
    return folder


def refused(message: bytes, out: Path, key: object = KEY, says: str | None = None) -> None:
    """Both ways of reading refuse `message`, and what stood at the target still does."""
    with pytest.raises(DecryptionError, match=says):
        decrypt_bytes(message, key=key)
    source = out.parent / "message.esdk"
    source.write_bytes(message)
    with pytest.raises(DecryptionError, match=says) as error:
        decrypt_file(source, out / "x", key=key)
    assert str(source) in str(error.value)
    assert (out / "x").read_bytes() == b"old"
    with pytest.raises(DecryptionError, match=says):
        decrypt_file(source, out / "y", key=key)
    assert folder_holds(out) == ["x"]


def flipped(message: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(message)
    changed[at] ^= 1 << bit
    return bytes(changed)


def spot(of: str) -> int:
    """Where in MESSAGE a region starts."""
    tag = HEADER.length - 16
    edk = HEADER.encrypted_data_keys[0]
    return {
        "message id": 3,
        "context": MESSAGE.index(b"press-7"),
        "key name": MESSAGE.index(b"test"),
        "wrapping iv": MESSAGE.index(edk.info) + len(edk.info) - 1,
        "wrapped key": MESSAGE.index(edk.ciphertext),
        "frame length": tag - 33,
        "commitment": tag - 32,
        "header tag": tag,
        "sequence": HEADER.length + 3,
        "iv": HEADER.length + 4,
        "ciphertext": HEADER.length + 16,
        "frame tag": HEADER.length + 16 + SHORT,
        "final mark": FINAL,
        "final sequence": FINAL + 7,
        "final iv": FINAL + 8,
        "final length": FINAL + 23,
        "final ciphertext": FINAL + 24,
        "final tag": len(MESSAGE) - 1,
    }[of]


REGIONS = {
    "message id": "does not commit to this key",
    "context": "no key at hand opens",
    "key name": "none of the keys at hand",
    "wrapping iv": "no key at hand opens",
    "wrapped key": "no key at hand opens",
    "frame length": "fits no whole frames|tag does not verify",
    "commitment": "does not commit to this key",
    "header tag": "header was changed",
    "sequence": "frame 1 has another sequence number",
    "iv": "frame 1 was changed: its tag does not verify",
    "ciphertext": "frame 1 was changed",
    "frame tag": "frame 1 was changed",
    "final mark": "frame 4 is not marked as the final one",
    "final sequence": "frame 4 has another sequence number",
    "final iv": "frame 4 was changed",
    "final length": "final frame's length is wrong",
    "final ciphertext": "frame 4 was changed",
    "final tag": "frame 4 was changed",
}


def test_unchanged_message_opens(out: Path) -> None:
    assert decrypt_bytes(MESSAGE, key=KEY) == PLAINTEXT


@pytest.mark.parametrize("new", [True, False], ids=["into-buffers", "copying"])
@pytest.mark.parametrize("region", REGIONS)
def test_one_bit_changed_is_refused_in_every_region(out: Path, region: str, new: bool, monkeypatch) -> None:
    if new and not frames.parallel():
        pytest.skip("needs cryptography 50 or newer for the path that works into buffers")
    monkeypatch.setattr(frames, "parallel", lambda: new)
    refused(flipped(MESSAGE, spot(region)), out, says=REGIONS[region])


def test_every_single_bit_matters() -> None:
    for at in range(len(MESSAGE)):
        with pytest.raises(DecryptionError):
            decrypt_bytes(flipped(MESSAGE, at, at % 8), key=KEY)


def test_cut_anywhere_it_is_refused(out: Path) -> None:
    for length in range(len(MESSAGE)):
        with pytest.raises(DecryptionError):
            decrypt_bytes(MESSAGE[:length], key=KEY)
    source = out.parent / "cut.esdk"
    for length in (0, 1, 3, 100, HEADER.length - 1, HEADER.length, FINAL, FINAL - 1, len(MESSAGE) - 1):
        source.write_bytes(MESSAGE[:length])
        with pytest.raises(DecryptionError):
            decrypt_file(source, out / "x", key=KEY)
    assert (out / "x").read_bytes() == b"old"


def test_cut_at_a_frame_with_the_final_mark_forged_is_refused(out: Path) -> None:
    first = MESSAGE[HEADER.length : HEADER.length + SHORT + FRAME_OVERHEAD]
    forged = b"\xff\xff\xff\xff" + first[:16] + struct.pack(">I", SHORT) + first[16:]
    refused(MESSAGE[: HEADER.length] + forged, out, says="frame 1 was changed")


@pytest.mark.parametrize("count", [1, 2, FINAL_OVERHEAD, SHORT + FRAME_OVERHEAD])
def test_bytes_after_the_end_are_refused(out: Path, count: int) -> None:
    refused(MESSAGE + bytes(count), out)
    refused(MESSAGE + MESSAGE[FINAL:][:count], out)


def test_frames_swapped_removed_or_doubled_are_refused(out: Path) -> None:
    head = MESSAGE[: HEADER.length]
    one, two, three, final = frames_of(MESSAGE, HEADER.length, SHORT)
    assert head + one + two + three + final == MESSAGE
    moved = "another sequence number: frames were moved or removed"
    refused(head + two + one + three + final, out, says=moved)
    refused(head + one + three + final, out, says=moved)
    refused(head + one + one + three + final, out, says=moved)
    refused(head + one + two + final, out, says=moved)
    refused(head + final, out, says=moved)
    renumbered = two[:3] + b"\x01" + two[4:]
    refused(head + renumbered + two + three + final, out, says="frame 1 was changed")


def test_frames_of_another_message_under_the_same_key_are_refused(out: Path) -> None:
    other = message_of(PLAINTEXT, KEY, SHORT, {"asset": "press-7"})
    assert parse_header(other).length == HEADER.length
    refused(MESSAGE[: HEADER.length] + other[HEADER.length :], out, says="frame 1 was changed")
    refused(MESSAGE[:FINAL] + other[FINAL:], out, says="frame 4 was changed")


@pytest.mark.parametrize("frame_length", [0, (1 << 26) + 1, 0xFFFFFFFF])
def test_frame_length_that_is_none_is_refused_before_any_memory_is_taken(out: Path, frame_length: int) -> None:
    at = HEADER.length - 16 - 32 - 4
    refused(
        MESSAGE[:at] + struct.pack(">I", frame_length) + MESSAGE[at + 4 :], out, says=f"frame length {frame_length}"
    )


def test_largest_frame_length_takes_no_more_memory_than_the_message(out: Path) -> None:
    message = message_of(PLAINTEXT, KEY, 1 << 26)
    (out.parent / "x.esdk").write_bytes(message)
    tracemalloc.start()
    decrypt_file(out.parent / "x.esdk", out / "x", key=KEY)
    decrypt_bytes(message, key=KEY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_claimed_recipients_are_refused_before_they_are_read(out: Path) -> None:
    at = MESSAGE.index(b"\x00\x01\x00\x05tests")
    refused(MESSAGE[:at] + b"\xff\xff" + MESSAGE[at + 2 :], out, says="claims 65535 recipients: 1 to 64")
    refused(MESSAGE[:at] + b"\x00\x00" + MESSAGE[at + 2 :], out, says="claims 0 recipients")


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (b"\x00\x02\x00\x01a\x00\x01x\x00\x01a\x00\x01y", "twice"),
        (b"\x00\x02\x00\x01b\x00\x01x\x00\x01a\x00\x01y", "out of order"),
        (b"\x00\x01\x00\x01a\x00\x01x!", "left over"),
    ],
)
def test_context_that_says_two_things_is_refused_although_its_tag_verifies(out: Path, pairs: bytes, says: str) -> None:
    data_key = os.urandom(32)
    key = MessageKey(data_key, bytes(32))
    plain = key.header({}, [KEY.wrap(data_key, {})], SHORT)
    body = plain.body[:35] + struct.pack(">H", len(pairs)) + pairs + plain.body[37:]
    tag = key.aead.encrypt(bytes(12), b"", body)
    final = memoryview(bytearray(FINAL_OVERHEAD))
    stream.seal(key, 1, memoryview(b""), final, final=True)
    refused(body + tag + bytes(final), out, says=says)


def test_wrong_key_and_no_key_leave_the_target_alone(out: Path) -> None:
    refused(MESSAGE, out, key=a_key("another"), says="none of the keys at hand")
    refused(MESSAGE, out, key=a_key("test"), says="does not open it: changed, or another key")


def test_header_with_a_changed_tag_under_the_right_key_is_refused() -> None:
    data_key = os.urandom(32)
    header = MessageKey(data_key, bytes(32)).header({}, [KEY.wrap(data_key, {})], SHORT)
    for change in ({"body": header.body[:-1] + bytes([header.body[-1] ^ 1])}, {"tag": bytes(16)}):
        fields = {name: getattr(header, name) for name in Header.__dataclass_fields__}
        with pytest.raises(DecryptionError, match="its tag does not verify"):
            MessageKey.open(Header(**{**fields, **change}), data_key)


@pytest.mark.parametrize("frame", [1, 3, 5, 7])
def test_damage_in_any_frame_of_a_large_file_surfaces_typed_from_the_threads(out: Path, frame: int) -> None:
    (out.parent / "big").write_bytes(os.urandom(6 * FRAME + 5))
    source = out.parent / "big.esdk"
    encrypt_file(out.parent / "big", source, key=KEY, durable=False)
    header = parse_header(source.read_bytes()[:4096])
    with source.open("r+b") as file:
        file.seek(header.length + (frame - 1) * (FRAME + FRAME_OVERHEAD) + 30)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DecryptionError, match=f"frame {frame} was changed: its tag does not verify"):
        decrypt_file(source, out / "x", key=KEY)
    assert (out / "x").read_bytes() == b"old"
    assert folder_holds(out) == ["x"]


def test_error_is_an_encryption_error_too() -> None:
    with pytest.raises(EncryptionError):
        decrypt_bytes(flipped(encrypt_bytes(b"x", key=KEY), -1), key=KEY)
