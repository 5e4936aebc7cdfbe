"""The process's credentials: who holds which, one renewal thread for all, and their end (NIST IA-5, AC-12).

A credential is shared by all steps that use it, and revoked when the last of them has left for `linger`, or at `close`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from securemfg.context import Emit, Scalar
from securemfg.credentials.grant import Source, Wanted
from securemfg.credentials.lease import Lease, SharedLease
from securemfg.credentials.threads import start, start_loop
from securemfg.errors import ConfigError, CredentialError, nearest
from securemfg.forking import forget_after_fork
from securemfg.settings import CredentialSettings

__all__ = ["Broker", "Leased"]

_MOST_SLEEP: Final = 60.0  # seconds the renewal thread sleeps at most: a suspended machine's clock may stand still
_Share: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]  # a name and, for STS, the session tags


@dataclass(frozen=True, kw_only=True, slots=True)
class Leased:
    """What became of one named credential in this process, for people and reports."""

    name: str
    source: str  # vault, sts or secrets_manager
    target: str  # path, role ARN or secret name
    state: str  # leased, revoked, dropped, denied, failed, or ending (its revocation failed)
    leased: int  # how often it was granted anew
    renewed: int
    ended: int  # revoked or dropped


@dataclass(kw_only=True, slots=True)
class _Tally:
    source: str
    target: str
    state: str = "failed"
    counts: dict[str, int] = field(default_factory=lambda: {"leased": 0, "renewed": 0, "ended": 0})


class Broker:
    """Leases by name. `sources` makes, per kind of service, the source on first use; `origin` says where a setting
    came from. `linger` is how long a credential outlives its last step; `patience` how long a caller waits for one.
    """

    def __init__(
        self,
        credentials: Mapping[str, CredentialSettings],
        *,
        sources: Mapping[str, Callable[[], Source]],
        emit: Emit,
        linger: timedelta = timedelta(seconds=30),
        patience: timedelta = timedelta(seconds=30),
        origin: Callable[[str], str] = lambda _: "built-in",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._credentials = dict(credentials)
        self._factories = dict(sources)
        self._emit = emit
        self._linger = linger.total_seconds()
        self._patience = patience.total_seconds()
        self._origin = origin
        self._clock = clock
        self._now = now
        self._draw = draw
        self._sources: dict[str, Source] = {}
        self._shares: dict[_Share, SharedLease] = {}
        self._left_at: dict[_Share, float] = {}  # those without a holder
        self._tallies: dict[str, _Tally] = {}
        self._closed = False
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """In a forked child: own locks and thread. Its leases and sources start cold by themselves."""
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._ending: list[threading.Thread] = []

    def define(self, name: str, settings: CredentialSettings) -> None:
        """Make a credential known that the settings do not name, such as an argument's. A known name stays as it is."""
        with self._lock:
            self._credentials.setdefault(name, settings)

    # -- holders

    def acquire(self, name: str, holder: str, tags: Mapping[str, str] | None = None) -> Lease:
        """Lease the credential called `name` for `holder` (a step's id), or share in one that is leased already.

        `tags` become STS session tags beside those of the settings, which win: a step's role is only a claim.
        Raises ConfigError for an unknown name, CredentialDenied or CredentialError when it cannot be had.
        """
        settings = self._credentials.get(name)
        if settings is None:
            raise ConfigError(
                f"no credential is called {name!r} ({self._origin('credentials')}): add it to the settings under "
                f"'credentials'{nearest(name, self._credentials)}"
            )
        wanted = Wanted(
            name=name,
            settings=settings,
            holder=holder,
            tags=dict(tags or {}) if settings.sts is not None else {},
            origin=self._origin(f"credentials.{name}"),
        )
        if wanted.kind not in self._factories:
            raise ConfigError(
                f"credential {name!r} needs the service {wanted.kind!r}, which is not set up ({wanted.origin})"
            )
        key: _Share = (name, tuple(sorted(wanted.tags.items())))
        with self._lock:
            if self._closed:
                raise CredentialError(f"credential {name!r} was asked for after this workflow was closed")
            shared = self._shares.get(key)
            if shared is None:
                shared = self._shares[key] = self._share(wanted)
                self._tallies.setdefault(name, _Tally(source=wanted.kind, target=wanted.target))
            new = holder not in shared.holders
            shared.holders.add(holder)
            self._left_at.pop(key, None)
        lease = Lease(shared, holder, lambda: self._leave(key, holder))
        try:
            lease.credential()
        except BaseException:
            if new:
                self._leave(key, holder)
            raise
        if new:
            self._changed()
        return lease

    def leave(self, holder: str) -> None:
        """`holder` has left: its credentials are revoked after `linger`, unless others use them. No I/O here."""
        with self._lock:
            keys = [key for key, shared in self._shares.items() if holder in shared.holders]
        for key in keys:
            self._leave(key, holder)

    def _leave(self, key: _Share, holder: str) -> None:
        with self._lock:
            shared = self._shares.get(key)
            if shared is None:
                return
            shared.holders.discard(holder)
            if not shared.holders:
                self._left_at.setdefault(key, self._clock() + self._linger)
        self._changed()

    def _share(self, wanted: Wanted) -> SharedLease:
        return SharedLease(
            wanted,
            lambda: self._source(wanted.kind),
            report=self._report,
            changed=self._changed,
            patience=self._patience,
            grace=self._linger,
            clock=self._clock,
            now=self._now,
            draw=self._draw,
        )

    def _source(self, kind: str) -> Source:
        with self._lock:
            source = self._sources.get(kind)
            if source is None:
                source = self._sources[kind] = self._factories[kind]()
            return source

    # -- what happened

    def leased(self) -> tuple[Leased, ...]:
        """What became of each credential that was asked for, by name."""
        with self._lock:
            return tuple(
                Leased(name=name, source=tally.source, target=tally.target, state=tally.state, **tally.counts)
                for name, tally in sorted(self._tallies.items())
            )

    def _report(
        self,
        action: str,
        wanted: Wanted,
        /,
        *,
        outcome: str = "success",
        reason: str | None = None,
        ttl: float | None = None,
        how: str | None = None,
    ) -> None:
        detail: dict[str, Scalar] = {"source": wanted.kind, "target": wanted.target}
        if ttl is not None:
            detail["ttl"] = round(ttl, 1)
        if how is not None:
            detail["how"] = how
        self._count(action, wanted.name, outcome, how)
        self._emit(action, resource=wanted.name, kind="credential", outcome=outcome, reason=reason, detail=detail)

    def _count(self, action: str, name: str, outcome: str, how: str | None) -> None:
        verb = action.removeprefix("credential.")
        with self._lock:
            tally = self._tallies[name]
            if outcome != "success":
                # a failed renewal leaves the credential leased until it runs out
                states = {"denied": "denied", "revoked": "ending", "leased": "failed"}
                tally.state = states.get(verb, tally.state)
                return
            tally.counts["ended" if verb == "revoked" else verb] += 1
            if verb != "revoked":
                tally.state = "leased"
            elif not any(shared.holds for (known, _), shared in self._shares.items() if known == name):
                tally.state = how or "revoked"  # and not just a replaced one

    # -- the renewal thread

    def _changed(self) -> None:
        """The schedule has changed: let the renewal thread look again."""
        with self._lock:
            if not self._closed and (self._thread is None or not self._thread.is_alive()):
                self._thread = start_loop("renewal", self._run) if self._shares else None
        self._wake.set()

    def _run(self) -> None:
        wake = self._wake
        while not self._closed:
            wake.clear()
            try:
                delay = self.sweep()
            except Exception:  # noqa: BLE001 - renewal must go on for the other credentials
                delay = 1.0
            wake.wait(min(max(delay, 0.0), _MOST_SLEEP))

    def sweep(self) -> float:
        """Do what is due now: renew, revoke replaced ones, end those without a holder. Seconds until the next."""
        moment = self._clock()
        with self._lock:
            over = [key for key, at in self._left_at.items() if at <= moment]
            ended = [self._shares.pop(key) for key in over]
            for key in over:
                del self._left_at[key]
            held = [shared for key, shared in self._shares.items() if key not in self._left_at]
            next_at = min(self._left_at.values(), default=float("inf"))
            self._ending = [thread for thread in self._ending if thread.is_alive()]
        for shared in ended:
            thread = start(f"revoke-{shared.wanted.name}", shared.end)
            if thread is not None:
                with self._lock:
                    self._ending.append(thread)
        for shared in held:
            shared.tend()
            next_at = min(next_at, shared.due())
        return next_at - self._clock()

    # -- the end

    def close(self, deadline: float = 2.0) -> None:
        """Revoke everything revocable, then what the sources themselves hold, within `deadline` seconds.

        Never raises: what could not be revoked in time is reported, and ends with its TTL.
        """
        end = time.monotonic() + deadline
        with self._lock:
            if self._closed:
                return
            self._closed = True
            shares, self._shares = list(self._shares.values()), {}
            self._left_at.clear()
            sources, self._sources = list(self._sources.values()), {}
            ending, renewal = list(self._ending), self._thread
        self._wake.set()
        for shared in shares:
            shared.holders.clear()

        def left(part: float = 1.0) -> float:
            return max(0.05, (end - time.monotonic()) * part)

        def work() -> None:
            for shared in shares:
                shared.end(left(0.5))  # half, so that time is left for the token, whose end is also theirs
            for source in sources:
                source.close(left())

        workers = [start("close", work)] if shares or sources else []
        for thread in [*ending, *workers, renewal]:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        for shared in shares:
            shared.give_up(f"not confirmed within {deadline:g} s; it ends by its TTL")
