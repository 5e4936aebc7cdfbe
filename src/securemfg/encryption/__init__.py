"""Client-side encryption in the AWS Encryption SDK message format v2: files, keys, run keys.

    encrypt_file(source, target, key=...)    decrypt_file(source, target, key=...)    inspect_file(path)

The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from securemfg.encryption.keys import Key, LocalKey, OpeningKey, RawAesKey, create_local_key, open_key
    from securemfg.encryption.message import Context, EncryptedDataKey, Header
    from securemfg.encryption.pipes import EncryptingReader, decrypt_stream, encrypt_stream
    from securemfg.encryption.ranges import open_message, open_range, reencrypt_file
    from securemfg.encryption.stream import (
        Message,
        decrypt_bytes,
        decrypt_file,
        encrypt_bytes,
        encrypt_file,
        inspect_file,
        verify_file,
    )

_HOMES = {
    "Key": "keys",
    "LocalKey": "keys",
    "OpeningKey": "keys",
    "RawAesKey": "keys",
    "create_local_key": "keys",
    "open_key": "keys",
    "Context": "message",
    "EncryptingReader": "pipes",
    "EncryptedDataKey": "message",
    "Header": "message",
    "Message": "stream",
    "decrypt_bytes": "stream",
    "decrypt_file": "stream",
    "decrypt_stream": "pipes",
    "encrypt_bytes": "stream",
    "encrypt_file": "stream",
    "encrypt_stream": "pipes",
    "inspect_file": "stream",
    "open_message": "ranges",
    "open_range": "ranges",
    "reencrypt_file": "ranges",
    "verify_file": "stream",
}

__all__ = [
    "Context",
    "EncryptedDataKey",
    "EncryptingReader",
    "Header",
    "Key",
    "LocalKey",
    "Message",
    "OpeningKey",
    "RawAesKey",
    "create_local_key",
    "decrypt_bytes",
    "decrypt_file",
    "decrypt_stream",
    "encrypt_bytes",
    "encrypt_file",
    "encrypt_stream",
    "inspect_file",
    "open_key",
    "open_message",
    "open_range",
    "reencrypt_file",
    "verify_file",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
