"""Run keys: their records, what they are bound to, and what they refuse."""

from __future__ import annotations

import os

import pytest

from securemfg.encryption import run_key as room
from securemfg.encryption.message import parse_header
from securemfg.encryption.records import record_path
from securemfg.encryption.run_key import RunKey, create_run_key, is_for, open_record, open_run_key, rewrap, run_key_ids
from securemfg.encryption.stream import decrypt_bytes, encrypt_bytes
from securemfg.errors import DecryptionError, EncryptionError, KeyUnavailable
from tests.unit.encryption.parts import a_key

BINDING = {"securemfg:root": "run/4711"}


def test_artifact_of_a_run_key_opens_through_its_record() -> None:
    recipient = a_key()
    key, record = create_run_key({"default": [recipient]}, BINDING)
    message = encrypt_bytes(b"weights", key=key)
    assert run_key_ids(message) == (key.key_id,)
    again = open_run_key(record, key.key_id, [recipient], BINDING)
    assert decrypt_bytes(message, key=again) == b"weights"
    assert key.record == f".securemfg/keys/{key.key_id}.esdk"


def test_record_does_not_hold_the_key_in_the_clear() -> None:
    recipient = a_key()
    _, record = create_run_key({"default": [recipient]}, BINDING)
    assert decrypt_bytes(record, key=recipient) not in record
    assert dict(parse_header(record).context).items() >= BINDING.items()


def test_any_key_of_a_group_opens_the_record() -> None:
    one, two = a_key("one"), a_key("two")
    key, record = create_run_key({"default": [one, two]}, BINDING)
    for recipient in (one, two):
        assert open_run_key(record, key.key_id, [recipient], BINDING).name == key.name


def test_a_key_of_every_group_is_needed() -> None:
    one, two = a_key("one"), a_key("two")
    key, record = create_run_key({"one": [one], "two": [two]}, BINDING)
    message = encrypt_bytes(b"x", key=key)
    assert decrypt_bytes(message, key=open_run_key(record, key.key_id, [one, two], BINDING)) == b"x"
    for missing in ([one], [two]):
        with pytest.raises(DecryptionError, match="no key at hand opens"):
            open_run_key(record, key.key_id, missing, BINDING)


def test_run_key_for_no_key_at_all_is_refused_and_never_a_plaintext_record() -> None:
    with pytest.raises(KeyUnavailable, match="no key was given"):
        create_run_key({}, BINDING)
    with pytest.raises(KeyUnavailable, match="no key was given"):
        create_run_key({"default": []}, BINDING)


def test_run_key_is_nested_only_as_deep_as_it_can_be_opened() -> None:
    keys = [a_key(str(n)) for n in range(17)]
    key, record = create_run_key({str(n): [one] for n, one in enumerate(keys[:16])}, BINDING)
    assert open_run_key(record, key.key_id, keys, BINDING).key_id == key.key_id
    with pytest.raises(EncryptionError, match="at most 16 different keys, not 17"):
        create_run_key({str(n): [one] for n, one in enumerate(keys)}, BINDING)


def test_record_too_long_to_be_opened_is_refused_when_it_is_made(monkeypatch) -> None:
    monkeypatch.setattr(room, "MAX_RECORD", 100)
    with pytest.raises(EncryptionError, match="longer than 100 bytes"):
        create_run_key({"default": [a_key()]}, BINDING)


@pytest.mark.parametrize("binding", [{"securemfg:root": "run/4712"}, {**BINDING, "securemfg:kind": "model"}])
def test_record_of_another_root_is_refused(binding: dict[str, str]) -> None:
    recipient = a_key()
    key, record = create_run_key({"default": [recipient]}, BINDING)
    with pytest.raises(DecryptionError, match="moved or swapped|not bound to"):
        open_run_key(record, key.key_id, [recipient], binding)


def test_record_of_another_run_key_is_refused() -> None:
    recipient = a_key()
    key, _ = create_run_key({"default": [recipient]}, BINDING)
    _, other = create_run_key({"default": [recipient]}, BINDING)
    with pytest.raises(DecryptionError, match="moved or swapped"):
        open_run_key(other, key.key_id, [recipient], BINDING)


def test_inner_message_is_not_taken_for_its_record() -> None:
    one, two = a_key("one"), a_key("two")
    key, record = create_run_key({"one": [one], "two": [two]}, BINDING)
    inner = decrypt_bytes(record, key=two)
    assert open_run_key(inner, key.key_id, [one], BINDING).key_id == key.key_id  # a message of depth 1 is a record too
    forged = encrypt_bytes(inner, key=two, context={**parse_header(record).context, "securemfg:depth": "1"})
    with pytest.raises(KeyUnavailable, match="bytes, not 32"):
        open_run_key(forged, key.key_id, [two], BINDING)


