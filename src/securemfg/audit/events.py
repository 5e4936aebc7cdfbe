"""What one event says, and the canonical bytes that are hashed, signed and shipped.

The schema answers what NIST AU-3 asks: what, when, where, source, outcome, identity. Absent fields are left out. The
canonical bytes are UTF-8 JSON with sorted keys and no spaces, made once; the event's hash is SHA-256 over them, and
everything later (segments, shipping, verification) carries those very bytes. OCSF and ECS are views, outside of them.

| field | meaning |
|---|---|
| schema_version | 1 |
| event_id | UUIDv7 (RFC 9562), rising within a writer |
| writer, seq, prev, pid | whose journal, position in it from 0, the previous event's SHA-256 (zeros first), process |
| time | UTC, nanoseconds, RFC 3339 |
| actor | type, id, auth_method, on_behalf_of, role |
| action, outcome, reason | such as step.started; success, failure or denied; why |
| resource | type, id, version, sha256 |
| sensitivity, stage, step, session | of the step; session is the step's id |
| site, line, host, source_ip | where |
| trace_id, span_id, model, input_ref, decision, policy_version, human_verifier | when they apply |
| retention_class | which entry of audit.retention holds |
| redactions | the fields that were hidden, cut or replaced |
| detail | a few chosen scalars |
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import orjson

from securemfg.audit import redaction
from securemfg.context import StepContext
from securemfg.labels import Sensitivity, Stage
from securemfg.settings import retention_class as retention_of

__all__ = ["GENESIS", "SCHEMA_VERSION", "EventIds", "Tags", "body", "decode", "encode", "rfc3339", "uuid7"]

SCHEMA_VERSION: Final = 1
GENESIS: Final = "0" * 64  # `prev` of a writer's first event
MAX_EVENT: Final = 256 * 1024  # bytes; CloudWatch takes 1 MiB, older readers 256 KiB

# What a caller may add beside the arguments of `append`: anything else is left out and named.
OPTIONAL: Final = frozenset(
    {
        "decision",
        "human_verifier",
        "input_ref",
        "model",
        "on_behalf_of",
        "policy_version",
        "resource_sha256",
        "resource_version",
        "source_ip",
        "span_id",
        "trace_id",
    }
)


class Tags(NamedTuple):  # not a frozen dataclass: one is made for every step
    """The part of a step's events that does not change while it runs, prepared once by `Tags.of`."""

    sensitivity: Sensitivity
    fields: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        step: StepContext | None = None,
        *,
        actor: str | None = None,
        actor_type: str = "user",
        auth_method: str | None = None,
        on_behalf_of: str | None = None,
        role: str | None = None,
        sensitivity: Sensitivity | None = None,
        stage: Stage | None = None,
        site: str | None = None,
        line: str | None = None,
        host: str | None = None,
        retention_class: str | None = None,
    ) -> Tags:
        """Tags for `step` (or for events outside any). An argument goes before what the step says.

        `actor` is the bound identity; without one it is the operating system's user, `auth_method` "os". A `role`
        with no auth_method of its own is a claim: "asserted".
        """
        stage = stage or (step.stage if step else None)
        role = role or (step.role if step else None)
        level = sensitivity or (step.sensitivity if step else Sensitivity.INTERNAL)
        method = auth_method or ("asserted" if role else "os" if actor is None else None)
        fields = {
            "actor": _present(
                type=actor_type,
                id=actor or _user(),
                auth_method=method,
                on_behalf_of=on_behalf_of,
                role=role,
            ),
            "host": host or os.uname().nodename,
            "retention_class": retention_class or retention_of(stage),
            "sensitivity": level.value,
            **_present(
                line=line,
                session=step.step_id if step else None,
                site=site,
                stage=stage.value if stage else None,
                step=step.name if step else None,
            ),
        }
        return cls(sensitivity=level, fields=fields)


def _present(**fields: str | None) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value is not None}


def _user() -> str:
    import pwd

    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's arbitrary uid
        return f"uid:{uid}"


