"""What was seen on the wire, counted, and the events about it.

An event is about one connection: `tls.refused` (outcome denied; in observe, failure, and the connection goes
on) or `tls.exception_used`. The trail may use the network itself: recording an event causes no further event,
and a thread under `quiet()` says each thing once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from securemfg.context import Emit, Scalar
from securemfg.settings import AllowEntry
from securemfg.transport.policy import TlsPolicy

__all__ = [
    "LOCAL",
    "UNPROTECTED",
    "Activation",
    "Connection",
    "endpoint",
    "note_refusal",
    "note_tolerated",
    "note_use",
    "observed",
    "quiet",
    "record",
    "refused_count",
]

LOCAL: Final = "none (local, not protected)"
UNPROTECTED: Final = "none (not protected)"
_MOST: Final = 1024  # distinct connections kept apart; later ones are counted together
_MOST_SAID: Final = 4096  # what one quiet thread remembers having said
_OTHERS: Final = "(others)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """One kind of connection: with whom, how protected, and which side this process was on.

    `version` is `TLSv1.3` and the like, or says that there was none. `port` is None where the library in use
    does not tell (asyncio), and for clients that connected to us.
    """

    host: str
    port: int | None
    version: str
    side: str = "client"


@dataclass(frozen=True, slots=True)
class Activation:
    """A policy, and the trail that hears of it."""

    policy: TlsPolicy
    emit: Emit


class _Thread(threading.local):
    emitting = False
    quiet = 0

    def __init__(self) -> None:
        self.said: set[tuple[str, ...]] = set()


_thread = _Thread()
_lock = threading.Lock()
_seen: dict[Connection, int] = {}
_snapshot: Mapping[Connection, int] | None = None  # of _seen, until the next connection
_refused = 0


def observed() -> Mapping[Connection, int]:
    """A snapshot: every kind of connection seen so far in this process, and how often."""
    global _snapshot
    snapshot = _snapshot
    if snapshot is None:
        with _lock:
            snapshot = _snapshot = MappingProxyType(dict(_seen))
    return snapshot


def refused_count() -> int:
    """How many connections were refused so far in this process."""
    return _refused


def record(connection: Connection) -> None:
    """Count one connection."""
    global _snapshot
    with _lock:
        _snapshot = None
        if connection not in _seen and len(_seen) >= _MOST:
            connection = Connection(host=_OTHERS, port=None, version=connection.version, side=connection.side)
        _seen[connection] = _seen.get(connection, 0) + 1


@contextmanager
def quiet() -> Iterator[None]:
    """In this thread, say the same about the same target only once: for whoever carries the trail away.

    Without it each delivery would cause the next event. Counting goes on as always.
    """
    _thread.quiet += 1
    try:
        yield
    finally:
        _thread.quiet -= 1


def endpoint(host: str, port: int | None) -> str:
    """`host:port`, IPv6 in brackets; `host` alone when the port is not known."""
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return shown if port is None else f"{shown}:{port}"


def note_refusal(activation: Activation, *, host: str, port: int | None, code: str, why: str) -> str:
    """Count and audit a refusal. Returns what to add to its message: empty, or that the trail did not take
    it.

    It never raises: a refusal stays a refusal, whatever becomes of the event.
    """
    global _refused
    with _lock:
        _refused += 1
    try:
        _say(activation.emit, "tls.refused", host, port, outcome="denied", reason=why, detail={"code": code})
    except Exception as error:  # noqa: BLE001 - the trail is anybody's code, and the connection stays refused
        return f" (the audit trail did not take this: {type(error).__name__}: {error})"
    return ""


def note_tolerated(activation: Activation, *, host: str, port: int | None, code: str, why: str) -> None:
    """Audit what enforce would have refused and observe lets pass. Raises what the trail raises."""
    detail: dict[str, Scalar] = {"code": code, "mode": "observe"}
    _say(activation.emit, "tls.refused", host, port, outcome="failure", reason=why, detail=detail)


def note_use(activation: Activation, entry: AllowEntry, *, host: str, port: int | None, version: str) -> None:
    """Audit the use of an exception. Raises what the trail raises: an exception nobody can account for is
    none.
    """
    detail: dict[str, Scalar] = {"entry": entry.host, "version": version, "expires": entry.expires}
    _say(
        activation.emit,
        "tls.exception_used",
        host,
        port,
        outcome="success",
        reason=entry.reason,
        detail=detail,
    )


def _say(
    emit: Emit,
    action: str,
    host: str,
    port: int | None,
    *,
    outcome: str,
    reason: str,
    detail: Mapping[str, Scalar],
) -> None:
    if _thread.emitting:
        return
    resource = endpoint(host, port)
    if _thread.quiet:
        what = (action, resource, outcome, reason)
        if what in _thread.said or len(_thread.said) >= _MOST_SAID:
            return
        _thread.said.add(what)
    _thread.emitting = True
    try:
        emit(action, resource=resource, kind="endpoint", outcome=outcome, reason=reason, detail=detail)
    finally:
        _thread.emitting = False


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    _thread.emitting = False


os.register_at_fork(after_in_child=_after_fork)
