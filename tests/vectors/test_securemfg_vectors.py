"""The project's own vectors: made by a second implementation (`writing`), judged by our reader and by the official SDK."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from securemfg.encryption.frames import seal
from securemfg.encryption.message import FINAL_OVERHEAD, MessageKey, parse_context, parse_header, serialize_context
from securemfg.encryption.records import record_path
from securemfg.encryption.run_key import open_run_key, run_key_ids
from securemfg.encryption.stream import decrypt_bytes, decrypt_file, inspect_file
from securemfg.encryption.vault_transit import VaultTransitKey
from securemfg.errors import DecryptionError
from tests.vectors import generate
from tests.vectors.official import client, keyring, needed
from tests.vectors.reading import PLACE, VECTORS, is_plaintext, key_of, message_of, named

MESSAGES: list[dict[str, Any]] = VECTORS["messages"]
REFUSED: list[dict[str, Any]] = VECTORS["refused"]
RECORDS: dict[str, Any] = VECTORS["records"]

# What our reader says, by the reason that a vector states.
SAYS = {
    "key": "no key at hand opens this message",
    "commitment": "does not commit to this key",
    "header tag": "header was changed: its tag does not verify",
    "frame tag": r"frame \d was changed: its tag does not verify",
    "sequence": "has another sequence number|is not marked as the final one",
    "size": "cut off",
    "context": "the encryption context|context key is not UTF-8",
    "recipients": "the header claims (0|65) recipients",
    "frame length": "frame length",
    "content type": "content type 3 is neither framed",
    "suite": "commit",
    "no message": "not an encrypted message|not a version 2 message",
    "binding": "it was moved or swapped",
    "depth": "does not say how deep it is nested",
    "record version": "does not say which version it is",
}


def test_the_generator_makes_the_committed_file_byte_for_byte() -> None:
    assert generate.document() == PLACE.read_text(encoding="utf-8")


def test_every_reason_for_a_refusal_is_among_the_vectors() -> None:
    found = {vector["reason"] for vector in [*REFUSED, *RECORDS["refused"]]}
    assert found == set(SAYS)
    assert (len(MESSAGES), len(REFUSED), len(RECORDS["opened"]), len(RECORDS["refused"])) == (11, 35, 4, 9)


@pytest.mark.parametrize("stated", VECTORS["contexts"])
def test_context_is_serialized_as_stated(stated: dict[str, Any]) -> None:
    serialized = bytes.fromhex(stated["serialized"])
    assert serialize_context(stated["pairs"]) == serialized
    assert parse_context(serialized) == stated["pairs"]
    assert VaultTransitKey._aad(stated["pairs"]) == stated["transit_associated_data"]


# -- our reader and our writer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(MESSAGES))
def test_our_reader_opens_it_with_each_key(vector: dict[str, Any], tmp_path: Path) -> None:
    message = message_of(vector["message"])
    assert hashlib.sha256(message).hexdigest() == vector["sha256"]
    (tmp_path / "x.esdk").write_bytes(message)
    for name in vector["opened_by"]:
        key = key_of(name, tmp_path)
        assert is_plaintext(decrypt_bytes(message, key=key, context=vector["context"]), vector["plaintext"])
        read = decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=key, context=vector["context"])
        assert is_plaintext((tmp_path / "x").read_bytes(), vector["plaintext"])
        assert (read.context, read.frame_length) == (vector["context"], vector["frame_length"])


@pytest.mark.parametrize("vector", named(MESSAGES))
def test_keys_are_derived_as_stated(vector: dict[str, Any], tmp_path: Path) -> None:
    header = parse_header(message_of(vector["message"]))
    found = header.encrypted_data_keys
    keys = [key_of(name, tmp_path) for name in vector["opened_by"]]
    opened = {key.unwrap(edk, header.context) for key in keys for edk in found[-1:] if key.matches(edk)}
    assert opened == {bytes.fromhex(vector["data_key"])}
    assert header.message_id.hex() == vector["message_id"]
    assert header.commitment.hex() == vector["commitment"]
    assert MessageKey(opened.pop(), header.message_id).commitment == header.commitment


@pytest.mark.parametrize("vector", named(vector for vector in MESSAGES if vector["as_securemfg_writes"]))
def test_our_writer_makes_the_same_bytes_of_the_same_draws(vector: dict[str, Any], tmp_path: Path) -> None:
    message = message_of(vector["message"])
    header = parse_header(message)
    key = MessageKey(bytes.fromhex(vector["data_key"]), header.message_id)
    again = key.header(vector["context"], header.encrypted_data_keys, vector["frame_length"])
    made = again.body + again.tag
    plaintext = decrypt_bytes(message, key=key_of(vector["opened_by"][0], tmp_path))
    parts = [plaintext[at : at + header.frame_length] for at in range(0, len(plaintext), header.frame_length)] or [b""]
    for sequence, part in enumerate(parts, start=1):
        frame = memoryview(bytearray(len(part) + FINAL_OVERHEAD))
        made += frame[: seal(key, sequence, memoryview(part), frame, final=sequence == len(parts))]
    assert made == message


@pytest.mark.parametrize("vector", named(REFUSED))
def test_our_reader_refuses_it_for_the_stated_reason(vector: dict[str, Any], tmp_path: Path) -> None:
    message = message_of(vector["message"])
    key = key_of(vector["key"], tmp_path)
    says = "cut off|is empty" if vector["name"] == "nothing" else SAYS[vector["reason"]]
    with pytest.raises(DecryptionError, match=says):
        decrypt_bytes(message, key=key)
    (tmp_path / "x.esdk").write_bytes(message)
    with pytest.raises(DecryptionError, match=says):
        decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=key)
    assert not (tmp_path / "x").exists()


# -- run keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(RECORDS["opened"]))
def test_record_opens_and_its_run_key_opens_the_artifact(vector: dict[str, Any], tmp_path: Path) -> None:
    stated = VECTORS["keys"][RECORDS["run_key"]]
    keys = [key_of(name, tmp_path) for name in vector["keys"]]
    run_key = open_run_key(message_of(vector["record"]), stated["name"], keys, RECORDS["binding"])
    assert (run_key.groups, run_key.version) == (tuple(vector["groups"]), vector["version"])
    assert RECORDS["path"] == run_key.record == record_path(stated["name"])
    (artifact,) = (one for one in MESSAGES if one["name"] == RECORDS["artifact"])
    message = message_of(artifact["message"])
    assert run_key_ids(message) == (stated["name"],)
    assert is_plaintext(decrypt_bytes(message, key=run_key, context=artifact["context"]), artifact["plaintext"])


@pytest.mark.parametrize("vector", named(RECORDS["refused"]))
def test_record_is_refused_for_the_stated_reason(vector: dict[str, Any], tmp_path: Path) -> None:
    name = VECTORS["keys"][RECORDS["run_key"]]["name"]
    keys = [key_of(name, tmp_path) for name in vector["keys"]]
    with pytest.raises(DecryptionError, match=SAYS[vector["reason"]]):
        open_run_key(message_of(vector["record"]), name, keys, RECORDS["binding"])


# -- the official SDK -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(MESSAGES))
def test_official_sdk_opens_it_with_each_key(vector: dict[str, Any]) -> None:
    needed()
    for name in vector["opened_by"]:
        plaintext, header = client().decrypt(source=message_of(vector["message"]), keyring=keyring(name))
        assert is_plaintext(plaintext, vector["plaintext"])
        assert header.encryption_context == vector["context"]


@pytest.mark.parametrize("vector", named(RECORDS["opened"]))
def test_official_sdk_opens_the_record_layer_by_layer(vector: dict[str, Any]) -> None:
    needed()
    stated = VECTORS["keys"][RECORDS["run_key"]]
    opened = message_of(vector["record"])
    for depth, (group, name) in reversed(list(enumerate(zip(vector["groups"], vector["keys"], strict=True), start=1))):
        opened, header = client().decrypt(source=opened, keyring=keyring(name))
        assert header.encryption_context == {
            **RECORDS["binding"],
            "securemfg:purpose": "run-key",
            "securemfg:run-key": stated["name"],
            "securemfg:version": str(vector["version"]),
            "securemfg:depth": str(depth),
            "securemfg:group": group,
        }
    assert opened.hex() == stated["key"]


@pytest.mark.parametrize("vector", named(vector for vector in REFUSED if vector["sound"]))
def test_what_is_refused_for_a_limit_or_its_suite_alone_is_sound(vector: dict[str, Any], tmp_path: Path) -> None:
    needed()
    lenient = client("FORBID_ENCRYPT_ALLOW_DECRYPT")
    assert lenient.decrypt(source=message_of(vector["message"]), keyring=keyring(vector["key"]))[0] == b"x"


def test_inspection_needs_no_key(tmp_path: Path) -> None:
    several = next(vector for vector in MESSAGES if vector["name"] == "several recipients")
    (tmp_path / "x.esdk").write_bytes(message_of(several["message"]))
    providers = [recipient.partition("/")[0] for recipient in inspect_file(tmp_path / "x.esdk").recipients]
    assert providers == ["aws-kms", "vault-transit", "securemfg-rsa", "securemfg", "securemfg"]
