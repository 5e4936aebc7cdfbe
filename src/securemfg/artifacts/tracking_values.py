"""The values of one tracking store, sealed and opened: with which run key, and where a value lies that is too long.

What has an artifact root (a run, a logged model) is sealed for this process's run key of that root: with the root's
records it is erased. What has none (registry, experiments, data sets) or has it too late (traces: their spans are sent
first) carries the record of one run key of this process: one call of the key's service, however many values.
"""

from __future__ import annotations

import inspect
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from securemfg.artifacts.keyring import KEYRING, RecordStore
from securemfg.artifacts.location import Location, Root, locate
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.sealing import VALUES, Form, Subject, is_sealed, seal, take_apart, unseal, used_path
from securemfg.artifacts.state import STATE
from securemfg.encryption.message import looks_like_message
from securemfg.encryption.records import MAX_RECORD
from securemfg.encryption.run_key import RunKey
from securemfg.encryption.stream import decrypt_bytes, encrypt_bytes
from securemfg.errors import DecryptionError, EncryptionError, KeyUnavailable, SecureMfgError

REDACTED: Final = "<redacted>"
SHOWN: Final = "<sealed>"  # where the value itself is sealed elsewhere
MAX_VALUE: Final = 16 << 20  # bytes of one value
_PATH: Final = re.compile(rf"{re.escape(VALUES)}/[0-9a-f]{{32}}\.esdk")
_MARK: Final = "<sealed: "
_ID: Final = re.compile(r"(?:m-|tr-|d-)?[0-9a-f]{1,40}")
_REASON: Final = 300  # characters of a marked text
_KEPT: Final = 4096  # addresses of runs in memory
_TOLD: Final = 4096  # objects in memory, for events

RootOf: TypeAlias = Callable[[], Root]

# Not a place: the key of values that carry their record. Its records are never stored below a root.
_PROCESS: Final = Root("securemfg:process", "tracking", "process")


class _Carried:
    """Records that travel with values: this process's own by their paths, or the one that a value brought."""

    def __init__(self, brought: bytes = b"") -> None:
        self.records: dict[str, bytes] = {}
        self._brought = brought

    def put_record(self, root: Root, path: str, data: bytes) -> None:  # noqa: ARG002 - it lies below no root
        self.records[path] = data

    def get_record(self, root: Root, path: str) -> bytes:  # noqa: ARG002
        return self._brought or self.records[path]


_CARRIED: Final = _Carried()


