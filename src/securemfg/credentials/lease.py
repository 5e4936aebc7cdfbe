"""One credential kept fresh: a lazy check on access, a renewal before it runs out, one request for all who wait.

A lease of `life` seconds is read without a lock until `soft` (2/3 of life, less up to a tenth), served while one
renewal runs in the background until `hard` (95 % of life, less the skew), and never handed out after that.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, Self

from securemfg.credentials.grant import Credential, Grant, Source, Wanted
from securemfg.credentials.threads import start
from securemfg.errors import CredentialDenied, CredentialError, CredentialExpired, SecureMfgError
from securemfg.forking import forget_after_fork

__all__ = ["Credential", "Grant", "Lease", "Report", "SharedLease", "Source", "Wanted"]

_SOFT: Final = 2 / 3  # of the life
_HARD: Final = 0.95
_SKEW: Final = 1.0  # seconds; at most 5 % of the life, so that lives of seconds are usable
_LEAST_WAIT: Final = 0.25  # seconds between two requests, however short the life
_FIRST_BACKOFF: Final = 0.5  # seconds, doubled by each failure
_DENIED_BACKOFF: Final = 10.0  # a refusal will not change in a moment
_MOST_BACKOFF: Final = 30.0


class Report(Protocol):
    """How a lease tells the broker what happened, for the audit trail. May raise AuditError."""

    def __call__(
        self,
        action: str,
        wanted: Wanted,
        /,
        *,
        outcome: str = "success",
        reason: str | None = None,
        ttl: float | None = None,
        how: str | None = None,
    ) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Held:
    credential: Credential
    grant: Grant
    soft: float  # clock times
    hard: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failure:
    error: SecureMfgError
    count: int
    retry_at: float  # clock time


class _Flight:
    """One request under way, and all who wait for it."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: SecureMfgError | None = None


def _same(error: SecureMfgError) -> SecureMfgError:
    """The error again, as an instance of this caller's own: a shared one would gather every thread's traceback."""
    again = type(error)(*error.args)
    again.__cause__ = error
    return again


