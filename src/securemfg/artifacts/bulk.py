"""Work over every artifact of a store: verify, rewrap, reencrypt, encrypt, download. On any executor, and resumable.

    run(Job(verb=Verb.VERIFY, uri="s3://plant/mlruns", rules=...), executor=...) -> Summary

Each stored file is one piece of work; pieces share nothing, so threads, processes and a Dask cluster do them alike
(decision 0006). What is done is noted as it is done: a second run of the same job goes on where the first one stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Self

from securemfg.artifacts.location import Root
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.stores import Stored, open_store
from securemfg.context import Emit
from securemfg.encryption.fate import Fate
from securemfg.encryption.records import FOLDER, RECORDS
from securemfg.errors import ConfigError, EncryptionError, SecureMfgError

_AHEAD: Final = 4  # pieces handed to the executor for each of its workers, so that none waits
NO_RECORD: Final = "no record of a run key"


class Verb(StrEnum):
    VERIFY = "verify"
    REWRAP = "rewrap"
    REENCRYPT = "reencrypt"
    ENCRYPT = "encrypt"
    DOWNLOAD = "download"
    SHARE = "share"


class State(StrEnum):
    DONE = "done"
    SKIPPED = "skipped"  # nothing to do there
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done, in a form that another process can be handed.

    `rules` is called where the work is done and gives the settings' keys and rules there: no key travels.
    """

    verb: Verb
    uri: str
    rules: Callable[[], Protection]
    root: tuple[str, str] | None = None  # kind and id, for a place whose address has none
    assets: tuple[str, ...] = ()  # encrypt: whose keys; reencrypt and rewrap keep each run key's own groups
    target: Path | None = None  # download, share: the folder
    recipients: tuple[str, ...] = ()  # share: the keys that the copy is for
    everything: bool = False  # rewrap: also what is for the right keys already
    keep_versions: bool = False  # leave what a bucket keeps of the old bytes
    retired: frozenset[str] = frozenset()  # reencrypt: the run keys that were there before

    @property
    def identity(self) -> dict[str, object]:
        """What makes two runs the same job."""
        return {
            "verb": self.verb.value,
            "uri": self.uri,
            "root": list(self.root) if self.root else None,
            "assets": list(self.assets),
            "target": str(self.target) if self.target else None,
            "recipients": list(self.recipients),
            "everything": self.everything,
        }

    def located(self, whole: str) -> tuple[Root, str] | None:
        """The root and path of an address in the store, or None for what belongs to no run, model or trace."""
        from securemfg.artifacts.location import locate

        if self.root is not None:
            uri = self.uri.rstrip("/")
            return Root(uri, *self.root), whole.removeprefix(uri).strip("/")
        found = locate(whole)
        return (found.root, found.path) if found is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one stored file."""

    address: str
    state: State
    reason: str = ""
    kind: str = "artifact"  # or run-key
    size: int = 0  # bytes of plaintext
    key: str = ""  # the run key's id
    fates: tuple[Fate, ...] = ()  # old versions that were destroyed, or could not be


@dataclass(kw_only=True)
class Summary:
    """Counts, and everything that did not go well."""

    verb: Verb
    uri: str
    done: int = 0
    skipped: int = 0
    earlier: int = 0  # done by a run before this one
    bytes: int = 0  # of plaintext
    failed: list[Outcome] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)  # why files were skipped
    remaining: list[Fate] = field(default_factory=list)  # old versions that are still there

    def add(self, outcome: Outcome) -> None:
        if outcome.state is State.DONE:
            self.done += 1
            self.bytes += outcome.size
        elif outcome.state is State.SKIPPED:
            self.skipped += 1
            self.reasons[outcome.reason] += 1
        else:
            self.failed.append(outcome)
        self.remaining += [fate for fate in outcome.fates if fate.state != "done"]


class JobLog:
    """What of a job is done, kept in the home until all of it is. One process at a time."""

    def __init__(self, home: Path, job: Job) -> None:
        name = hashlib.sha256(json.dumps(job.identity, sort_keys=True).encode()).hexdigest()[:16]
        self.path = home / "bulk" / f"{job.verb}-{name}.jsonl"
        self._job = job
        self._fd = -1
        self.done: set[str] = set()
        self.retired: frozenset[str] | None = None  # as the first run found them

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EncryptionError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise ConfigError(
                f"the same job is running already: {self._job.verb} {self._job.uri}; wait for it, or stop it and run "
                "it again: it goes on where it was"
            ) from None
        self._load()
        return self

    def _load(self) -> None:
        with open(self.path, "rb") as file:
            lines = file.read().split(b"\n")[:-1]  # a line that was cut off was not finished
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if "done" in entry:
                    self.done.add(str(entry["done"]))
                elif "retired" in entry:
                    self.retired = frozenset(str(one) for one in entry["retired"])

    @property
    def resumed(self) -> bool:
        return bool(self.done)

    def begin(self, retired: frozenset[str]) -> frozenset[str]:
        """The run keys to retire: those of the first run of this job, or now `retired`."""
        if self.retired is None:
            self.retired = retired
            self._append({"retired": sorted(retired), **self._job.identity})
        return self.retired

    def note(self, address: str) -> None:
        self._append({"done": address})

    def _append(self, entry: dict[str, object]) -> None:
        os.write(self._fd, json.dumps(entry).encode() + b"\n")

    def finished(self) -> None:
        """All of it is done: the next run begins anew."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def records_in(files: Iterable[Stored]) -> frozenset[str]:
    """The ids of the run keys whose records are among `files`."""
    return frozenset(key for one in files if (key := record_id(one.address)) is not None)