class _Told:
    """Of which objects the trail has an event: one each, not one per value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def first(self, *what: str) -> bool:
        with self._lock:
            if what in self._seen:
                return False
            self._seen[what] = None
            while len(self._seen) > _TOLD:
                self._seen.popitem(last=False)
            return True

    def knows(self, *what: str) -> bool:
        with self._lock:
            return what in self._seen

    def clear(self) -> None:
        with self._lock:
            self._seen.clear()


TOLD: Final = _Told()


def _told(subject: Subject) -> str:
    """What the trail may say of an object: its id. A name stands for all that have one."""
    return subject.id if _ID.fullmatch(subject.id) else "named"


class Values:
    """Seals and opens what a tracking store at `tracking_uri` keeps."""

    def __init__(self, tracking_uri: str | None) -> None:
        self.tracking_uri = tracking_uri

    # -- out --------------------------------------------------------------------------------------------------------

    def seal(
        self,
        value: str,
        subject: Subject,
        *,
        root: RootOf | None = None,
        spill: RootOf | None = None,
        most: int | None = None,
    ) -> str:
        """The sealed text of `value`, for the key of `root`, else for one that the text carries.

        Longer than `most` characters, the value goes to an encrypted artifact below `root`, else `spill`. Raises
        EncryptionError, KeyUnavailable; then nothing may be written.
        """
        protection = _protection()
        if root is None:
            key = KEYRING.for_writing(_PROCESS, _CARRIED, protection)
            text = seal(value, subject, key, record=_CARRIED.records[key.record])
            where = spill() if spill is not None and most is not None and len(text) > most else None
        else:
            where = root()
            store = self.records(where)
            key = KEYRING.for_writing(where, store, protection)
            text = seal(value, subject, key)
            if not TOLD.knows("used", key.key_id):  # the key must outlive its artifacts
                note = Location(where, used_path(key.key_id))
                store.put_record(where, note.path, encrypt_bytes(b"", key=key, context=note.binding))
                TOLD.first("used", key.key_id)
        of = _told(subject)
        if subject.id and TOLD.first("sealed", subject.kind, of):
            protection.emit("tracking.sealed", resource=of, kind=subject.kind, detail={"key": key.key_id})
        if most is None or len(text) <= most:
            return text
        if where is None:
            raise EncryptionError(
                f"the {subject} is too long: sealed it takes {len(text)} characters, and MLflow keeps at most {most}; "
                "nothing was written. Shorten it, log it as an artifact, or set artifacts.tracking to 'redact'"
            )
        return self._stored(value, subject, where, protection, most)

    def _stored(self, value: str, subject: Subject, root: Root, protection: Protection, most: int) -> str:
        data = value.encode("utf-8", "surrogatepass")
        if len(data) > MAX_VALUE:
            raise EncryptionError(f"the {subject} is longer than {MAX_VALUE} bytes: log it as an artifact")
        store = self.records(root)
        key = KEYRING.for_writing(root, store, protection)
        location = Location(root, f"{VALUES}/{secrets.token_hex(16)}.esdk")
        text = seal(location.path, subject, key, stored=True)
        if len(text) > most:
            raise EncryptionError(f"the {subject} cannot be sealed: its reference takes more than {most} characters")
        store.put_record(root, location.path, encrypt_bytes(data, key=key, context=location.binding))
        return text

    # -- in ---------------------------------------------------------------------------------------------------------

    def open(self, text: str, subject: Subject, root: RootOf | None = None) -> str:
        """The value of a sealed text that belongs to `subject`. Raises DecryptionError, KeyUnavailable."""
        protection = _protection()
        sealed = take_apart(text)
        if sealed.form is Form.CARRIED:
            key = KEYRING.for_reading(sealed.key_id, _PROCESS, _Carried(sealed.record), protection)
            return unseal(sealed, subject, key)
        if root is None:
            raise DecryptionError(f"it belongs to a run or a model, and this is the {subject}: it was moved")
        where = root()
        store = self.records(where)
        key = KEYRING.for_reading(sealed.key_id, where, store, protection)
        value = unseal(sealed, subject, key)
        return value if sealed.form is Form.ROOTED else self._fetched(value, where, store, key)

    @staticmethod
    def _fetched(path: str, root: Root, store: Records, key: RunKey) -> str:
        if not _PATH.fullmatch(path):
            raise DecryptionError("it does not name a value of ours")
        try:
            message = store.get_small(root, path, MAX_VALUE + MAX_RECORD)
        except SecureMfgError:
            raise
        except Exception as error:  # every store has errors of its own for this
            raise KeyUnavailable(f"{root.uri}/{path} cannot be had: {error}") from error
        if not looks_like_message(message[:8]):
            raise DecryptionError(f"{root.uri}/{path} is not encrypted: someone planted it")
        return decrypt_bytes(message, key=key, context=Location(root, path).binding).decode("utf-8", "surrogatepass")

    # -- where ------------------------------------------------------------------------------------------------------

    def records(self, root: Root) -> Records:
        return Records(root, self.tracking_uri)


class Records(RecordStore):
    """What lies below an artifact root, through our own repository: made when something is asked for."""

    def __init__(self, root: Root, tracking_uri: str | None) -> None:
        self._root = root
        self._tracking_uri = tracking_uri
        self._made: Any = None

    def put_record(self, root: Root, path: str, data: bytes) -> None:
        self._repository().put_record(root, path, data)

    def get_record(self, root: Root, path: str) -> bytes:
        return bytes(self._repository().get_record(root, path))

    def get_small(self, root: Root, path: str, most: int) -> bytes:
        return bytes(self._repository().get_small(root, path, most))

    def _repository(self) -> Any:
        if self._made is None:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            from securemfg.artifacts.repository import EncryptedRepository

            known = inspect.signature(get_artifact_repository).parameters
            more = {"tracking_uri": self._tracking_uri} if "tracking_uri" in known else {}
            made = get_artifact_repository(self._root.uri, **more)
            if not isinstance(made, EncryptedRepository):
                raise EncryptionError(
                    f"MLflow would bypass securemfg for {self._root.uri}: no key can be kept there, so nothing was "
                    "sealed or written"
                )
            self._made = made
        return self._made


def root_at(uri: str | None) -> Root:
    """The artifact root at an address that MLflow gives for a run, model or trace. Raises EncryptionError."""
    location = locate(uri) if uri else None
    if location is None:
        raise EncryptionError(
            f"{uri or 'no address'} belongs to no run, model or trace, so no key can be kept there: nothing was "
            "sealed or written; set artifacts.tracking to 'redact', or use another artifact location"
        )
    return location.root


class Roots:
    """Where runs have their artifacts: asked for once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, str] = OrderedDict()

    def remember(self, run_id: str, uri: str | None) -> None:
        if uri:
            with self._lock:
                self._known[run_id] = uri
                self._known.move_to_end(run_id)
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)

    def of(self, run_id: str, inner: Any) -> RootOf:
        def root() -> Root:
            with self._lock:
                uri = self._known.get(run_id)
            if uri is None:
                uri = inner.get_run(run_id).info.artifact_uri
                self.remember(run_id, uri)
            return root_at(uri)

        return root


ROOTS: Final = Roots()


def _protection() -> Protection:
    protection = STATE.protection
    if protection is None:
        raise EncryptionError("encryption was switched off while a value was on its way: nothing was written")
    return protection


def is_marked(text: object) -> bool:
    """Whether a text says why a sealed value could not be opened."""
    return isinstance(text, str) and text.startswith(_MARK)


class Opening:
    """One read: what could not be opened once is not asked for again, and the trail gets one event for an object."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self._failed: dict[tuple[str, str], str] = {}

    def text(self, text: Any, subject: Subject, root: RootOf | None = None) -> Any:
        """`text` opened if it is sealed; a text that says why when it cannot be. Never raises."""
        if not is_sealed(text):
            return text
        key_id = ""
        try:
            key_id = take_apart(text).key_id
            known = self._failed.get((subject.id, key_id))
            return known if known is not None else self.values.open(text, subject, root)
        except Exception as error:  # noqa: BLE001 - reading goes on, whatever a store or a key's service says
            head, _, why = str(error).partition(" cannot be had: ")  # not where: why
            said = f"{_MARK}{why or head}"[:_REASON] + ">"
            if isinstance(error, KeyUnavailable):
                self._failed[subject.id, key_id] = said
            protection = STATE.protection
            of = _told(subject)
            if protection is not None and TOLD.first("refused", subject.kind, of, key_id):
                reason = f"a sealed {subject.kind} cannot be opened: {error}"[:_REASON]
                protection.emit("artifact.refused", resource=of, kind="tracking", outcome="failure", reason=reason)
            return said