@pytest.mark.parametrize("depth", [None, "0", "17", "-1", "x", "１"])
def test_record_without_a_depth_is_refused(depth: str | None) -> None:
    recipient = a_key()
    context = {"securemfg:version": "1"} if depth is None else {"securemfg:version": "1", "securemfg:depth": depth}
    with pytest.raises(DecryptionError, match="does not say how deep"):
        open_run_key(encrypt_bytes(bytes(32), key=recipient, context=context), "a" * 32, [recipient], BINDING)


def test_record_that_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(DecryptionError, match="longer than 262144 bytes"):
        open_run_key(bytes((1 << 18) + 1), "a" * 32, [], BINDING)


@pytest.mark.parametrize("key_id", ["", "../../etc/passwd", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n"])
def test_id_from_a_header_never_becomes_a_path(key_id: str) -> None:
    with pytest.raises(DecryptionError, match="is not the id of a run key"):
        record_path(key_id)


def test_run_key_is_not_used_across_a_fork() -> None:
    key, _ = create_run_key({"default": [a_key()]}, BINDING)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            key.wrap(bytes(32), {})
        except KeyUnavailable as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as said:
        assert "not used across a fork" in said.read()
    assert key.wrap(bytes(32), {}).provider == "securemfg-run"


def test_run_key_stops_before_its_ivs_could_repeat(monkeypatch) -> None:
    monkeypatch.setattr(room, "MAX_WRAPS", 2)
    key = RunKey("a" * 32, bytes(32), BINDING)
    key.wrap(bytes(32), {})
    key.wrap(bytes(32), {})
    with pytest.raises(KeyUnavailable, match="has wrapped 2 data keys: make another"):
        key.wrap(bytes(32), {})


def test_ids_of_run_keys_are_read_from_a_header_without_any_key() -> None:
    assert run_key_ids(encrypt_bytes(b"x", key=a_key())) == ()
    with pytest.raises(DecryptionError):
        run_key_ids(b"plaintext")


# -- rewrapping


def test_rewrapped_record_is_for_the_new_keys_alone_and_the_artifacts_stay_as_they_are() -> None:
    old, new = a_key("old"), a_key("new")
    key, record = create_run_key({"default": [old]}, BINDING)
    message = encrypt_bytes(b"weights", key=key)
    again = rewrap(open_record(record, key.key_id, [old], BINDING), {"default": [new]})
    with pytest.raises(DecryptionError, match="no key at hand"):
        open_run_key(again, key.key_id, [old], BINDING)
    opened = open_run_key(again, key.key_id, [new], BINDING)
    assert decrypt_bytes(message, key=opened) == b"weights"
    assert (key.version, opened.version, opened.groups) == (1, 2, ("default",))


def test_every_layer_keeps_its_group_when_it_is_rewrapped() -> None:
    one, two, three = a_key("one"), a_key("two"), a_key("three")
    key, record = create_run_key({"recipes": [one], "feedback": [two]}, BINDING)
    opened = open_record(record, key.key_id, [one, two], BINDING)
    assert opened.run_key.groups == ("recipes", "feedback")
    assert opened.recipients == (("tests/one",), ("tests/two",))
    again = open_record(rewrap(opened, {"recipes": [one], "feedback": [three]}), key.key_id, [one, three], BINDING)
    assert (again.run_key.version, again.recipients) == (2, (("tests/one",), ("tests/three",)))


def test_a_record_knows_whether_it_is_for_just_these_keys() -> None:
    one, two = a_key("one"), a_key("two")
    key, record = create_run_key({"default": [one, two]}, BINDING)
    opened = open_record(record, key.key_id, [one], BINDING)
    assert is_for(opened, {"default": [two, one]})
    assert not is_for(opened, {"default": [one]})
    assert not is_for(opened, {"recipes": [one, two]})
    assert not is_for(opened, {"default": [one, two], "recipes": [one]})


@pytest.mark.parametrize("version", [None, "0", "01", "-1", "x", "9999999999", "１"])
def test_record_without_a_version_is_refused(version: str | None) -> None:
    recipient = a_key()
    context = {"securemfg:depth": "1"} | ({} if version is None else {"securemfg:version": version})
    with pytest.raises(DecryptionError, match="does not say which version"):
        open_run_key(encrypt_bytes(bytes(32), key=recipient, context=context), "a" * 32, [recipient], BINDING)