def record_id(address: str) -> str | None:
    """The id of the run key whose record lies at `address`, if one does."""
    folder, _, name = address.rpartition("/")
    if not folder.endswith(f"/{RECORDS}") or not name.endswith(".esdk"):
        return None
    return name.removesuffix(".esdk")


def is_ours(address: str) -> bool:
    """Whether `address` lies in a folder that holds records, not artifacts."""
    return f"/{FOLDER}/" in address


def run(
    job: Job,
    *,
    emit: Emit,
    log: JobLog | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    begun: Callable[[int, int], None] = lambda _files, _bytes: None,
    watch: Callable[[Stored, Outcome], None] = lambda _stored, _outcome: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Summary:
    """Do `job` over every file of its store. `executor` is any `concurrent.futures.Executor`; threads without one.

    `begun` is told how many files and bytes there are; `watch` each outcome as it comes, in any order. A file that
    fails does not stop the others. Once `stopped` says so, what is in hand is finished and no more
    begun. Raises EncryptionError when the store cannot be listed.
    """
    from securemfg.artifacts.work import perform

    store = open_store(job.uri)
    files = list(store.files())
    summary = Summary(verb=job.verb, uri=store.uri)
    if job.verb is Verb.REENCRYPT:
        there = records_in(files)
        job = replace(job, retired=there if log is None else log.begin(there))
    known = log.done if log is not None else set()
    waiting = [one for one in files if one.address not in known]
    summary.earlier = len(files) - len(waiting)
    begun(len(waiting), sum(one.size for one in waiting))
    named = {"root": ":".join(job.root)} if job.root is not None else {}  # what binds these files was said, not found
    started = {"verb": job.verb.value, "files": len(waiting), **named}
    emit("bulk.started", resource=store.uri, kind="store", detail=started)
    count = workers or _workers(store.place(store.uri) is not None)
    own = ThreadPoolExecutor(count, thread_name_prefix="securemfg-bulk") if executor is None else None
    try:
        for stored, outcome in _done(perform, job, waiting, executor or own, stopped, ahead=count * _AHEAD):
            summary.add(outcome)
            _tell(emit, job, outcome)
            if log is not None and outcome.state is not State.FAILED:
                log.note(stored.address)
            watch(stored, outcome)
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)
        emit(
            "bulk.finished",
            resource=store.uri,
            kind="store",
            outcome="failure" if summary.failed else "success",
            detail={
                "verb": job.verb.value,
                "done": summary.done,
                "skipped": summary.skipped,
                "failed": len(summary.failed),
            },
        )
    if log is not None and not summary.failed and not stopped():
        log.finished()
    return summary


def _workers(local: bool) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(4 if local else 8, cores)  # disks and buckets are waited for


def _done(
    perform: Callable[[Job, Stored], Outcome],
    job: Job,
    files: list[Stored],
    executor: Executor | None,
    stopped: Callable[[], bool],
    *,
    ahead: int,
) -> Iterator[tuple[Stored, Outcome]]:
    """Every file with its outcome, as they come. At most `ahead` are handed out at a time."""
    assert executor is not None
    coming: dict[Future[Outcome], Stored] = {}
    ready: SimpleQueue[Future[Outcome]] = SimpleQueue()  # `wait` would lock every future in hand, for each one
    todo = itertools.takewhile(lambda _: not stopped(), files)
    try:
        while True:
            for stored in todo:
                if job.verb is Verb.REWRAP and record_id(stored.address) is None:  # not worth a worker
                    yield stored, Outcome(address=stored.address, state=State.SKIPPED, reason=NO_RECORD)
                    continue
                future = _submitted(executor, perform, job, stored)
                coming[future] = stored
                future.add_done_callback(ready.put)
                if len(coming) >= ahead:
                    break
            if not coming:
                return
            future = ready.get()
            stored = coming.pop(future)
            yield stored, _outcome(future, stored)
    finally:
        for future in coming:
            future.cancel()


def _submitted(
    executor: Executor, perform: Callable[[Job, Stored], Outcome], job: Job, stored: Stored
) -> Future[Outcome]:
    try:
        return executor.submit(perform, job, stored)
    except Exception as error:  # noqa: BLE001 - a pool whose worker died takes nothing more: each file left says so
        broken: Future[Outcome] = Future()
        broken.set_exception(error)
        return broken


def _outcome(future: Future[Outcome], stored: Stored) -> Outcome:
    try:
        return future.result()
    except SecureMfgError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - a worker that died, or a cluster's own errors: the others go on
        reason = f"the worker that had it failed: {type(error).__name__}: {error}; run the job again"
    return Outcome(address=stored.address, state=State.FAILED, reason=reason)


_EVENTS: Final = {
    Verb.VERIFY: "artifact.verified",
    Verb.REWRAP: "key.rewrapped",
    Verb.REENCRYPT: "artifact.reencrypted",
    Verb.ENCRYPT: "artifact.encrypted",
    Verb.DOWNLOAD: "artifact.decrypted",
    Verb.SHARE: "artifact.shared",
}


def _tell(emit: Emit, job: Job, outcome: Outcome) -> None:
    if outcome.state is State.SKIPPED:
        return
    failed = outcome.state is State.FAILED
    emit(
        "artifact.refused" if failed else _EVENTS[job.verb],
        resource=outcome.address,
        kind=outcome.kind,
        outcome="denied" if failed else "success",
        reason=outcome.reason or None,
        detail={"bytes": outcome.size, **({"key": outcome.key} if outcome.key else {})},
    )
