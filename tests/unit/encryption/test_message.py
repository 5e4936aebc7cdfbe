"""The format on bytes: headers, contexts, geometry."""

from __future__ import annotations

import struct

import pytest

from securemfg.encryption.message import (
    FINAL_OVERHEAD,
    FRAME_OVERHEAD,
    MAX_FRAME_LENGTH,
    MAX_FRAMES,
    MAX_HEADER,
    MAX_RECIPIENTS,
    EncryptedDataKey,
    Geometry,
    Header,
    MessageKey,
    Truncated,
    check_context,
    looks_like_message,
    parse_context,
    parse_header,
    serialize_context,
)
from securemfg.encryption.stream import decrypt_bytes, encrypt_bytes
from securemfg.errors import DecryptionError, EncryptionError
from tests.unit.encryption.parts import a_key, message_of

KEY = a_key()
RECIPIENT = EncryptedDataKey("tests", b"name", b"wrapped")


def a_header(frame_length: int = 16, count: int = 1, context: dict[str, str] | None = None) -> Header:
    return MessageKey(bytes(32), bytes(32)).header(context or {}, [RECIPIENT] * count, frame_length)


def raw_header(
    *,
    version: int = 2,
    suite: int = 0x0478,
    context: bytes = b"",
    count: int = 1,
    keys: bytes = struct.pack(">H5sH4sH7s", 5, b"tests", 4, b"name", 7, b"wrapped"),
    content: int = 2,
    frame_length: int = 4096,
) -> bytes:
    start = struct.pack(">BH32sH", version, suite, bytes(32), len(context)) + context
    return start + struct.pack(">H", count) + keys + struct.pack(">BI", content, frame_length) + bytes(48)


def test_header_written_by_hand_is_read() -> None:
    header = parse_header(raw_header(context=b"\x00\x01\x00\x01a\x00\x01b"))
    assert dict(header.context) == {"a": "b"}
    assert header.encrypted_data_keys == (RECIPIENT,)
    assert header.frame_length == 4096
    assert header.length == len(raw_header(context=b"\x00\x01\x00\x01a\x00\x01b"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 1}, r"not a version 2 message \(version 1 has no key commitment\)"),
        ({"version": 0x50}, r"not a version 2 message \(not an encrypted message\)"),
        ({"suite": 0x0678}, "algorithm suite 0x0678 is not read here: only those that commit"),
        ({"suite": 0x0178}, "algorithm suite 0x0178 is not read here"),
        ({"suite": 0x0000}, "algorithm suite 0x0000 is not read here"),
        ({"content": 1}, "a body without frames has a frame length of"),
        ({"content": 3}, "content type 3 is neither framed"),
        ({"frame_length": 0}, "frame length 0 is not between 1 and"),
        ({"frame_length": MAX_FRAME_LENGTH + 1}, "frame length 67108865 is not between"),
        ({"frame_length": 0xFFFFFFFF}, "frame length 4294967295 is not between"),
        ({"count": 0}, "claims 0 recipients: 1 to 64 are read"),
        ({"count": MAX_RECIPIENTS + 1}, "claims 65 recipients"),
        ({"count": 65535}, "claims 65535 recipients"),
        ({"keys": struct.pack(">H2sHH", 2, b"\xff\xfe", 0, 0)}, "a key provider's name is not UTF-8"),
    ],
    ids=str,
)
def test_header_that_is_not_read_says_what_it_claims(change: dict[str, object], says: str) -> None:
    with pytest.raises(DecryptionError, match=says):
        parse_header(raw_header(**change))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x00\x02\x00\x01a\x00\x00\x00\x01a\x00\x00", "has key b'a' twice"),
        (b"\x00\x02\x00\x01b\x00\x00\x00\x01a\x00\x00", "has key b'a' out of order"),
        (b"\x00\x01\x00\x01a\x00\x00x", "bytes left over"),
        (b"\x00\x01\x00\x09a\x00\x00", "lengths do not add up"),
        (b"\x00\x02\x00\x01a\x00\x00", "lengths do not add up"),
        (b"\x00", "lengths do not add up"),
        (b"\x00\x00", "has a length but no pairs"),
        (b"\x00\x01\x00\x01\xff\x00\x00", "a context key is not UTF-8"),
        (b"\x00\x01\x00\x01a\x00\x02\xc3\x28", "a context value is not UTF-8"),
    ],
)
def test_context_that_is_not_canonical_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(DecryptionError, match=says):
        parse_context(data)
    with pytest.raises(DecryptionError, match=says):
        parse_header(raw_header(context=data))


def test_context_is_sorted_by_its_bytes_and_read_back() -> None:
    context = {"ü": "1", "z": "2", "Z": "", "𝄞": "3", "\ue000": "4"}
    serialized = serialize_context(context)
    assert parse_context(serialized) == context
    assert list(parse_context(serialized)) == ["Z", "z", "ü", "\ue000", "𝄞"]
    assert serialize_context({}) == b""


def test_parsed_context_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        parse_context(serialize_context({"a": "b"}))["a"] = "c"  # type: ignore[index]


@pytest.mark.parametrize(
    ("context", "says"),
    [
        ({"a": "\ud800"}, "must be UTF-8 text"),
        ({"a": 1}, "must be UTF-8 text"),
        ({"a": "x" * 65536}, "too long"),
        ({"a": "x" * 40000, "b": "x" * 40000}, "too long"),
        ({str(i): "" for i in range(65536)}, "too long"),
        ({"aws-crypto-public-key": "x"}, "'aws-crypto-public-key' is reserved"),
        ({"": "x"}, "must not be empty"),
    ],
    ids=["surrogate", "number", "value", "sum", "count", "reserved", "empty"],
)
def test_context_that_cannot_be_bound_is_refused_before_anything_is_made(context: dict[str, str], says: str) -> None:
    with pytest.raises(EncryptionError, match=says):
        encrypt_bytes(b"x", key=KEY, context=context)


