"""Run keys: one per writer process and artifact root, wrapping the data keys of everything written there.

The record of a run key is itself a message (plaintext: the 32-byte key) for the configured keys, kept at
`<artifact root>/.securemfg/keys/<id>.esdk`. Rewrapping rewrites records only; artifacts and their
digests stay.
Exit without securemfg: open the record with any AWS Encryption SDK, then use its plaintext in a raw-AES keyring with
namespace `securemfg-run` and the record's id as name.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from securemfg.encryption.keys import Key, RawAesKey
from securemfg.encryption.message import (
    FRAME_LENGTH,
    IV_LENGTH,
    KEY_LENGTH,
    TAG_LENGTH,
    Context,
    EncryptedDataKey,
    Geometry,
    header_length,
    parse_header,
)
from securemfg.encryption.records import MAX_RECORD, record_path
from securemfg.encryption.stream import decrypt_parsed, encrypt_bytes
from securemfg.errors import DecryptionError, EncryptionError, KeyUnavailable

RUN_PROVIDER: Final = "securemfg-run"
PURPOSE: Final = "securemfg:purpose"
DEPTH: Final = "securemfg:depth"  # 1: the message holds the key itself; n: it holds the message of depth n - 1
GROUP: Final = "securemfg:group"  # whose keys this layer is for: `default`, or an asset's name in the settings
VERSION: Final = "securemfg:version"  # 1, and one more with each rewrap
_DEPTHS: Final = frozenset(str(depth) for depth in range(1, 17))
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
MAX_WRAPS: Final = 1 << 31  # random 96-bit IVs under one key stay well below 2^32 (NIST SP 800-38D, 8.3)

# By name in the settings (`default`, or an asset's). Within a group any key will do; one of every group is needed.
KeyGroups: TypeAlias = Mapping[str, Sequence[Key]]


class RunKey(RawAesKey):
    """A key of one process for one artifact root. `binding` (kind and root id) is in its record's context."""

    def __init__(
        self, key_id: str, key: bytes, binding: Context, *, groups: tuple[str, ...] = (), version: int = 1
    ) -> None:
        super().__init__(RUN_PROVIDER, key_id, key)
        self.key_id = key_id
        self.binding = dict(binding)
        self.groups = groups  # the names of the key groups that are needed to open its record
        self.version = version  # of its record
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


def create_run_key(groups: KeyGroups, binding: Context) -> tuple[RunKey, bytes]:
    """A new run key and its record. Within a group any key opens it; one of every group is needed.

    Several groups (assets with different keys) are nested: the innermost message holds the run key and each further
    one holds the message before. Raises KeyUnavailable, EncryptionError.
    """
    key_id, key = secrets.token_hex(16), os.urandom(KEY_LENGTH)
    run_key = RunKey(key_id, key, binding, groups=tuple(groups))
    return run_key, _record(run_key, key, groups)


def _record(run_key: RunKey, key: bytes, groups: KeyGroups) -> bytes:
    if not groups:  # nesting nothing would leave the key itself as its record
        raise KeyUnavailable("no key was given for the run key: name at least one")
    if len(groups) > len(_DEPTHS):
        raise EncryptionError(f"a run key is nested for at most {len(_DEPTHS)} different keys, not {len(groups)}")
    context = {**_record_context(run_key.key_id, run_key.binding), VERSION: str(run_key.version)}
    record = key
    for depth, (name, keys) in enumerate(groups.items(), start=1):
        record = encrypt_bytes(record, key=keys, context={**context, DEPTH: str(depth), GROUP: name})
    if len(record) > MAX_RECORD:  # refused now, not when it is needed
        raise EncryptionError(f"the run key's record would be longer than {MAX_RECORD} bytes: fewer recipients")
    return record


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRecord:
    """A record and what it took to open it."""

    run_key: RunKey
    recipients: tuple[tuple[str, ...], ...]  # of each layer, as `EncryptedDataKey.shown`; the innermost first
    key: bytes = field(repr=False)


def open_record(record: bytes, key_id: str, keys: Sequence[Key], binding: Context) -> OpenedRecord:
    """Open a record, which must be bound to `key_id` and `binding`. Raises DecryptionError."""
    if len(record) > MAX_RECORD:
        raise DecryptionError(f"the record of run key {key_id} is longer than {MAX_RECORD} bytes")
    expected = _record_context(key_id, binding)
    header = parse_header(record)
    context = header.context
    depth, version = context.get(DEPTH, ""), context.get(VERSION, "")
    if depth not in _DEPTHS:
        raise DecryptionError(f"the record of run key {key_id} does not say how deep it is nested")
    if not _VERSION.fullmatch(version):
        raise DecryptionError(f"the record of run key {key_id} does not say which version it is")
    groups: list[str] = []
    recipients: list[tuple[str, ...]] = []
    for level in range(int(depth), 0, -1):
        if level < int(depth):
            header = parse_header(record)
        groups.append(header.context.get(GROUP, ""))
        recipients.append(tuple(edk.shown for edk in header.encrypted_data_keys))
        record = decrypt_parsed(record, header, keys, {**expected, DEPTH: str(level), VERSION: version})
    run_key = RunKey(key_id, record, binding, groups=tuple(reversed(groups)), version=int(version))
    return OpenedRecord(run_key=run_key, recipients=tuple(reversed(recipients)), key=record)


def open_run_key(record: bytes, key_id: str, keys: Sequence[Key], binding: Context) -> RunKey:
    """The run key of `record`, which must be bound to `key_id` and `binding`. Raises DecryptionError."""
    return open_record(record, key_id, keys, binding).run_key


def rewrap(opened: OpenedRecord, groups: KeyGroups) -> bytes:
    """A record of the same run key for other recipients, one version higher. What it wraps stays as it is.

    It takes the key from nobody who has opened the record before. Raises KeyUnavailable, EncryptionError.
    """
    old = opened.run_key
    following = RunKey(old.key_id, opened.key, old.binding, groups=tuple(groups), version=old.version + 1)
    return _record(following, opened.key, groups)


def is_for(opened: OpenedRecord, groups: KeyGroups) -> bool:
    """Whether a record is for just these keys already, layer by layer. A key that has no `recipient` never is."""
    if opened.run_key.groups != tuple(groups):
        return False
    wanted = [sorted(str(getattr(key, "recipient", None)) for key in keys) for keys in groups.values()]
    return wanted == [sorted(layer) for layer in opened.recipients]


def run_key_ids(header_bytes: bytes) -> tuple[str, ...]:
    """The ids of the run keys that a message's header names. Raises DecryptionError."""
    header = parse_header(header_bytes)
    return tuple(edk.name for edk in header.encrypted_data_keys if edk.provider == RUN_PROVIDER)


def plaintext_size(stored: int, context: Context) -> int | None:
    """Bytes of plaintext in an artifact of `stored` bytes bound to `context`, or None when it can be none of ours.

    The overhead of a message for one run key is known without reading it: suite 0x0478, one recipient, 1 MiB frames.
    """
    edk = EncryptedDataKey(RUN_PROVIDER, bytes(32 + 8 + IV_LENGTH), bytes(KEY_LENGTH + TAG_LENGTH))
    try:
        return Geometry.fitting(header_length(context, [edk]), FRAME_LENGTH, stored).plaintext_length
    except EncryptionError:
        return None
