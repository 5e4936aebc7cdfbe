"""AWS's message format v2 vectors (2020, Apache-2.0): headers, commitments and frames of four other implementations."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from securemfg.encryption.layout import PUBLIC_KEY
from securemfg.encryption.message import MessageKey, parse_header
from securemfg.encryption.stream import decrypt_bytes, decrypt_file
from securemfg.errors import DecryptionError
from tests.parts import SHARED, shared
from tests.unit.encryption.parts import DataKey

NAME = "esdk_commitment_vectors.json"
VECTORS: list[dict[str, Any]] = json.loads((SHARED / NAME).read_text())["tests"] if (SHARED / NAME).exists() else []

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not VECTORS, reason=f"needs shared data: {NAME} (looked in {SHARED}; set SHARED_DATA)"),
]


def number(vector: dict[str, Any]) -> str:
    return vector["comment"].split(" ", 1)[0].rstrip(".")


def raw(vector: dict[str, Any]) -> bytes:
    return base64.b64decode(vector["ciphertext"])


def data_key(vector: dict[str, Any]) -> bytes:
    return base64.b64decode(vector["decrypted-dek"])


def suite(vector: dict[str, Any]) -> int:
    return int.from_bytes(raw(vector)[1:3])


def framed(vector: dict[str, Any]) -> bool:
    """The content type stands before frame length (4), commitment (32) and tag (16), the header's last fields."""
    return base64.b64decode(vector["header"])[-53] == 2


GOOD = [v for v in VECTORS if v["status"]]
BAD = [v for v in VECTORS if not v["status"]]


def test_vectors_are_all_judged() -> None:
    shared(NAME)
    kinds = [(framed(v), suite(v)) for v in GOOD]
    assert len(VECTORS) == len(GOOD) + len(BAD) == 46
    assert (len([1 for frames, _ in kinds if frames]), len([1 for frames, _ in kinds if not frames])) == (34, 7)
    assert {found for _, found in kinds} == {0x0478, 0x0578}
    assert len(BAD) == 5


@pytest.mark.parametrize("vector", GOOD, ids=number)
def test_message_of_another_implementation_decrypts(vector: dict[str, Any], tmp_path) -> None:
    header = parse_header(raw(vector))
    assert header.message_id == base64.b64decode(vector["message-id"])
    assert header.commitment == base64.b64decode(vector["commitment"])
    assert {k: v for k, v in header.context.items() if k != PUBLIC_KEY} == {
        k: v for k, v in vector["encryption-context"].items() if k != PUBLIC_KEY
    }
    plaintext = "".join(vector["plaintext-frames"]).encode()
    assert decrypt_bytes(raw(vector), key=DataKey(data_key(vector)), context=vector["encryption-context"]) == plaintext
    (tmp_path / "x.esdk").write_bytes(raw(vector))
    decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=DataKey(data_key(vector)))
    assert (tmp_path / "x").read_bytes() == plaintext


@pytest.mark.parametrize("vector", GOOD, ids=number)
def test_derived_commitment_is_the_vectors(vector: dict[str, Any]) -> None:
    header = parse_header(raw(vector))
    assert MessageKey(data_key(vector), header.message_id, header.suite).commitment == base64.b64decode(
        vector["commitment"]
    )
    with pytest.raises(DecryptionError, match="does not commit to this key"):
        MessageKey.open(header, os.urandom(32))


@pytest.mark.parametrize("vector", BAD, ids=number)
def test_key_that_the_header_does_not_commit_to_is_refused(vector: dict[str, Any], tmp_path) -> None:
    with pytest.raises(DecryptionError, match="the header does not commit to this key"):
        decrypt_bytes(raw(vector), key=DataKey(data_key(vector)))
    (tmp_path / "x.esdk").write_bytes(raw(vector))
    with pytest.raises(DecryptionError, match="the header does not commit to this key"):
        decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=DataKey(data_key(vector)))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("vector", [v for v in GOOD if suite(v) == 0x0578], ids=number)
def test_signed_message_reaches_the_target_only_when_its_signature_holds(vector: dict[str, Any], tmp_path) -> None:
    data = bytearray(raw(vector))
    data[-1] ^= 1  # the signature's last byte; every frame still verifies
    with pytest.raises(DecryptionError, match="signature does not verify"):
        decrypt_bytes(bytes(data), key=DataKey(data_key(vector)))
    (tmp_path / "x.esdk").write_bytes(data)
    with pytest.raises(DecryptionError, match="signature does not verify"):
        decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=DataKey(data_key(vector)))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("vector", GOOD, ids=number)
def test_a_cut_or_longer_message_is_refused(vector: dict[str, Any]) -> None:
    data = raw(vector)
    for changed in (data[:-1], data[:-2], data[: len(data) // 2], data + b"\0", data + b"\0\0"):
        with pytest.raises(DecryptionError):
            decrypt_bytes(changed, key=DataKey(data_key(vector)))
