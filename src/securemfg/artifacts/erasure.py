"""Cryptographic erasure: destroy a run's or an asset's keys, and say of every key and copy what is provable.

The ciphertext stays; nobody opens it any more (NIST SP 800-88r1, cryptographic erase; GDPR Art. 17; ISO/IEC 27001
A.8.10). What cannot be proven from here - backups, replicas, whoever unwrapped a key before - is listed as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from securemfg.artifacts.bulk import record_id
from securemfg.artifacts.keyring import KEYRING
from securemfg.artifacts.stores import Store, open_store
from securemfg.artifacts.tombstones import Tombstone, tombstone_path
from securemfg.context import Emit
from securemfg.encryption.erased import Erased, shown
from securemfg.encryption.fate import Fate, State
from securemfg.encryption.keys import DestroyableKey, Key, KeyServices, open_key
from securemfg.encryption.message import parse_header
from securemfg.encryption.records import MAX_RECORD, RECORDS
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, SecureMfgError

if TYPE_CHECKING:
    from securemfg.config import Config
    from securemfg.encryption.configured import ConfiguredKeys


_ELSEWHERE: Final = Fate.not_provable(
    "sealed values in MLflow's database that carry a record of their own",
    "traces, prompts and the registry's texts may tell of this run, under the settings' keys: delete them in MLflow",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Erasure:
    """What became of one key."""

    key: str  # a run key's id, or a key's text
    place: str  # its record's address, or its name in the settings
    recipients: tuple[str, ...]  # of a record: whoever has one of these and a copy of the record opens it
    fates: tuple[Fate, ...]

    @property
    def gone(self) -> bool:
        """Whether nothing that can be reached from here is left, or will be after a date."""
        return not any(fate.state is State.FAILED for fate in self.fates)


# -- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A record that an erasure would destroy."""

    key_id: str
    address: str
    recipients: tuple[str, ...]


def run_targets(uri: str) -> list[Target]:
    """The records below `uri`, with the recipients of their outermost layer. Raises EncryptionError."""
    return list(_targets(open_store(uri)))


def _targets(store: Store) -> Iterator[Target]:
    for one in store.files():
        key_id = record_id(one.address)
        if key_id is not None:
            try:
                header = parse_header(store.read(one.address, MAX_RECORD))
                recipients = tuple(edk.shown for edk in header.encrypted_data_keys)
            except DecryptionError:
                recipients = ("unknown: the record is damaged",)
            yield Target(key_id=key_id, address=one.address, recipients=recipients)


def erase_runs(uri: str, *, emit: Emit, by: str, reason: str, at: datetime | None = None) -> list[Erasure]:
    """Destroy the record of every run key below `uri`, in all versions; a note of it stays in its place.

    What was encrypted with them cannot be read any more, by anyone who has not unwrapped the key before. Raises
    EncryptionError when the store cannot be listed.
    """
    store = open_store(uri)
    return [_erase_record(store, target, emit, by, reason, at or datetime.now(UTC)) for target in _targets(store)]


def _erase_record(store: Store, target: Target, emit: Emit, by: str, reason: str, at: datetime) -> Erasure:
    root = target.address.rpartition(f"/{RECORDS}/")[0]
    fates: list[Fate] = []
    try:
        end = Tombstone.now(target.key_id, at=at, by=by, reason=reason)
        store.write(f"{root}/{tombstone_path(target.key_id)}", end.plain())
        fates += store.destroy(target.address)
        if _is_there(store, target.address):
            fates.append(Fate.failed(target.address, "it can still be read"))
    except EncryptionError as error:
        fates.append(Fate.failed(target.address, str(error)))
    KEYRING.drop(target.key_id)
    fates += [
        Fate.not_provable(
            f"recipient {recipient}", "with a copy of the record from elsewhere it still opens the run key"
        )
        for recipient in target.recipients
    ]
    fates.append(_ELSEWHERE)
    erasure = Erasure(key=target.key_id, place=target.address, recipients=target.recipients, fates=tuple(fates))
    _tell(emit, erasure, "run-key", reason)
    return erasure


def _is_there(store: Store, address: str) -> bool:
    try:
        store.read(address, 1)
    except FileNotFoundError:
        return False
    return True


# -- assets -----------------------------------------------------------------------------------------------------------


def asset_texts(config: Config, asset: str) -> tuple[str, ...]:
    """The keys that are the asset's alone. Raises ConfigError when it has none, or shares one."""
    keys = config.settings.keys
    if asset == "default":
        raise ConfigError("'default' is no asset: its keys protect everything that has no keys of its own")
    if asset not in keys:
        raise ConfigError(
            f"asset {asset!r} has no key of its own in the settings ({config.source or 'no settings file found'}), so "
            "destroying its key would destroy others' too: erase its runs by their place instead"
        )
    texts = _several(keys[asset])
    shared = {name for name, others in keys.items() if name != asset and set(_several(others)) & set(texts)}
    if set(_several(config.default_key)) & set(texts):
        shared.add("default")
    if shared:
        raise ConfigError(
            f"asset {asset!r} shares a key with {', '.join(sorted(shared))} ({config.origin(f'keys.{asset}')}): "
            "destroying it would erase them too; give them keys of their own and 'artifacts rewrap' first"
        )
    return texts


def _several(text: str | tuple[str, ...]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def erase_asset(
    asset: str,
    *,
    config: Config,
    keys: ConfiguredKeys,
    services: KeyServices,
    emit: Emit,
    by: str,
    reason: str,
    days: int = 30,
    at: datetime | None = None,
) -> list[Erasure]:
    """Destroy every key that the settings have for `asset`; KMS waits `days` (7 to 30). Raises ConfigError.

    One that fails does not stop the next: what is left is in the report.
    """
    moment = (at or datetime.now(UTC)).isoformat(timespec="seconds")
    erasures = []
    for text in asset_texts(config, asset):
        recipient, fates = text, []
        try:
            key = open_key(text, folder=config.folder, origin=config.origin(f"keys.{asset}"), services=services)
            recipient = str(getattr(key, "recipient", text))
            fates = _destroy(key, text, days)
        except SecureMfgError as error:
            end = keys.erased.find(text)
            fates = [
                Fate.done(text, str(end))
                if end is not None and text.startswith("local:")
                else Fate.failed(text, str(error))
            ]
        if fates[0].state is not State.FAILED:
            keys.erased.note(
                Erased(
                    text=text, recipient=recipient, name=asset, at=moment, by=by, reason=reason, fate=shown(fates)
                )
            )  # fmt: skip
        erasure = Erasure(key=text, place=f"keys.{asset}", recipients=(), fates=tuple(fates))
        _tell(emit, erasure, "key", reason)
        erasures.append(erasure)
    KEYRING.clear()  # what this process has opened with them
    keys.forget_opened()
    return erasures


def _destroy(key: Key, text: str, days: int) -> list[Fate]:
    if not isinstance(key, DestroyableKey):
        return [Fate.not_provable(text, "this kind of key cannot be destroyed from here")]
    return key.destroy(days=days)


def _tell(emit: Emit, erasure: Erasure, kind: str, reason: str) -> None:
    counts = {state: sum(fate.state is state for fate in erasure.fates) for state in State}
    emit(
        "key.destroyed",
        resource=erasure.key,
        kind=kind,
        outcome="success" if erasure.gone else "failure",
        reason=reason,
        detail={"place": erasure.place, **{state.value.replace(" ", "_"): count for state, count in counts.items()}},
    )
