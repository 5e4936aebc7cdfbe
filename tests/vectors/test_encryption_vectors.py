"""AWS's message format v2 vectors (2020, Apache-2.0): headers, commitments and frames of four other implementations."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest

from securemfg.encryption.message import MessageKey, parse_header
from securemfg.encryption.stream import decrypt_bytes, decrypt_file
from securemfg.errors import DecryptionError
from tests.parts import SHARED, shared
from tests.unit.encryption.parts import DataKey

NAME = "esdk_commitment_vectors.json"
VECTORS: list[dict[str, Any]] = json.loads((SHARED / NAME).read_text())["tests"] if (SHARED / NAME).exists() else []

pytestmark = pytest.mark.shared


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


OURS = [v for v in VECTORS if suite(v) == 0x0478]
GOOD = [v for v in OURS if v["status"] and framed(v)]
BAD = [v for v in OURS if not v["status"]]
UNFRAMED = [v for v in OURS if v["status"] and not framed(v)]
SIGNED = [v for v in VECTORS if suite(v) == 0x0578]


def test_vectors_are_all_used() -> None:
    shared(NAME)
    assert (len(VECTORS), len(GOOD), len(BAD), len(UNFRAMED), len(SIGNED)) == (46, 17, 3, 3, 23)


@pytest.mark.parametrize("vector", GOOD, ids=number)
def test_message_of_another_implementation_decrypts(vector: dict[str, Any], tmp_path) -> None:
    header = parse_header(raw(vector))
    assert header.message_id == base64.b64decode(vector["message-id"])
    assert header.commitment == base64.b64decode(vector["commitment"])
    assert dict(header.context) == vector["encryption-context"]
    plaintext = "".join(vector["plaintext-frames"]).encode()
    assert decrypt_bytes(raw(vector), key=DataKey(data_key(vector)), context=vector["encryption-context"]) == plaintext
    (tmp_path / "x.esdk").write_bytes(raw(vector))
    decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=DataKey(data_key(vector)))
    assert (tmp_path / "x").read_bytes() == plaintext


@pytest.mark.parametrize("vector", GOOD, ids=number)
def test_derived_commitment_is_the_vectors(vector: dict[str, Any]) -> None:
    header = parse_header(raw(vector))
    assert MessageKey(data_key(vector), header.message_id).commitment == base64.b64decode(vector["commitment"])
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


@pytest.mark.parametrize("vector", UNFRAMED, ids=number)
def test_unframed_message_is_refused_by_its_content_type(vector: dict[str, Any]) -> None:
    with pytest.raises(DecryptionError, match=r"content type 1 is not read here: only framed \(2\)"):
        decrypt_bytes(raw(vector), key=DataKey(data_key(vector)))


@pytest.mark.parametrize("vector", SIGNED, ids=number)
def test_signed_message_is_refused_by_its_suite(vector: dict[str, Any]) -> None:
    with pytest.raises(DecryptionError, match="algorithm suite 0x0578 is not read here: only 0x0478"):
        decrypt_bytes(raw(vector), key=DataKey(data_key(vector)))
