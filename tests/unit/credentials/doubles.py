"""A clock that moves when told, a source that counts, and the events as they were emitted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from securemfg._secret import Secret
from securemfg.context import Scalar
from securemfg.credentials.broker import Broker
from securemfg.credentials.grant import Grant, Wanted
from securemfg.settings import CredentialSettings


class Clock:
    def __init__(self, start: float = 1000.0) -> None:
        self.time = start

    def __call__(self) -> float:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class Events:
    """An Emit that keeps what it is given."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    error: Exception | None = None

    def __call__(
        self,
        action: str,
        *,
        resource: str | None = None,
        kind: str | None = None,
        outcome: str = "success",
        reason: str | None = None,
        detail: Mapping[str, Scalar] | None = None,
    ) -> str | None:
        self.kept.append(
            {
                "action": action,
                "resource": resource,
                "kind": kind,
                "outcome": outcome,
                "reason": reason,
                "detail": dict(detail or {}),
            }
        )
        if self.error is not None:
            raise self.error
        return str(len(self.kept))

    def of(self, action: str) -> list[dict[str, Any]]:
        return [event for event in self.kept if event["action"] == action]

    def actions(self) -> list[str]:
        return [event["action"] for event in self.kept]


class Counting:
    """A source: each lease gives the next number. `gate` holds it up, `fails` makes it raise, `ttl` is granted."""

    def __init__(self, ttl: float | None = 100.0, *, revocable: bool = True) -> None:
        self.ttl = ttl
        self.revocable = revocable
        self.leases = 0
        self.renewals = 0
        self.revoked: list[str] = []
        self.closed = False
        self.gate: threading.Event | None = None
        self.fails: Exception | None = None
        self.renew: Callable[[Grant], Grant | None] | None = None
        self.revoke_fails: Exception | None = None
        self._lock = threading.Lock()

    def lease(self, wanted: Wanted, /) -> Grant:
        with self._lock:
            self.leases += 1
            number = self.leases
        if self.gate is not None:
            self.gate.wait(20)
        if self.fails is not None:
            raise self.fails
        return self._grant(number)

    def _grant(self, number: int) -> Grant:
        def revoke(timeout: float) -> None:
            if self.revoke_fails is not None:
                raise self.revoke_fails
            self.revoked.append(f"lease-{number}")

        def renew() -> Grant | None:
            self.renewals += 1
            assert self.renew is not None
            return self.renew(self._grant(number))

        return Grant(
            values={"username": Secret(f"user-{number}"), "password": Secret(f"canary-{number}")},
            ttl=self.ttl,
            lease_id=f"lease-{number}" if self.revocable else None,
            revoke=revoke if self.revocable else None,
            renew=renew if self.renew is not None else None,
            ends=None if self.revocable else "it ends by itself",
        )

    def close(self, timeout: float = 2.0, /) -> None:
        self.closed = True


@dataclass
class Setup:
    """A broker on a counting source, with its clock and events."""

    source: Counting = field(default_factory=Counting)
    clock: Clock = field(default_factory=Clock)
    events: Events = field(default_factory=Events)
    linger: float = 30.0
    patience: float = 20.0
    names: Mapping[str, CredentialSettings] = field(
        default_factory=lambda: {"features-db": CredentialSettings(vault="database/creds/trainer")}
    )

    def broker(self, **more: Any) -> Broker:
        return Broker(
            self.names,
            sources={"vault": lambda: self.source, "sts": lambda: self.source},
            emit=self.events,
            linger=timedelta(seconds=self.linger),
            patience=timedelta(seconds=self.patience),
            clock=self.clock,
            draw=lambda: 0.0,  # soft is then exactly 2/3 of the life, and a backoff half its most
            **more,
        )