class SharedLease:
    """One credential for all its holders in this process.

    `clock` is monotonic seconds, `now` the wall clock, `draw` gives uniform [0, 1). `patience` bounds, in seconds,
    how long a caller waits for a request; `grace` how long a replaced credential stays valid for those who read it.
    """

    def __init__(
        self,
        wanted: Wanted,
        source: Callable[[], Source],
        *,
        report: Report,
        changed: Callable[[], None] = lambda: None,
        patience: float = 30.0,
        grace: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.wanted = wanted
        self.holders: set[str] = set()  # guarded by the broker
        self._source = source
        self._report = report
        self._changed = changed
        self._patience = patience
        self._grace = grace
        self._clock = clock
        self._now = now
        self._draw = draw
        self._ended = False
        self._unsettled = False  # its end is under way
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """Start cold, without the parent's locks and requests: a forked child leases for itself."""
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._failure: _Failure | None = None
        self._flight: _Flight | None = None
        self._retired: list[tuple[float, Grant]] = []
        self._had = False

    # -- reading

    def credential(self) -> Credential:
        """The credential, fresh enough to use. Raises CredentialDenied, CredentialExpired or CredentialError."""
        held = self._held  # one reference: read without a lock
        if held is not None and self._clock() < held.soft:
            return held.credential
        return self._fresh()

    def _fresh(self) -> Credential:
        end = time.monotonic() + self._patience
        while True:
            held = self._held
            if held is not None and self._clock() < held.hard:
                self.refresh()
                return held.credential
            flight = self._join()
            if flight is None:  # it was renewed in between
                continue
            if not flight.done.wait(max(0.0, end - time.monotonic())):
                raise self._late()
            if flight.error is not None:
                raise self._failed(flight.error)
            held = self._held
            if held is None:
                raise self._gone()
            if self._clock() < held.hard:
                return held.credential
            raise CredentialExpired(
                f"credential {self.wanted.name!r} was granted for {max(held.grant.life, 0):g} s only, which is over "
                f"before it can be used: raise the TTL of {self.wanted.target!r} at its service"
            )

    def _join(self) -> _Flight | None:
        """The request under way, or a new one; None when there is nothing to wait for."""
        with self._lock:
            if self._ended:
                raise self._gone()
            held, failure = self._held, self._failure
            if self._flight is not None:
                return self._flight
            if held is not None and self._clock() < held.hard:
                return None
            if failure is not None and self._clock() < failure.retry_at:
                raise self._failed(failure.error)
            flight = self._flight = _Flight()
        start(f"lease-{self.wanted.name}", lambda: self._fly(flight))
        return flight

    def refresh(self) -> None:
        """Renew in the background when it is time, unless a request runs already or one failed a moment ago."""
        with self._lock:
            held, failure = self._held, self._failure
            due = held is None or self._clock() >= held.soft
            if self._ended or self._flight is not None or not due:
                return
            if failure is not None and self._clock() < failure.retry_at:
                return
            flight = self._flight = _Flight()
        start(f"renew-{self.wanted.name}", lambda: self._fly(flight))

    def invalidate(self, credential: Credential | None = None) -> None:
        """The service no longer takes this credential: the next access gets another. A newer one is left alone."""
        with self._lock:
            held = self._held
            if held is not None and (credential is None or held.credential is credential):
                self._held = None
                self._retired.append((self._clock(), held.grant))
        self._changed()

    # -- what the renewal thread does

    def due(self) -> float:
        """Clock time at which `tend` has something to do; infinite when it has not."""
        with self._lock:
            held, failure = self._held, self._failure
            times = [at for at, _ in self._retired]
            if held is not None and self._flight is None and not self._ended:
                times.append(max(held.soft, failure.retry_at if failure else held.soft))
            return min(times, default=float("inf"))

    def tend(self) -> None:
        """Do what is due: renew a credential in use, revoke replaced ones whose grace has passed."""
        moment = self._clock()
        with self._lock:
            retired = [grant for at, grant in self._retired if at <= moment]
            self._retired = [(at, grant) for at, grant in self._retired if at > moment]
        if retired:
            start(f"revoke-{self.wanted.name}", lambda: self._discard(retired))
        if self._held is not None and moment >= self._held.soft:
            self.refresh()

    @property
    def holds(self) -> bool:
        """Whether there is a credential to hand out or to revoke."""
        return self._held is not None

    # -- the end

    def end(self, timeout: float = 10.0) -> None:
        """Revoke what can be revoked, drop the rest, and hand out nothing more. Never raises."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            held, self._held = self._held, None
            retired, self._retired = self._retired, []
        self._unsettled = held is not None
        self._discard([grant for _, grant in retired], timeout)
        if held is not None:
            self._discard([held.grant], timeout, tell_drop=True)
            self._unsettled = False

    def give_up(self, reason: str) -> None:
        """Report an `end` that is still under way, at the end of the process."""
        if self._unsettled or self._held is not None:
            self._tell("credential.revoked", outcome="failure", reason=reason, how="left to run out")

    def _discard(self, grants: list[Grant], timeout: float = 10.0, *, tell_drop: bool = False) -> None:
        for grant in grants:
            if grant.revoke is None:
                if tell_drop:
                    self._tell(
                        "credential.revoked", reason=f"dropped: {grant.ends or 'it has no lease'}", how="dropped"
                    )
                continue
            try:
                grant.revoke(timeout)
            except Exception as error:  # noqa: BLE001 - one that cannot be revoked must not keep the others
                self._tell("credential.revoked", outcome="failure", reason=str(error), how="left to run out")
            else:
                self._tell("credential.revoked", how="revoked")

    def _tell(
        self, action: str, *, outcome: str = "success", reason: str | None = None, how: str | None = None
    ) -> None:
        """Report what has happened anyway: an audit trail that cannot be kept raises in the step, not here."""
        try:
            self._report(action, self.wanted, outcome=outcome, reason=reason, how=how)
        except Exception:  # noqa: BLE001 - see above; an error under way must not be replaced by this one
            return

    # -- one request

    def _fly(self, flight: _Flight) -> None:
        error: SecureMfgError | None = CredentialError(f"the request for credential {self.wanted.name!r} was cut short")
        held: _Held | None = None
        try:
            held = self._requested()
            error = None
        except SecureMfgError as refused:
            error = refused
        except Exception as unexpected:  # noqa: BLE001 - a source's bug must not leave the others waiting
            error = CredentialError(
                f"credential {self.wanted.name!r} could not be had: {type(unexpected).__name__} in its source "
                f"({self.wanted.origin})"
            )
            error.__cause__ = unexpected
        finally:
            if error is not None:
                self._tell_failure(error)  # a refusal is in the audit trail before it is raised
            orphan = self._land(flight, held, error)
            if orphan is not None:
                self._discard([orphan])
            self._changed()

    def _land(self, flight: _Flight, held: _Held | None, error: SecureMfgError | None) -> Grant | None:
        """Publish the outcome to all who wait. Returns a grant that came too late to be used."""
        orphan = None
        with self._lock:
            self._flight = None
            if held is not None:
                self._failure = None
                if self._ended:
                    orphan = held.grant
                else:
                    self._retire(held.grant)
                    self._held, self._had = held, True
            elif error is not None:
                count = self._failure.count + 1 if self._failure else 1
                base = _DENIED_BACKOFF if isinstance(error, CredentialDenied) else _FIRST_BACKOFF
                wait = min(_MOST_BACKOFF, base * 2.0 ** min(count - 1, 10)) * (0.5 + self._draw() / 2)
                self._failure = _Failure(error=error, count=count, retry_at=self._clock() + wait)
        flight.error = error
        flight.done.set()
        return orphan

    def _retire(self, new: Grant) -> None:
        """Let those who have just read the old credential finish with it, then revoke it. Called with the lock."""
        old = self._held
        if old is not None and old.grant.revoke is not None and old.grant.lease_id != new.lease_id:
            self._retired.append((min(old.hard, self._clock() + self._grace), old.grant))

    def _requested(self) -> _Held:
        began = self._clock()  # before the request: a slow reply must not lengthen the lease
        old = self._held
        if old is not None and old.grant.renew is not None:
            try:
                renewed = old.grant.renew()
            except CredentialDenied:
                renewed = None  # it is gone, or past its maximum: ask for a new one, which says why if it is refused
            if renewed is not None:
                longer = self._timed(renewed, began)
                if not renewed.final:
                    self._report("credential.renewed", self.wanted, ttl=renewed.ttl, how="extended")
                    return longer
                with self._lock:
                    if not self._ended:
                        self._held = longer  # what there is, should no new one be had
        began = self._clock()
        grant = self._source().lease(self.wanted)
        try:
            if old is None:
                self._report("credential.leased", self.wanted, ttl=grant.ttl)
            else:
                self._report("credential.renewed", self.wanted, ttl=grant.ttl, how="replaced")
        except Exception:
            self._discard([grant])  # unaudited, so not handed out
            raise
        return self._timed(grant, began)

    def _timed(self, grant: Grant, began: float) -> _Held:
        life = grant.life
        if life == float("inf"):
            soft = hard = life
            expires = None
        else:
            hard = began + life * _HARD - min(_SKEW, life * 0.05)
            soft = began + max(life * _SOFT * (1 - self._draw() / 10), min(_LEAST_WAIT, life * _HARD))
            expires = self._now() + timedelta(seconds=max(0.0, hard - self._clock()))
        credential = Credential(self.wanted.name, grant.values, expires=expires, lease_id=grant.lease_id)
        return _Held(credential=credential, grant=grant, soft=soft, hard=hard)

    def _tell_failure(self, error: SecureMfgError) -> None:
        if isinstance(error, CredentialDenied):
            self._tell("credential.denied", outcome="denied", reason=str(error))
        else:
            action = "credential.renewed" if self._had else "credential.leased"
            self._tell(action, outcome="failure", reason=str(error))

    # -- errors

    def _failed(self, error: SecureMfgError) -> SecureMfgError:
        if not self._had or isinstance(error, CredentialDenied) or not isinstance(error, CredentialError):
            return _same(error)
        expired = CredentialExpired(f"credential {self.wanted.name!r} ran out and could not be renewed: {error}")
        expired.__cause__ = error
        return expired

    def _late(self) -> CredentialError:
        kind = CredentialExpired if self._had else CredentialError
        return kind(
            f"credential {self.wanted.name!r} was not had within {self._patience:g} s from {self.wanted.target!r} "
            f"({self.wanted.origin}): check that the service answers"
        )

    def _gone(self) -> CredentialExpired:
        return CredentialExpired(
            f"credential {self.wanted.name!r} was given back when the last step that used it left: "
            "ask for it inside a step"
        )


class Lease:
    """A holder's share in a credential. `with` gives the credential and gives the share back at the end."""

    __slots__ = ("_leave", "_shared", "holder")

    def __init__(self, shared: SharedLease, holder: str, leave: Callable[[], None]) -> None:
        self._shared = shared
        self.holder = holder
        self._leave = leave

    @property
    def name(self) -> str:
        return self._shared.wanted.name

    @property
    def source(self) -> str:
        """Which kind of service granted it: `vault`, `sts` or `secrets_manager`."""
        return self._shared.wanted.kind

    @property
    def region(self) -> str | None:
        """The region of the settings, for AWS sessions."""
        return self._shared.wanted.settings.region

    def credential(self) -> Credential:
        """The credential as it is now; ask again after a while, it may have been renewed.

        Raises CredentialDenied (refused), CredentialExpired (ran out, or given back) or CredentialError.
        """
        if self.holder not in self._shared.holders:
            raise CredentialExpired(
                f"credential {self.name!r} was given back when {self.holder!r} left: ask for it inside a step"
            )
        return self._shared.credential()

    def invalidate(self, credential: Credential | None = None) -> None:
        """Say that the service no longer takes `credential`, so that the next access gets another."""
        self._shared.invalidate(credential)

    def __enter__(self) -> Credential:
        return self.credential()

    def __exit__(self, *_: object) -> None:
        self._leave()

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} of {self.holder!r}>"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Lease cannot be pickled: hand over the credential's name and lease it there")

    def __copy__(self) -> Self:
        return self
