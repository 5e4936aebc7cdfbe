"""Sharing, renewal, single flight and the end of leases, on a clock that moves when told."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from securemfg.credentials.broker import Broker
from securemfg.credentials.grant import Grant
from securemfg.credentials.lease import Lease
from securemfg.errors import (
    AuditError,
    ConfigError,
    CredentialDenied,
    CredentialError,
    CredentialExpired,
)
from securemfg.settings import CredentialSettings
from tests.parts import until
from tests.unit.credentials.doubles import Counting, Setup

NAME = "features-db"


@pytest.fixture
def setup() -> Setup:
    return Setup()


@pytest.fixture
def broker(setup: Setup) -> Iterator[Broker]:
    made = setup.broker()
    yield made
    made.close()


def user(lease: Lease) -> str:
    return lease.credential()["username"].reveal()


def test_acquire_leases_and_tells(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step-1")
    assert user(lease) == "user-1"
    assert setup.events.kept == [
        {
            "action": "credential.leased",
            "resource": NAME,
            "kind": "credential",
            "outcome": "success",
            "reason": None,
            "detail": {"source": "vault", "target": "database/creds/trainer", "ttl": 100.0},
        }
    ]


def test_unknown_name_is_refused_with_the_nearest_and_the_place(setup: Setup) -> None:
    broker = setup.broker(origin=lambda setting: f"/plant/securemfg.toml [{setting}]")
    with pytest.raises(ConfigError, match=r"'feature-db'.*/plant/securemfg.toml.*did you mean 'features-db'"):
        broker.acquire("feature-db", "step-1")


def test_kind_without_a_source_is_refused(setup: Setup) -> None:
    broker = Broker(setup.names, sources={}, emit=setup.events)
    with pytest.raises(ConfigError, match="'vault', which is not set up"):
        broker.acquire(NAME, "step-1")


def test_steps_share_one_lease(setup: Setup, broker: Broker) -> None:
    first, second = broker.acquire(NAME, "step-1"), broker.acquire(NAME, "step-2")
    assert user(first) == user(second) == "user-1"
    assert setup.source.leases == 1


def test_session_tags_make_leases_of_their_own_for_sts_only(setup: Setup) -> None:
    setup.names = {**setup.names, "bucket": CredentialSettings(sts="arn:aws:iam::123456789012:role/writer")}
    broker = setup.broker()
    broker.acquire("bucket", "a", {"Role": "A"})
    broker.acquire("bucket", "b", {"Role": "B"})
    broker.acquire("bucket", "c", {"Role": "B"})
    assert setup.source.leases == 2
    broker.acquire(NAME, "a", {"Role": "A"})
    broker.acquire(NAME, "b", {"Role": "B"})
    assert setup.source.leases == 3
    broker.close()


@pytest.mark.parametrize("state", ["cold", "soft", "hard"])
def test_32_threads_cost_one_request(setup: Setup, broker: Broker, state: str) -> None:
    expected = 1
    if state != "cold":
        broker.acquire(NAME, "step")
        expected = 2
    setup.source.gate = threading.Event()
    setup.clock.forward({"cold": 0, "soft": 70, "hard": 96}[state])
    barrier = threading.Barrier(32)

    def use(number: int) -> str:
        barrier.wait()
        return user(broker.acquire(NAME, "step" if state == "soft" else f"step-{number}"))

    with ThreadPoolExecutor(32) as pool:
        futures = [pool.submit(use, number) for number in range(32)]
        if state == "soft":  # served at once, while the renewal is held up
            assert {future.result(10) for future in futures} == {"user-1"}
            setup.source.gate.set()
        else:
            until(lambda: setup.source.leases == expected)
            setup.source.gate.set()
            assert {future.result(10) for future in futures} == {f"user-{expected}"}
    until(lambda: user(broker.acquire(NAME, "step")) == f"user-{expected}")
    assert setup.source.leases == expected


def test_failure_is_shared_by_all_who_wait_and_by_those_who_come_soon_after(setup: Setup, broker: Broker) -> None:
    setup.source.gate = threading.Event()
    setup.source.fails = CredentialError("the service is sealed")

    def use(number: int) -> CredentialError:
        with pytest.raises(CredentialError, match="sealed") as refused:
            broker.acquire(NAME, f"step-{number}")
        return refused.value

    with ThreadPoolExecutor(32) as pool:
        futures = [pool.submit(use, number) for number in range(32)]
        until(lambda: setup.source.leases == 1)
        setup.source.gate.set()
        errors = [future.result(10) for future in futures]
    assert setup.source.leases == 1
    assert len({id(error) for error in errors}) == 32, "each caller has an exception of its own"
    assert [event["outcome"] for event in setup.events.of("credential.leased")] == ["failure"]
    setup.source.fails = None
    with pytest.raises(CredentialError, match="sealed"):
        broker.acquire(NAME, "early")
    setup.clock.forward(0.5)
    assert user(broker.acquire(NAME, "late")) == "user-2"


def test_backoff_grows_with_each_failure(setup: Setup, broker: Broker) -> None:
    setup.source.fails = CredentialError("down")
    attempts = []
    for _ in range(400):
        before = setup.source.leases
        with pytest.raises(CredentialError):
            broker.acquire(NAME, "step")
        if setup.source.leases > before:
            attempts.append(setup.clock.time)
        setup.clock.forward(0.25)
    gaps = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 0.25
    assert max(gaps) == 15.0


def test_before_soft_nothing_is_asked(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step")
    setup.clock.forward(66)
    broker.sweep()
    assert user(lease) == "user-1"
    assert setup.source.leases == 1


def test_renewal_thread_renews_between_soft_and_hard_without_any_access(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step")
    setup.clock.forward(67)
    broker.sweep()
    until(lambda: setup.source.leases == 2)
    assert until(lambda: user(lease) == "user-2")
    until(lambda: setup.events.of("credential.renewed"))
    assert setup.events.of("credential.renewed")[0]["detail"]["how"] == "replaced"


def test_replaced_credential_is_revoked_after_its_grace(setup: Setup, broker: Broker) -> None:
    broker.acquire(NAME, "step")
    setup.clock.forward(67)
    broker.sweep()
    until(lambda: setup.events.of("credential.renewed"))
    broker.sweep()
    assert setup.source.revoked == []
    setup.clock.forward(30)
    broker.sweep()
    until(lambda: setup.source.revoked == ["lease-1"])
    assert broker.leased()[0].state == "leased"


def test_service_out_of_reach_serves_the_old_one_until_hard_then_expires(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step")
    setup.source.fails = CredentialError("Vault at https://vault:8200 could not be used: it is sealed")
    setup.clock.forward(80)
    assert user(lease) == "user-1"
    until(lambda: setup.events.of("credential.renewed"))
    setup.clock.forward(13)
    assert user(lease) == "user-1"
    setup.clock.forward(1.5)  # 94.5 s: 95 % less one second of skew is over
    with pytest.raises(CredentialExpired, match=r"ran out and could not be renewed.*it is sealed"):
        lease.credential()
    setup.source.fails = None
    setup.clock.forward(60)
    assert user(lease).startswith("user-")


def test_caller_does_not_wait_longer_than_its_patience(setup: Setup) -> None:
    setup.patience = 0.05
    setup.source.gate = threading.Event()
    broker = setup.broker()
    with pytest.raises(CredentialError, match=r"not had within 0.05 s from 'database/creds/trainer'"):
        broker.acquire(NAME, "step")
    setup.source.gate.set()
    broker.close()


def test_hard_expired_caller_who_waits_too_long_gets_expired(setup: Setup) -> None:
    setup.patience = 0.05
    broker = setup.broker()
    lease = broker.acquire(NAME, "step")
    setup.source.gate = threading.Event()
    setup.clock.forward(99)
    with pytest.raises(CredentialExpired, match="not had within"):
        lease.credential()
    setup.source.gate.set()
    broker.close()


def test_extension_keeps_the_values_and_moves_the_end(setup: Setup, broker: Broker) -> None:
    setup.source.renew = lambda grant: grant
    lease = broker.acquire(NAME, "step")
    for _ in range(5):
        setup.clock.forward(70)
        assert user(lease) == "user-1"
        count = setup.source.renewals
        until(lambda count=count: lease.credential() and setup.source.renewals >= max(count, 1))
        until(lambda: broker.sweep() > 0)
    assert setup.source.leases == 1
    assert {event["detail"]["how"] for event in setup.events.of("credential.renewed")} == {"extended"}


@pytest.mark.parametrize("outcome", ["gone", "denied", "shortened"])
def test_lease_that_cannot_be_extended_is_replaced(setup: Setup, broker: Broker, outcome: str) -> None:
    def renew(grant: Grant) -> Grant | None:
        if outcome == "gone":
            return None
        if outcome == "denied":
            raise CredentialDenied("past the max TTL")
        return Grant(values=grant.values, ttl=10, lease_id=grant.lease_id, revoke=grant.revoke, final=True)

    setup.source.renew = renew
    lease = broker.acquire(NAME, "step")
    setup.clock.forward(70)
    broker.sweep()
    until(lambda: user(lease) == "user-2")
    setup.clock.forward(30)
    broker.sweep()
    until(lambda: setup.source.revoked == ["lease-1"])


def test_denied_request_is_told_and_not_repeated(setup: Setup, broker: Broker) -> None:
    setup.source.fails = CredentialDenied("policy does not allow it")
    for _ in range(3):
        with pytest.raises(CredentialDenied, match="policy does not allow"):
            broker.acquire(NAME, "step")
        setup.clock.forward(1)
    assert setup.source.leases == 1
    (event,) = setup.events.of("credential.denied")
    assert (event["outcome"], event["reason"]) == ("denied", "policy does not allow it")
    assert broker.leased()[0].state == "denied"


def test_a_denial_stays_a_denial_when_it_cannot_be_recorded(setup: Setup, broker: Broker) -> None:
    setup.source.fails = CredentialDenied("no")
    setup.events.error = AuditError("disk full")
    with pytest.raises(CredentialDenied):
        broker.acquire(NAME, "step")


def test_lease_that_cannot_be_recorded_is_revoked_and_not_handed_out(setup: Setup, broker: Broker) -> None:
    setup.events.error = AuditError("disk full")
    with pytest.raises(AuditError, match="disk full"):
        broker.acquire(NAME, "step")
    until(lambda: setup.source.revoked == ["lease-1"])


def test_bug_in_a_source_reaches_the_caller_as_a_credential_error(setup: Setup, broker: Broker) -> None:
    setup.source.fails = ZeroDivisionError("canary-values")
    with pytest.raises(CredentialError, match="ZeroDivisionError in its source") as refused:
        broker.acquire(NAME, "step")
    assert "canary" not in str(refused.value)


def test_lease_is_revoked_when_the_last_step_has_left_for_linger(setup: Setup, broker: Broker) -> None:
    broker.acquire(NAME, "step-1")
    broker.acquire(NAME, "step-2")
    broker.leave("step-1")
    setup.clock.forward(31)
    broker.sweep()
    assert setup.source.revoked == []
    broker.leave("step-2")
    setup.clock.forward(29)
    broker.sweep()
    assert setup.source.revoked == []
    setup.clock.forward(1)
    broker.sweep()
    until(lambda: setup.source.revoked == ["lease-1"])
    until(lambda: broker.leased()[0].state == "revoked")
    (event,) = setup.events.of("credential.revoked")
    assert (event["outcome"], event["detail"]["how"]) == ("success", "revoked")


def test_linger_zero_is_revoked_by_the_renewal_thread_itself(setup: Setup) -> None:
    setup.linger = 0.0
    broker = setup.broker()
    broker.acquire(NAME, "step-1")
    broker.leave("step-1")
    until(lambda: setup.source.revoked == ["lease-1"])
    broker.close()


def test_step_that_comes_within_linger_takes_the_lease_over(setup: Setup, broker: Broker) -> None:
    broker.acquire(NAME, "step-1")
    broker.leave("step-1")
    setup.clock.forward(20)
    lease = broker.acquire(NAME, "step-2")
    setup.clock.forward(20)
    broker.sweep()
    assert user(lease) == "user-1"
    assert setup.source.revoked == []


def test_lease_given_back_hands_out_nothing(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step-1")
    broker.leave("step-1")
    with pytest.raises(CredentialExpired, match="given back when 'step-1' left"):
        lease.credential()


def test_with_gives_the_credential_and_then_gives_it_back(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step-1")
    with lease as credential:
        assert credential["username"].reveal() == "user-1"
    with pytest.raises(CredentialExpired):
        lease.credential()


def test_second_acquire_of_a_holder_that_fails_keeps_its_share(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step")
    setup.source.fails = CredentialError("down")
    setup.clock.forward(99)
    with pytest.raises(CredentialExpired):
        broker.acquire(NAME, "step")
    setup.source.fails = None
    setup.clock.forward(30)
    assert user(lease).startswith("user-")


def test_invalidated_credential_is_replaced_once(setup: Setup, broker: Broker) -> None:
    lease = broker.acquire(NAME, "step")
    old = lease.credential()
    lease.invalidate(old)
    assert user(lease) == "user-2"
    lease.invalidate(old)
    assert user(lease) == "user-2"
    until(lambda: setup.source.revoked == ["lease-1"])


def test_lease_shorter_than_its_margin_is_refused_not_handed_out_dead(setup: Setup, broker: Broker) -> None:
    setup.source.ttl = 0.0
    with pytest.raises(CredentialExpired, match="granted for 0 s only"):
        broker.acquire(NAME, "step")


def test_what_has_no_lease_is_dropped_with_its_reason(setup: Setup) -> None:
    setup.source = Counting(ttl=None, revocable=False)
    broker = setup.broker()
    lease = broker.acquire(NAME, "step")
    assert lease.credential().expires is None
    broker.close()
    (event,) = setup.events.of("credential.revoked")
    assert (event["outcome"], event["reason"]) == ("success", "dropped: it ends by itself")
    assert broker.leased()[0].state == "dropped"


def test_close_revokes_everything_and_closes_the_sources(setup: Setup) -> None:
    broker = setup.broker()
    lease = broker.acquire(NAME, "step")
    broker.close()
    broker.close()
    assert setup.source.revoked == ["lease-1"]
    assert setup.source.closed
    with pytest.raises(CredentialExpired):
        lease.credential()
    with pytest.raises(CredentialError, match="closed"):
        broker.acquire(NAME, "step")


def test_close_is_bounded_and_says_what_it_could_not_confirm(setup: Setup) -> None:
    broker = setup.broker()
    broker.acquire(NAME, "step")
    stuck = threading.Event()
    setup.source.revoked = Stuck(stuck)
    began = time.monotonic()
    broker.close(0.1)
    assert time.monotonic() - began < 5
    assert any("not confirmed within 0.1 s" in str(e["reason"]) for e in setup.events.of("credential.revoked"))
    stuck.set()


class Stuck(list):
    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self._gate = gate

    def append(self, _: str) -> None:
        self._gate.wait(20)


def test_close_never_raises(setup: Setup) -> None:
    broker = setup.broker()
    broker.acquire(NAME, "step")
    setup.source.revoke_fails = RuntimeError("network gone")
    setup.events.error = AuditError("disk full")
    broker.close()
    (event,) = setup.events.of("credential.revoked")
    assert (event["outcome"], event["reason"]) == ("failure", "network gone")


def test_grant_that_comes_after_the_end_is_revoked(setup: Setup) -> None:
    broker = setup.broker()
    lease = broker.acquire(NAME, "step")
    setup.source.gate = threading.Event()
    setup.clock.forward(70)
    lease.credential()
    until(lambda: setup.source.leases == 2)
    broker.close(0.2)
    setup.source.gate.set()
    until(lambda: sorted(setup.source.revoked) == ["lease-1", "lease-2"])


def test_leased_counts_what_happened(setup: Setup, broker: Broker) -> None:
    broker.acquire(NAME, "step")
    setup.clock.forward(67)
    broker.sweep()
    until(lambda: setup.events.of("credential.renewed"))
    (summary,) = broker.leased()
    assert (summary.name, summary.source, summary.target) == (NAME, "vault", "database/creds/trainer")
    assert (summary.state, summary.leased, summary.renewed, summary.ended) == ("leased", 1, 1, 0)


def test_no_value_is_in_any_event(setup: Setup) -> None:
    broker = setup.broker()
    broker.acquire(NAME, "step")
    setup.clock.forward(67)
    broker.sweep()
    until(lambda: setup.events.of("credential.renewed"))
    broker.close()
    assert len(setup.events.kept) >= 3
    assert "canary" not in repr(setup.events.kept)


def test_defined_credential_is_known_and_does_not_replace_a_setting(setup: Setup, broker: Broker) -> None:
    broker.define("other", CredentialSettings(vault="kv/other"))
    broker.define(NAME, CredentialSettings(vault="kv/elsewhere"))
    broker.acquire("other", "step")
    broker.acquire(NAME, "step")
    assert [summary.target for summary in broker.leased()] == ["database/creds/trainer", "kv/other"]
