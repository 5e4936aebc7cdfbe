"""Which exception covers which connection."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from securemfg import config
from securemfg.settings import LOOPBACK, AllowEntry
from securemfg.transport.policy import UNIX, TlsPolicy, allowed, is_loopback, is_possible


def entry(host: str, **more: object) -> AllowEntry:
    return AllowEntry(host=host, reason="a reason", **more)


def covers(
    one: AllowEntry, host: str, *, port: int = 80, peer: str | None = None, plaintext: bool = True, day: int = 1
) -> bool:
    policy = TlsPolicy(allow=(one,), now=lambda: datetime(2026, 6, day, 12, tzinfo=UTC))
    return allowed(policy, host=host, port=port, peer_address=peer, plaintext=plaintext) is one


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1", UNIX, "::1%lo"])
def test_loopback_is_an_address_of_this_machine(address: str) -> None:
    assert is_loopback(address)
    assert covers(LOOPBACK, "anything.plant", peer=address)


@pytest.mark.parametrize(
    "address", [None, "localhost", "10.0.0.7", "::ffff:10.0.0.7", "0.0.0.0", "127.0.0.1.evil.example"]
)
def test_loopback_is_never_a_name_or_another_address(address: str | None) -> None:
    assert not is_loopback(address)
    assert not covers(LOOPBACK, "localhost", peer=address)


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("vault.plant", "vault.plant", True),
        ("vault.plant", "VAULT.plant.", True),
        ("vault.plant", "vault.plant.evil.example", False),
        ("*.amazonaws.com", "s3.eu-central-1.amazonaws.com", True),
        ("*.amazonaws.com", "amazonaws.com", False),
        ("*.amazonaws.com", ".amazonaws.com", False),
        ("*.amazonaws.com", "evilamazonaws.com", False),
        ("*.1", "10.0.0.1", False),
        ("169.254.169.254", "169.254.169.254", True),
        ("169.254.169.254", "::ffff:169.254.169.254", True),
        ("fd00::1", "[FD00:0::1]", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_names_suffixes_and_addresses_match_the_host(pattern: str, host: str, expected: bool) -> None:
    assert covers(entry(pattern), host) is expected


def test_an_entry_with_a_port_covers_only_that_port() -> None:
    assert covers(entry("a.plant", port=8200), "a.plant", port=8200)
    assert not covers(entry("a.plant", port=8200), "a.plant", port=80)


def test_a_floor_entry_allows_old_tls_and_not_plain_http_and_the_other_way_round() -> None:
    old, plain = entry("a.plant", floor="1.2"), entry("a.plant")
    assert covers(old, "a.plant", plaintext=False)
    assert not covers(old, "a.plant", plaintext=True)
    assert covers(plain, "a.plant", plaintext=True)
    assert not covers(plain, "a.plant", plaintext=False)


def test_an_entry_holds_through_its_last_day_and_no_longer() -> None:
    assert covers(entry("a.plant", expires="2026-06-15"), "a.plant", day=15)
    assert not covers(entry("a.plant", expires="2026-06-15"), "a.plant", day=16)


@pytest.mark.parametrize(
    ("host", "local", "expected"),
    [
        ("127.0.0.1", False, True),
        ("192.0.2.1", True, False),
        ("localhost", True, True),
        ("far.example", False, False),
    ],
)
def test_what_no_peer_could_make_right_is_known_before_connecting(host: str, local: bool, expected: bool) -> None:
    assert is_possible(TlsPolicy(), host=host, port=80, local=lambda _: local) is expected


def test_without_the_loopback_entry_no_name_needs_to_be_resolved() -> None:
    def never(name: str) -> bool:
        raise AssertionError(name)

    assert not is_possible(TlsPolicy(allow=()), host="far.example", port=80, local=never)


def test_the_policy_is_what_the_settings_say_and_where(tmp_path: Path) -> None:
    file = tmp_path / "securemfg.toml"
    file.write_text('mode = "observe"\n[tls]\nfloor = "1.2"\nca_file = "ca.pem"\nallow = []\n')
    policy = TlsPolicy.of(config.load(file, environment={}))
    assert policy.floor is ssl.TLSVersion.TLSv1_2
    assert policy.ca_file == tmp_path / "ca.pem"
    assert (policy.allow, policy.enforcing, policy.origin) == ((), False, str(file))


def test_the_built_in_policy_is_tls_13_with_loopback(tmp_path: Path) -> None:
    policy = TlsPolicy.of(config.load(folder=tmp_path, environment={}))
    assert policy.floor is ssl.TLSVersion.TLSv1_3
    assert (policy.allow, policy.enforcing, policy.origin) == ((LOOPBACK,), True, "built-in")
