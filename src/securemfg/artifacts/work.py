"""One piece of bulk work: what each verb does with one stored file. Runs in whatever process an executor has."""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

from securemfg.artifacts.bulk import NO_RECORD, Job, Outcome, State, Verb, is_ours, record_id
from securemfg.artifacts.keyring import KEYRING
from securemfg.artifacts.location import Location, Root
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.sealing import used_key
from securemfg.artifacts.signed_stores import check_manifest, is_manifest, must_be_signed
from securemfg.artifacts.stores import LocalStore, Records, S3Store, Stored, open_store
from securemfg.artifacts.tombstones import Tombstone, tombstone_path
from securemfg.context import Emit
from securemfg.encryption.message import MAX_HEADER, looks_like_message
from securemfg.encryption.pipes import encrypt_stream
from securemfg.encryption.ranges import reencrypt_file
from securemfg.encryption.run_key import KeyGroups, RunKey, is_for, open_record, rewrap, run_key_ids
from securemfg.encryption.stream import decrypt_file, encrypt_in_place, verify_file
from securemfg.errors import DecryptionError, EncryptionError, SecureMfgError
from securemfg.settings import PlaintextReads

_RECORD: Final = "record of a run key"
_HEADER: Final = 1 << 12  # bytes; nearly every header is shorter
_ELSEWHERE: Final = "belongs to no run, model or trace"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored file, and everything that it takes to work on it."""

    job: Job
    stored: Stored
    rules: Protection
    store: LocalStore | S3Store

    @property
    def address(self) -> str:
        return self.stored.address

    def start(self) -> bytes:
        return start_of(self.store, self.address)

    def location(self) -> Location | None:
        found = self.job.located(self.address)
        return Location(*found) if found is not None else None

    def keys(self, location: Location, header: bytes) -> list[RunKey]:
        """The run keys that a message names. Raises DecryptionError, KeyUnavailable."""
        ids = run_key_ids(header)
        if not ids:
            raise DecryptionError(f"{self.address} was not written for a run key: it is no artifact of securemfg's")
        return [KEYRING.for_reading(key_id, location.root, Records(self.store), self.rules) for key_id in ids]

    def outcome(self, state: State, reason: str = "", **facts: object) -> Outcome:
        return Outcome(address=self.address, state=state, reason=reason, **facts)  # type: ignore[arg-type]


def start_of(store: LocalStore | S3Store, address: str) -> bytes:
    """Enough of a stored file to hold a message's header."""
    start = store.read(address, _HEADER)
    return start if len(start) < _HEADER or not looks_like_message(start) else store.read(address, MAX_HEADER + _HEADER)


@lru_cache(maxsize=8)
def _store(uri: str, _pid: int) -> LocalStore | S3Store:
    return open_store(uri)


def perform(job: Job, stored: Stored) -> Outcome:
    """Do the job's verb on one file. Raises nothing: a failure is an outcome."""
    try:
        piece = Piece(job, stored, job.rules(), _store(job.uri, os.getpid()))
        if job.verb is Verb.REWRAP:
            return _rewrap(piece)
        if is_ours(stored.address):
            return _record(piece) if job.verb is Verb.VERIFY else piece.outcome(State.SKIPPED, _RECORD)
        return _ARTIFACT[job.verb](piece)
    except SecureMfgError as error:
        kind = "run-key" if is_ours(stored.address) else "artifact"
        return Outcome(address=stored.address, state=State.FAILED, reason=str(error), kind=kind)
    except OSError as error:
        return Outcome(address=stored.address, state=State.FAILED, reason=f"{error.strerror or error}")


OnMessage = Callable[[Piece, Location, bytes], Outcome]


def _on_messages(state: State, otherwise: str) -> Callable[[OnMessage], Callable[[Piece], Outcome]]:
    """For what works on messages of a run, model or trace: given the place and the header. Plaintext is `otherwise`."""

    def around(work: OnMessage) -> Callable[[Piece], Outcome]:
        def one(piece: Piece) -> Outcome:
            location = piece.location()
            if location is None:  # before anything of it is fetched
                return piece.outcome(State.SKIPPED, _ELSEWHERE)
            header = piece.start()
            return work(piece, location, header) if looks_like_message(header) else piece.outcome(state, otherwise)

        return one

    return around


# -- verify -----------------------------------------------------------------------------------------------------------


def _record(piece: Piece) -> Outcome:
    """A record opens with the keys at hand, and is bound to where it lies."""
    key_id = record_id(piece.address)
    found = piece.job.located(piece.address)
    if is_manifest(piece.address) and found is not None:
        return _manifest(piece, Location(*found))
    if key_id is None or found is None:
        return piece.outcome(State.SKIPPED, NO_RECORD)
    KEYRING.for_reading(key_id, found[0], Records(piece.store), piece.rules)
    return piece.outcome(State.DONE, kind="run-key", key=key_id)


