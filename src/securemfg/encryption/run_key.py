"""Run keys: one per writer process and artifact root, wrapping the data keys of everything written there.

The record of a run key is itself a message (plaintext: the 32-byte key) for the configured keys, kept at
`<artifact root>/.securemfg/keys/<id>.esdk`. Rewrapping rewrites records only; artifacts and their digests stay.
Exit without securemfg: open the record with any AWS Encryption SDK, then use its plaintext in a raw-AES keyring with
namespace `securemfg-run` and the record's id as name.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Sequence
from typing import Final

from securemfg.encryption.keys import Key, RawAesKey
from securemfg.encryption.message import KEY_LENGTH, Context, EncryptedDataKey, parse_header
from securemfg.encryption.stream import decrypt_bytes, encrypt_bytes
from securemfg.errors import DecryptionError, EncryptionError, KeyUnavailable

RUN_PROVIDER: Final = "securemfg-run"
FOLDER: Final = ".securemfg"
RECORDS: Final = f"{FOLDER}/keys"
PURPOSE: Final = "securemfg:purpose"
DEPTH: Final = "securemfg:depth"  # 1: the message holds the key itself; n: it holds the message of depth n - 1
_DEPTHS: Final = frozenset(str(depth) for depth in range(1, 17))
_ID: Final = re.compile(r"[0-9a-f]{32}")
MAX_WRAPS: Final = 1 << 31  # random 96-bit IVs under one key stay well below 2^32 (NIST SP 800-38D, 8.3)
MAX_RECORD: Final = 1 << 18  # bytes


def record_path(key_id: str) -> str:
    """Where the record of run key `key_id` lies below its artifact root. Raises DecryptionError for a bad id."""
    if not _ID.fullmatch(key_id):
        raise DecryptionError(f"{key_id[:80]!r} is not the id of a run key")
    return f"{RECORDS}/{key_id}.esdk"


class RunKey(RawAesKey):
    """A key of one process for one artifact root. `binding` (kind and root id) is in its record's context."""

    def __init__(self, key_id: str, key: bytes, binding: Context) -> None:
        super().__init__(RUN_PROVIDER, key_id, key)
        self.key_id = key_id
        self.binding = dict(binding)
        self.pid = os.getpid()
        self._wraps = itertools.count(1)

    @property
    def record(self) -> str:
        return record_path(self.key_id)

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:
        if os.getpid() != self.pid:
            raise KeyUnavailable("a run key is not used across a fork: make one in this process")
        if next(self._wraps) > MAX_WRAPS:
            raise KeyUnavailable(f"run key {self.key_id} has wrapped {MAX_WRAPS} data keys: make another")
        return super().wrap(data_key, context)


def _record_context(key_id: str, binding: Context) -> dict[str, str]:
    return {PURPOSE: "run-key", "securemfg:run-key": key_id, **binding}


def create_run_key(groups: Sequence[Sequence[Key]], binding: Context) -> tuple[RunKey, bytes]:
    """A new run key and its record. Within a group any key opens it; one of every group is needed.

    Several groups (assets with different keys) are nested: the innermost message holds the run key and each further
    one holds the message before. Raises KeyUnavailable, EncryptionError.
    """
    if not groups:  # nesting nothing would leave the key itself as its record
        raise KeyUnavailable("no key was given for the run key: name at least one")
    if len(groups) > len(_DEPTHS):
        raise EncryptionError(f"a run key is nested for at most {len(_DEPTHS)} different keys, not {len(groups)}")
    key_id, key = secrets.token_hex(16), os.urandom(KEY_LENGTH)
    context = _record_context(key_id, binding)
    record = key
    for depth, keys in enumerate(groups, start=1):
        record = encrypt_bytes(record, key=keys, context={**context, DEPTH: str(depth)})
    if len(record) > MAX_RECORD:  # refused now, not when it is needed
        raise EncryptionError(f"the run key's record would be longer than {MAX_RECORD} bytes: fewer recipients")
    return RunKey(key_id, key, binding), record


def open_run_key(record: bytes, key_id: str, keys: Sequence[Key], binding: Context) -> RunKey:
    """The run key of `record`, which must be bound to `key_id` and `binding`. Raises DecryptionError."""
    if len(record) > MAX_RECORD:
        raise DecryptionError(f"the record of run key {key_id} is longer than {MAX_RECORD} bytes")
    expected = _record_context(key_id, binding)
    depth = parse_header(record).context.get(DEPTH, "")
    if depth not in _DEPTHS:
        raise DecryptionError(f"the record of run key {key_id} does not say how deep it is nested")
    for level in range(int(depth), 0, -1):
        record = decrypt_bytes(record, key=keys, context={**expected, DEPTH: str(level)})
    return RunKey(key_id, record, binding)


def run_key_ids(header_bytes: bytes) -> tuple[str, ...]:
    """The ids of the run keys that a message's header names. Raises DecryptionError."""
    header = parse_header(header_bytes)
    return tuple(edk.name for edk in header.encrypted_data_keys if edk.provider == RUN_PROVIDER)