def body(
    tags: Tags,
    action: str,
    *,
    resource: str | None = None,
    kind: str | None = None,
    outcome: str = "success",
    reason: str | None = None,
    detail: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An event's fields but for those the journal gives it (id, time, writer, seq, prev), redacted."""
    changed: list[str] = []
    record: dict[str, Any] = {
        **tags.fields,
        "action": action if type(action) is str else str(action),
        "outcome": outcome if type(outcome) is str else str(outcome),
    }
    if resource is not None or kind is not None:
        record["resource"] = about = {}
        if resource is not None:
            text = resource if type(resource) is str else str(resource)
            about["id"] = shown = redaction.scrub_text(text, emails=False)
            if shown is not text and shown != text:
                changed.append("resource.id")
        if kind is not None:
            about["type"] = kind if type(kind) is str else str(kind)
    if reason is not None:
        text = reason if type(reason) is str else str(reason)
        record["reason"] = shown = redaction.scrub_text(text)
        if shown is not text and shown != text:
            changed.append("reason")
    if detail:
        record["detail"] = redaction.scrub_mapping(detail, "detail", changed)
    if fields:
        _add_optional(record, fields, changed)
    if changed:
        record["redactions"] = sorted(set(changed))
    return record


def _add_optional(record: dict[str, Any], fields: Mapping[str, Any], changed: list[str]) -> None:
    for name, value in fields.items():
        if name not in OPTIONAL:
            changed.append(f"{name} (not in the schema)")
        elif value is None:
            continue
        elif name.startswith("resource_"):
            about = record.setdefault("resource", {})
            about[name.removeprefix("resource_")] = redaction.plain(value, name, changed)
        elif name == "on_behalf_of":
            record["actor"] = {**record["actor"], name: redaction.plain(value, name, changed)}
        else:
            record[name] = redaction.plain(value, name, changed)


def encode(record: dict[str, Any]) -> bytes:
    """The canonical bytes. Never refuses an event: what cannot be encoded or is too large is replaced and named."""
    try:
        data = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson's own error is one
        changed: list[str] = list(record.pop("redactions", ()))
        record = redaction.serialisable(record, "", changed)
        record["redactions"] = sorted(set(redaction.serialisable(changed, "redactions", [])))
        data = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    return data if len(data) <= MAX_EVENT else _shortened(record)


def _shortened(record: dict[str, Any]) -> bytes:
    """Too large to ship: every caller's text is cut hard, then whole fields go, and each is named."""
    changed = list(record.get("redactions", ()))
    record = dict(record)
    for name in ("detail", "decision", "model", "reason", "resource", "action"):
        value = record.get(name)
        if value is None or len(orjson.dumps(value)) <= 4096:
            continue
        record[name] = str(value)[:512] if name in {"reason", "action"} else {"cut": "too large"}
        changed.append(f"{name} (cut)")
        record["redactions"] = sorted(set(changed))[:256]
        data = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
        if len(data) <= MAX_EVENT:
            return data
    record["redactions"] = ["* (cut)"]
    kept = ("event_id", "writer", "seq", "prev", "time", "pid", "schema_version", "action", "outcome", "redactions")
    return orjson.dumps({name: record[name] for name in kept if name in record}, option=orjson.OPT_SORT_KEYS)


def decode(data: bytes | memoryview) -> dict[str, Any] | None:
    """The event in `data`, or None when it is none."""
    try:
        record = orjson.loads(data)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def dumps(value: Mapping[str, Any]) -> bytes:
    """Compact JSON for the room's own small files and messages."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


_second: tuple[int, str] = (-1, "")


def rfc3339(nanoseconds: int) -> str:
    """`2026-11-23T08:15:00.000000001Z` for nanoseconds since 1970 (RFC 3339, UTC)."""
    global _second
    second, fraction = divmod(nanoseconds, 1_000_000_000)
    known, text = _second
    if known != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _second = (second, text)
    return f"{text}.{fraction:09d}Z"


class EventIds:
    """UUIDv7s that rise strictly, even when the clock does not (RFC 9562, 6.2 method 2). Not thread-safe."""

    __slots__ = ("_last", "_ms", "_prefix", "_random")

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))  # noqa: S311 - ids must be unique, not unguessable
        self._ms = -1
        self._prefix = ""
        self._last = 0

    def next(self, nanoseconds: int) -> str:
        ms = nanoseconds // 1_000_000
        if ms > self._ms:
            self._ms = ms
            drawn = self._random.getrandbits(73)
            self._prefix = f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{drawn >> 61:03x}-"
            self._last = 1 << 63 | drawn & (1 << 61) - 1  # variant, then a clear bit: room to count into
        else:
            self._last += 0x9E3779B9
        text = f"{self._last:016x}"
        return f"{self._prefix}{text[:4]}-{text[4:]}"


def uuid7() -> str:
    """One UUIDv7 of now (RFC 9562), for a step's id."""
    if not _ids_lock.acquire(blocking=False):  # another thread has it, or this one below a signal handler
        return EventIds().next(time.time_ns())
    try:
        return _ids.next(time.time_ns())
    finally:
        _ids_lock.release()


_ids = EventIds()
_ids_lock = threading.Lock()


def _after_fork() -> None:
    global _ids, _ids_lock
    _ids, _ids_lock = EventIds(), threading.Lock()  # else parent and child would count up the same ids


os.register_at_fork(after_in_child=_after_fork)
