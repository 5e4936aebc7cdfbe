"""What holds for every plaintext, every context and every header."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from securemfg.encryption.keys import RawAesKey
from securemfg.encryption.message import FRAME_OVERHEAD, parse_context, parse_header, serialize_context
from securemfg.encryption.stream import decrypt_bytes, encrypt_bytes
from securemfg.errors import DecryptionError
from tests.unit.encryption.parts import a_key, frames_of, message_of

KEY = a_key()
FRAME = 32
WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda w: not w.startswith("aws-crypto-"))
CONTEXTS = st.dictionaries(WORDS, st.text(st.characters(codec="utf-8"), max_size=40), max_size=8)
BODY = b"melt temperature 211.5, clamp force 900 kN, cycle 42 s; " * 3
MESSAGE = message_of(BODY, KEY, FRAME, {"asset": "press-7"})
START = parse_header(MESSAGE).length

quick = settings(max_examples=150, deadline=None)


@quick
@given(plaintext=st.binary(max_size=4096), context=CONTEXTS)
def test_any_bytes_and_context_make_the_round_trip(plaintext: bytes, context: dict[str, str]) -> None:
    message = encrypt_bytes(plaintext, key=KEY, context=context)
    assert decrypt_bytes(message, key=KEY, context=context) == plaintext
    assert dict(parse_header(message).context) == context


@quick
@given(plaintext=st.binary(max_size=300), frame_length=st.integers(1, 64))
def test_any_frame_length_makes_the_round_trip(plaintext: bytes, frame_length: int) -> None:
    assert decrypt_bytes(message_of(plaintext, KEY, frame_length), key=KEY) == plaintext


@quick
@given(context=CONTEXTS)
def test_context_has_one_serialization(context: dict[str, str]) -> None:
    serialized = serialize_context(context)
    assert parse_context(serialized) == context
    assert serialize_context(dict(reversed(context.items()))) == serialized
    assert serialize_context(parse_context(serialized)) == serialized


@quick
@given(bit=st.integers(0, len(MESSAGE) * 8 - 1))
def test_any_single_flipped_bit_is_refused(bit: int) -> None:
    changed = bytearray(MESSAGE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecryptionError):
        decrypt_bytes(bytes(changed), key=KEY)


@quick
@given(start=st.integers(0, len(MESSAGE)), length=st.integers(1, len(MESSAGE)))
def test_any_cut_is_refused(start: int, length: int) -> None:
    assume(start < len(MESSAGE))
    with pytest.raises(DecryptionError):
        decrypt_bytes(MESSAGE[:start] + MESSAGE[start + length :], key=KEY)


@quick
@given(order=st.lists(st.integers(0, len(BODY) // FRAME), min_size=1, max_size=8))
def test_any_other_order_of_frames_is_refused(order: list[int]) -> None:
    frames = frames_of(MESSAGE, START, FRAME)
    assume(order != list(range(len(frames))))
    with pytest.raises(DecryptionError):
        decrypt_bytes(MESSAGE[:START] + b"".join(frames[index] for index in order), key=KEY)


@quick
@given(at=st.integers(0, len(MESSAGE)), extra=st.binary(min_size=1, max_size=FRAME + FRAME_OVERHEAD))
def test_any_inserted_bytes_are_refused(at: int, extra: bytes) -> None:
    with pytest.raises(DecryptionError):
        decrypt_bytes(MESSAGE[:at] + extra + MESSAGE[at:], key=KEY)


def total(data: bytes) -> None:
    """Parsing ends in a header or a DecryptionError, and takes no memory to speak of."""
    tracemalloc.start()
    try:
        header = parse_header(data)
    except DecryptionError:
        pass
    else:
        assert header.body + header.tag == data[: header.length]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 18


@quick
@given(data=st.binary(max_size=600))
def test_parsing_anything_ends_in_a_header_or_a_typed_error(data: bytes) -> None:
    total(data)
    total(b"\x02\x04\x78" + data)
    total(b"\x02\x05\x78" + data)


@quick
@given(changes=st.lists(st.tuples(st.integers(0, START - 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_parsing_a_broken_header_ends_in_a_header_or_a_typed_error(changes: list[tuple[int, int]]) -> None:
    header = bytearray(MESSAGE[:START])
    for at, value in changes:
        header[at] = value
    total(bytes(header))
    if bytes(header) != MESSAGE[:START]:
        with pytest.raises(DecryptionError):
            decrypt_bytes(bytes(header) + MESSAGE[START:], key=KEY)


@quick
@given(other=st.binary(min_size=32, max_size=32))
def test_no_other_key_of_that_name_opens_a_message(other: bytes) -> None:
    with pytest.raises(DecryptionError):
        decrypt_bytes(MESSAGE, key=RawAesKey(KEY.namespace, KEY.name, other))
