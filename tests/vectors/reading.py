"""The project's own vectors, as tests and the other implementations' judges need them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from securemfg.encryption.keys import OpeningKey, RawAesKey, open_key

PLACE = Path(__file__).with_name("securemfg_vectors.json")
VECTORS: dict[str, Any] = json.loads(PLACE.read_text(encoding="utf-8"))


def message_of(parts: Iterable[str | dict[str, int]]) -> bytes:
    """A message from its base64 texts and runs of zero bytes."""
    return b"".join(base64.b64decode(part) if isinstance(part, str) else bytes(part["zeros"]) for part in parts)


def is_plaintext(data: bytes, stated: dict[str, Any]) -> bool:
    """Whether `data` is the plaintext that a vector states."""
    return (
        len(data) == stated["length"]
        and hashlib.sha256(data).hexdigest() == stated["sha256"]
        and data.hex() == stated.get("hex", data.hex())
    )


def key_of(name: str, folder: Path) -> OpeningKey:
    """A key of the vectors, as this package opens it; an RSA key lies in `folder` first."""
    stated = VECTORS["keys"][name]
    if stated["kind"] == "aes":
        return RawAesKey(stated["provider"], stated["name"], bytes.fromhex(stated["key"]))
    pem = folder / f"{name}.pem"
    if not pem.exists():
        pem.touch(mode=0o600)
        pem.write_text(stated["pem"])
    key = open_key(f"rsa:{pem}")
    assert isinstance(key, OpeningKey)
    return key


def named(vectors: Iterable[dict[str, Any]]) -> list[Any]:
    """Parameters, one for each vector, called by its name."""
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]