def test_longest_context_makes_the_round_trip() -> None:
    context = {"a": "x" * (65535 - 2 - 2 - 1 - 2)}
    assert decrypt_bytes(encrypt_bytes(b"x", key=KEY, context=context), key=KEY, context=context) == b"x"


def test_check_context_returns_what_it_checked() -> None:
    assert check_context({"line": "7"}) == {"line": "7"}


@pytest.mark.parametrize("count", [0, MAX_RECIPIENTS + 1])
def test_header_for_too_few_or_too_many_recipients_is_not_made(count: int) -> None:
    with pytest.raises(EncryptionError, match=f"1 to 64 recipients, not {count}"):
        a_header(count=count)


def test_header_for_the_most_recipients_is_read_back() -> None:
    assert len(parse_header(b"".join([(h := a_header(count=MAX_RECIPIENTS)).body, h.tag])).encrypted_data_keys) == 64


def test_header_cap_holds_for_writing_and_reading() -> None:
    big = EncryptedDataKey("tests", bytes(60000), b"")
    with pytest.raises(EncryptionError, match="header would be longer than 262144 bytes"):
        MessageKey(bytes(32), bytes(32)).header({}, [big] * 5, 16)
    one = struct.pack(">HH60000sH", 0, 60000, bytes(60000), 0)
    with pytest.raises(DecryptionError, match=f"header is longer than {MAX_HEADER} bytes"):
        parse_header(raw_header(count=6, keys=one * 6))


def test_wrapped_key_that_does_not_fit_its_field_is_a_typed_error() -> None:
    with pytest.raises(EncryptionError, match="the wrapped key for tests/x is too long"):
        MessageKey(bytes(32), bytes(32)).header({}, [EncryptedDataKey("tests", b"x", bytes(65536))], 16)


def test_every_shorter_header_is_truncated() -> None:
    whole = raw_header(context=b"\x00\x01\x00\x01a\x00\x01b")
    for length in range(len(whole)):
        with pytest.raises(Truncated):
            parse_header(whole[:length])


def test_data_key_of_another_length_is_refused() -> None:
    with pytest.raises(DecryptionError, match="data key has 16 bytes, not 32"):
        MessageKey(bytes(16), bytes(32))


def test_another_data_key_does_not_match_the_commitment() -> None:
    header = a_header()
    with pytest.raises(DecryptionError, match="does not commit to this key"):
        MessageKey.open(header, b"x" * 32)


def test_files_are_told_apart_by_their_first_bytes() -> None:
    assert looks_like_message(encrypt_bytes(b"x", key=KEY))
    assert not looks_like_message(b"\x80\x04\x95")
    assert not looks_like_message(b"")


def test_no_two_messages_share_an_id_a_key_or_a_ciphertext() -> None:
    messages = [encrypt_bytes(b"the same", key=KEY) for _ in range(50)]
    headers = [parse_header(message) for message in messages]
    assert len({header.message_id for header in headers}) == 50
    assert len({header.commitment for header in headers}) == 50


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33, 160])
def test_geometry_planned_and_read_agree(length: int) -> None:
    header = a_header(frame_length=16)
    plan = Geometry.plan(header, length)
    assert Geometry.of(header, plan.message_length) == plan
    assert plan.plaintext_length == length
    assert (
        len(message_of(bytes(length), KEY, 16))
        == plan.message_length - header.length + len(message_of(b"", KEY, 16)) - FINAL_OVERHEAD
    )


def test_geometry_refuses_sizes_that_hold_no_whole_frames() -> None:
    header = a_header(frame_length=16)
    assert Geometry.of(header, header.length + FINAL_OVERHEAD).plaintext_length == 0
    with pytest.raises(DecryptionError, match="no final frame"):
        Geometry.of(header, header.length + FINAL_OVERHEAD - 1)
    for extra in range(17, 16 + FRAME_OVERHEAD):
        with pytest.raises(DecryptionError, match="fits no whole frames"):
            Geometry.of(header, header.length + FINAL_OVERHEAD + extra)
    assert Geometry.of(header, header.length + FINAL_OVERHEAD + 16 + FRAME_OVERHEAD).frames == 1


def test_geometry_refuses_more_frames_than_there_are_sequence_numbers() -> None:
    header = a_header(frame_length=1)
    assert Geometry.plan(header, MAX_FRAMES).frames == MAX_FRAMES - 1
    with pytest.raises(EncryptionError, match="too large for the format's frame count"):
        Geometry.plan(header, MAX_FRAMES + 1)
    with pytest.raises(DecryptionError, match="more than 4294967294 frames"):
        Geometry.of(header, header.length + FINAL_OVERHEAD + MAX_FRAMES * (1 + FRAME_OVERHEAD))


def test_recipient_is_named_without_its_wrapping_iv() -> None:
    assert KEY.wrap(bytes(32), {}).name == "test"
    assert EncryptedDataKey("aws-kms", b"arn:aws:kms:x", b"").shown == "aws-kms/arn:aws:kms:x"
    assert EncryptedDataKey("p", b"\xff", b"").name == "\\xff"
