"""The format on bytes: headers, contexts, geometry."""

from __future__ import annotations

import base64
import dataclasses
import hmac
import struct
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securemfg.encryption import message
from securemfg.encryption.keys import RawAesKey
from securemfg.encryption.message import (
    FINAL_OVERHEAD,
    FRAME_OVERHEAD,
    MAX_FRAME_LENGTH,
    MAX_FRAMES,
    MAX_HEADER,
    MAX_RECIPIENTS,
    SIGNED_SUITE,
    Context,
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
from securemfg.errors import (
    ConfigError,
    CredentialError,
    DecryptionError,
    EncryptionError,
    KeyUnavailable,
    TlsRefused,
)
from tests.unit.encryption.parts import DataKey, a_key, message_of

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
        ({"version": 1}, r"not a version 2 message \(not an encrypted message\)"),  # its second byte is not 0x80
        ({"version": 0x50}, r"not a version 2 message \(not an encrypted message\)"),
        ({"suite": 0x0678}, "algorithm suite 0x0678 is not read in version 2 .*: only those that commit"),
        ({"suite": 0x0178}, "algorithm suite 0x0178 is not read in version 2"),
        ({"suite": 0x0000}, "algorithm suite 0x0000 is not read in version 2"),
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


# -- what a careful reader checks, point by point, where no test above or in tests/fault does ---------------------------


class Broken(RawAesKey):
    """A key that fails in a way of its own choice."""

    def __init__(self, error: Exception) -> None:
        super().__init__("tests", "test", bytes(32))
        self.error = error

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        raise self.error


def sealed(key: MessageKey, parts: list[bytes], iv: bytes | None = None) -> bytes:
    """Frames with these plaintexts, the last one final; with `iv` instead of the sequence number if it is given."""
    frames = b""
    for sequence, part in enumerate(parts, start=1):
        final = sequence == len(parts)
        stored = iv or sequence.to_bytes(12)
        aad = key.frame_aad(sequence, len(part), final=final)
        length = len(part).to_bytes(4) if final else b""
        mark = b"\xff\xff\xff\xff" if final else b""
        frames += mark + sequence.to_bytes(4) + stored + length + key.aead.encrypt(stored, part, aad)
    return frames


def test_point_1_only_suite_0478_in_version_2_is_written() -> None:
    assert encrypt_bytes(b"x", key=KEY)[:3] == b"\x02\x04\x78"
    with pytest.raises(EncryptionError, match="0x0578 is not written: only 0x0478 is"):
        MessageKey(bytes(32), bytes(32), 0x0578).header({}, [RECIPIENT], 16)


def test_point_2_hostile_context_key_makes_no_endless_message() -> None:
    key = b"\xff\xff" + b"a" * 0xFFFF
    with pytest.raises(DecryptionError, match="twice") as refused:
        parse_context(b"\x00\x02" + key + b"\x00\x00" + key + b"\x00\x00")
    assert len(str(refused.value)) < 300


def test_point_3_recipients_are_counted_before_one_is_parsed() -> None:
    whole = raw_header(count=65535)
    with pytest.raises(DecryptionError, match="claims 65535 recipients") as refused:
        parse_header(whole[: whole.index(b"\xff\xff") + 2])
    assert not isinstance(refused.value, Truncated)


@pytest.mark.parametrize(
    "error",
    [
        KeyUnavailable("no answer"),
        DecryptionError("changed"),
        ConfigError("no role id"),
        TlsRefused("TLS 1.2"),
        CredentialError("no token"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_point_3_a_key_that_fails_in_any_way_does_not_stop_the_next(error: Exception) -> None:
    message = encrypt_bytes(b"x", key=KEY)
    assert decrypt_bytes(message, key=[Broken(error), KEY]) == b"x"
    with pytest.raises(DecryptionError, match=f"no key at hand opens this message.*{error}"):
        decrypt_bytes(message, key=Broken(error))


def test_point_4_raw_aes_info_is_name_128_12_iv_and_its_aad_the_serialized_context() -> None:
    secret, data_key, context = b"k" * 32, b"d" * 32, {"z": "ü", "a": "1"}
    edk = RawAesKey("namespace", "näme", secret).wrap(data_key, context)
    assert edk.provider == "namespace"
    assert edk.info[:-12] == "näme".encode() + struct.pack(">II", 128, 12)
    aad = b"\x00\x02\x00\x01a\x00\x011\x00\x01z\x00\x02\xc3\xbc"
    assert AESGCM(secret).decrypt(edk.info[-12:], edk.ciphertext, aad) == data_key
    for info in (edk.info[:-1], edk.info + b"\0", "näme".encode() + struct.pack(">II", 96, 12) + bytes(12)):
        assert not RawAesKey("namespace", "näme", secret).matches(EncryptedDataKey("namespace", info, edk.ciphertext))


@pytest.mark.parametrize("frame_length", [1, MAX_FRAME_LENGTH])
def test_point_5_frame_lengths_at_both_ends_are_read(frame_length: int) -> None:
    assert parse_header(raw_header(frame_length=frame_length)).frame_length == frame_length
    assert decrypt_bytes(message_of(b"xyz", KEY, frame_length), key=KEY) == b"xyz"


def test_point_6_commitment_is_compared_in_constant_time_and_before_the_tag(monkeypatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    header = a_header()
    monkeypatch.setattr(message, "hmac", SimpleNamespace(compare_digest=spy))
    with pytest.raises(DecryptionError, match="does not commit to this key"):
        MessageKey.open(dataclasses.replace(header, commitment=bytes(32), tag=bytes(16)), bytes(32))
    assert compared == [(header.commitment, bytes(32))]
    with pytest.raises(DecryptionError, match="its tag does not verify"):
        MessageKey.open(dataclasses.replace(header, tag=bytes(16)), bytes(32))


def test_point_6_header_tag_covers_the_bytes_as_they_were_read() -> None:
    # the format's own key stands last, as some writers put it: serialized anew, it would stand first
    pairs = b"\x00\x02\x00\x01A\x00\x01x\x00\x0caws-crypto-x\x00\x01y"
    assert serialize_context({"A": "x", "aws-crypto-x": "y"}) == pairs
    unsorted = b"\x00\x02\x00\x01z\x00\x01x\x00\x0caws-crypto-x\x00\x01y"
    assert serialize_context({"z": "x", "aws-crypto-x": "y"}) != unsorted
    key = MessageKey(bytes(32), bytes(32))
    body = raw_header(context=unsorted, frame_length=16)[:-48] + key.commitment
    whole = body + key.aead.encrypt(bytes(12), b"", body) + sealed(key, [b"abc"])
    assert decrypt_bytes(whole, key=DataKey(bytes(32))) == b"abc"


@pytest.mark.parametrize("length", [17, 32, 16 + FRAME_OVERHEAD - 1])
def test_point_7_final_frame_longer_than_a_frame_is_refused_although_its_tag_verifies(length: int) -> None:
    key = MessageKey(bytes(32), bytes(32))
    header = key.header({}, [RECIPIENT], 16)
    start = header.body + header.tag
    assert decrypt_bytes(start + sealed(key, [bytes(16), bytes(16)]), key=DataKey(bytes(32))) == bytes(32)
    with pytest.raises(DecryptionError, match="fits no whole frames"):
        decrypt_bytes(start + sealed(key, [bytes(length)]), key=DataKey(bytes(32)))


def test_point_7_two_final_frames_are_refused_although_their_tags_verify() -> None:
    key = MessageKey(bytes(32), bytes(32))
    header = key.header({}, [RECIPIENT], 16)
    for more in (sealed(key, [bytes(16)]), sealed(key, [b""]), sealed(key, [bytes(16), b""])[16 + FRAME_OVERHEAD :]):
        with pytest.raises(DecryptionError):
            decrypt_bytes(header.body + header.tag + sealed(key, [bytes(16)]) + more, key=DataKey(bytes(32)))


@pytest.mark.parametrize("wrong", ["short", "long"])
def test_point_7_regular_frame_of_another_length_is_refused_although_its_tag_verifies(wrong: str) -> None:
    key = MessageKey(bytes(32), bytes(32))
    header = key.header({}, [RECIPIENT], 16)
    parts = [bytes(15 if wrong == "short" else 17), bytes(16), bytes(3)]
    with pytest.raises(DecryptionError):
        decrypt_bytes(header.body + header.tag + sealed(key, parts), key=DataKey(bytes(32)))


def test_point_7_ciphertext_that_looks_like_a_signatures_length_is_not_taken_for_it() -> None:
    """The end of a signed body is searched from the back: about one message in 400 has such bytes by chance."""
    private = ec.generate_private_key(ec.SECP384R1())
    point = private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    context = serialize_context({"aws-crypto-public-key": base64.b64encode(point).decode()})
    key = MessageKey(bytes(32), bytes(32), SIGNED_SUITE)
    header = raw_header(suite=SIGNED_SUITE, context=context, frame_length=128)[:-48] + key.commitment
    start = header + key.aead.encrypt(bytes(12), b"", header)
    stream = key.aead.encrypt((1).to_bytes(12), bytes(100), b"")[:100]  # the key stream of frame 1
    for _ in range(200):
        expected = 103  # bytes of signature, as most have: every pair then says how much follows it
        after = [(100 - at - 2) + 16 + 2 + expected for at in range(0, 100, 2)]
        ciphertext = b"".join(struct.pack(">H", count) for count in after)
        plaintext = bytes(one ^ other for one, other in zip(stream, ciphertext, strict=True))
        body = start + sealed(key, [plaintext])
        signature = private.sign(body, ec.ECDSA(SHA384()))
        if len(signature) == expected:
            break
    else:
        pytest.fail("no signature had its usual length")
    assert ciphertext in body
    whole = body + struct.pack(">H", len(signature)) + signature
    assert decrypt_bytes(whole, key=DataKey(bytes(32))) == plaintext


def test_point_8_written_iv_is_the_sequence_number_and_the_stored_one_is_read() -> None:
    whole = message_of(bytes(40), KEY, 16)
    at = parse_header(whole).length
    for sequence in (1, 2):
        assert whole[at + 4 : at + 16] == sequence.to_bytes(12)
        at += 16 + FRAME_OVERHEAD
    assert whole[at + 8 : at + 20] == (3).to_bytes(12)
    key = MessageKey(bytes(32), bytes(32))
    header = key.header({}, [RECIPIENT], 16)
    other = header.body + header.tag + sealed(key, [bytes(16), b"abc"], iv=b"any other iv")
    assert decrypt_bytes(other, key=DataKey(bytes(32))) == bytes(16) + b"abc"