def _manifest(piece: Piece, location: Location) -> Outcome:
    """A model's manifest is signed by a pinned key, and names exactly the files that are stored."""
    if piece.rules.signatures is None or not piece.rules.signatures.required:
        return piece.outcome(State.SKIPPED, "a manifest, and artifacts.signers is not set")
    check_manifest(piece.store, location, piece.rules)
    return piece.outcome(State.DONE, kind="manifest")


@_on_messages(State.FAILED, "is not encrypted: planted, or older than securemfg")
def _verify(piece: Piece, location: Location, header: bytes) -> Outcome:
    keys = piece.keys(location, header)
    must_be_signed(piece.store, location, piece.rules)
    with piece.store.fetched(piece.address) as stored:
        message = verify_file(stored, key=keys, context=location.binding)
    return piece.outcome(State.DONE, size=message.plaintext_length, key=keys[0].key_id)


# -- download ---------------------------------------------------------------------------------------------------------


def _download(piece: Piece) -> Outcome:
    assert piece.job.target is not None
    relative = piece.address.removeprefix(piece.store.uri).strip("/") or posixpath.basename(piece.address)
    target = Path(os.path.normpath(piece.job.target / relative))
    if piece.job.target not in target.parents:
        raise EncryptionError(f"{piece.address} would be written outside {piece.job.target}: its name was made up")
    header = piece.start()
    if not looks_like_message(header):
        return _plaintext(piece, target)
    location = piece.location()
    if location is None:
        raise DecryptionError(f"{piece.address} is encrypted and {_ELSEWHERE}: name its root with --root KIND:ID")
    keys = piece.keys(location, header)
    target.parent.mkdir(parents=True, exist_ok=True)
    with piece.store.fetched(piece.address) as stored:
        message = decrypt_file(stored, target, key=keys, context=location.binding)
    target.chmod(0o666 & ~_private())
    return piece.outcome(State.DONE, size=message.plaintext_length, key=keys[0].key_id)


def _private() -> int:
    return 0o077  # what was worth encrypting is not left readable for others


def _plaintext(piece: Piece, target: Path) -> Outcome:
    if piece.rules.plaintext_reads is PlaintextReads.REFUSE:
        raise DecryptionError(
            f"{piece.address} is not encrypted, and artifacts.plaintext_reads is 'refuse' "
            f"({piece.rules.plaintext_origin}): planted, or older than securemfg; it was not copied"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with piece.store.fetched(piece.address) as stored:
        shutil.copyfile(stored, target)
    return piece.outcome(State.DONE, "it was plaintext", size=piece.stored.size)


# -- encrypt: a store that is in plaintext today -----------------------------------------------------------------------


def _encrypt(piece: Piece) -> Outcome:
    location = piece.location()
    if location is None:
        return piece.outcome(State.SKIPPED, _ELSEWHERE)
    if looks_like_message(piece.start()):
        return piece.outcome(State.SKIPPED, "encrypted already")
    groups = piece.rules.keys_for(piece.job.assets)
    key = KEYRING.for_writing(location.root, Records(piece.store), piece.rules, groups)
    place = piece.store.place(piece.address)
    if place is not None:
        message = encrypt_in_place(place, key=key, context=location.binding)
        return piece.outcome(State.DONE, size=message.plaintext_length, key=key.key_id)
    assert isinstance(piece.store, S3Store)
    with tempfile.NamedTemporaryFile(prefix="securemfg-") as file:  # the message; the plaintext touches no disk
        message = encrypt_stream(piece.store.body(piece.address), file, key=key, context=location.binding)
        file.flush()
        if message.plaintext_length != piece.stored.size:
            raise EncryptionError(f"{piece.address} changed while it was read: it was left as it was")
        verify_file(file.name, key=key, context=location.binding)  # before the only plaintext is replaced
        return _replaced(piece, Path(file.name), message.plaintext_length, key)


def _replaced(piece: Piece, message: Path, size: int, key: RunKey) -> Outcome:
    """Put a message over a stored file, then destroy the versions of it that a bucket keeps."""
    with message.open("rb") as source:
        piece.store.upload(piece.address, source)
    older = () if piece.job.keep_versions else tuple(piece.store.drop_older(piece.address))
    return piece.outcome(State.DONE, size=size, key=key.key_id, fates=older)


# -- reencrypt: fresh data keys under a fresh run key ------------------------------------------------------------------


@_on_messages(State.SKIPPED, "is not encrypted: 'securemfg artifacts encrypt' does that")
def _reencrypt(piece: Piece, location: Location, header: bytes) -> Outcome:
    if not piece.job.retired.intersection(run_key_ids(header)):
        return piece.outcome(State.SKIPPED, "has a fresh key already")
    keys = piece.keys(location, header)
    groups = _groups_today(piece.rules, keys[0].groups)
    fresh = KEYRING.for_writing(location.root, Records(piece.store), piece.rules, groups, but=piece.job.retired)
    place = piece.store.place(piece.address)
    if place is not None:
        message = reencrypt_file(place, place, key=keys, new_key=fresh, context=location.binding)
        return piece.outcome(State.DONE, size=message.plaintext_length, key=fresh.key_id)
    with piece.store.fetched(piece.address) as stored, tempfile.TemporaryDirectory(prefix="securemfg-") as folder:
        again = Path(folder, "message")
        message = reencrypt_file(stored, again, key=keys, new_key=fresh, context=location.binding, durable=False)
        return _replaced(piece, again, message.plaintext_length, fresh)


def _groups_today(rules: Protection, names: tuple[str, ...]) -> KeyGroups:
    """The keys that the settings have today for the groups a run key was made for."""
    return dict(rules.group(name) for name in names) if names else rules.keys_for(())


# -- rewrap -----------------------------------------------------------------------------------------------------------


def _rewrap(piece: Piece) -> Outcome:
    """Write a run key's record anew for the keys that its groups have today. The artifacts stay as they are."""
    key_id = record_id(piece.address)
    found = piece.job.located(piece.address)
    if key_id is None or found is None:
        return piece.outcome(State.SKIPPED, NO_RECORD)
    root: Root = found[0]
    record = Records(piece.store).get_record(root, piece.address.removeprefix(root.uri).strip("/"))
    opened = open_record(record, key_id, piece.rules.reading_keys(), root.binding)
    piece.rules.versions.check(opened.run_key)
    groups = _groups_today(piece.rules, opened.run_key.groups)
    if is_for(opened, groups) and not piece.job.everything:
        return piece.outcome(State.SKIPPED, "is for today's keys already", kind="run-key", key=key_id)
    again = rewrap(opened, groups)
    following = open_record(again, key_id, piece.rules.reading_keys(), root.binding)  # before it replaces the old one
    if following.key != opened.key:
        raise EncryptionError(f"the new record of run key {key_id} does not hold the same key: nothing was written")
    piece.store.write(piece.address, again)
    if piece.store.read(piece.address, len(again) + 1) != again:
        raise EncryptionError(f"the new record at {piece.address} does not read back as written")
    piece.rules.versions.check(following.run_key)  # remembered: the old one is refused from here on
    older = () if piece.job.keep_versions else tuple(piece.store.drop_older(piece.address))
    return piece.outcome(State.DONE, kind="run-key", key=key_id, fates=older)


# -- share: a copy for somebody else ----------------------------------------------------------------------------------


@_on_messages(State.FAILED, "is not encrypted: 'securemfg artifacts encrypt' first, or copy it as it is")
def _share(piece: Piece, location: Location, header: bytes) -> Outcome:
    """Encrypt a copy anew, under a run key that is for the given keys alone; the record here gets no recipient."""
    assert piece.job.target is not None
    keys = piece.keys(location, header)
    place = piece.job.target / location.root.id / "artifacts"
    root = Root(str(place), location.root.kind, location.root.id)
    opened = {"shared": tuple(piece.rules.open_key(text) for text in piece.job.recipients)}
    fresh = KEYRING.for_writing(root, Records(LocalStore(place)), piece.rules, opened)
    target = Path(os.path.normpath(place / location.path))
    if place not in target.parents:
        raise EncryptionError(f"{piece.address} would be written outside {place}: its name was made up")
    target.parent.mkdir(parents=True, exist_ok=True)
    with piece.store.fetched(piece.address) as stored:
        message = reencrypt_file(stored, target, key=keys, new_key=fresh, context=location.binding)
    return piece.outcome(State.DONE, size=message.plaintext_length, key=fresh.key_id)


_ARTIFACT: Final[Mapping[Verb, Callable[[Piece], Outcome]]] = {
    Verb.VERIFY: _verify,
    Verb.DOWNLOAD: _download,
    Verb.ENCRYPT: _encrypt,
    Verb.REENCRYPT: _reencrypt,
    Verb.SHARE: _share,
}


# -- afterwards -------------------------------------------------------------------------------------------------------


def retire(job: Job, *, emit: Emit, by: str, at: datetime | None = None) -> tuple[list[str], list[str]]:
    """Destroy the records of `job.retired` that nothing is sealed for any more; (destroyed, still in use).

    Nobody may write to the store meanwhile: a writer keeps its run key in memory. Raises EncryptionError.
    """
    store = open_store(job.uri)
    files = list(store.files())
    used: set[str] = set()
    for one in files:
        sealed_for = used_key(one.address)
        if sealed_for is not None:
            used.add(sealed_for)
        elif not is_ours(one.address):
            start = start_of(store, one.address)
            if looks_like_message(start):
                used.update(run_key_ids(start))
    destroyed: list[str] = []
    for one in files:
        key_id = record_id(one.address)
        if key_id is None or key_id not in job.retired or key_id in used:
            continue
        end = Tombstone.now(key_id, at=at or datetime.now(UTC), by=by, reason="its artifacts were encrypted anew")
        store.write(f"{one.address.rpartition('/.securemfg/')[0]}/{tombstone_path(key_id)}", end.plain())
        store.destroy(one.address)
        destroyed.append(key_id)
        emit("key.destroyed", resource=key_id, kind="run-key", reason="its artifacts were encrypted anew")
    return destroyed, sorted(used & job.retired)
