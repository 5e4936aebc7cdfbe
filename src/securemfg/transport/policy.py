"""What the settings say about connections, and which exception, if any, covers one."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from securemfg.config import BUILT_IN, Config
from securemfg.settings import LOOPBACK, AllowEntry

__all__ = ["UNIX", "TlsPolicy", "allowed", "is_loopback", "is_possible", "literal"]

UNIX: Final = "unix"  # the peer "address" of an AF_UNIX socket: it cannot leave the machine


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsPolicy:
    """How connections must be made (NIST SC-8, SC-23).

    `enforcing=False` (observe) lets plain http and older TLS pass with an event; it never turns certificate
    verification off.
    """

    floor: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    allow: tuple[AllowEntry, ...] = (LOOPBACK,)
    ca_file: Path | None = None
    enforcing: bool = True
    origin: str = BUILT_IN
    now: Callable[[], datetime] = field(default=_utc_now, compare=False, repr=False)

    @classmethod
    def of(cls, config: Config, *, now: Callable[[], datetime] = _utc_now) -> TlsPolicy:
        """The policy that `config` sets in `tls.*` and `mode`."""
        settings = config.settings.tls
        origins = (config.origin(f"tls.{name}") for name in ("allow", "floor", "ca_file"))
        return cls(
            floor=ssl.TLSVersion.TLSv1_3 if settings.floor == "1.3" else ssl.TLSVersion.TLSv1_2,
            allow=settings.allow,
            ca_file=settings.ca_file,
            enforcing=config.enforcing,
            origin=next((origin for origin in origins if origin != BUILT_IN), BUILT_IN),
            now=now,
        )


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` spells out, IPv4-mapped ones as IPv4; None for a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_loopback(peer_address: str | None) -> bool:
    """Whether the connected peer is this machine: 127.0.0.0/8, ::1, IPv4-mapped, or AF_UNIX. Never a name."""
    if peer_address is None:
        return False
    if peer_address == UNIX:
        return True
    address = literal(peer_address)
    return address is not None and address.is_loopback


def allowed(
    policy: TlsPolicy, *, host: str, port: int | None, peer_address: str | None, plaintext: bool
) -> AllowEntry | None:
    """The first entry of the allow-list that covers this connection, or None.

    `plaintext=True` asks for plain http, which entries without `floor` give; else for TLS 1.2, which entries
    with `floor = "1.2"` give. `loopback` matches the connected peer's address only. Entries past their date
    do not count.
    """
    for entry in policy.allow:
        if plaintext is (entry.floor is None) and _counts(policy, entry) and entry.port in {None, port}:
            matches = is_loopback(peer_address) if entry.host == LOOPBACK.host else _names(entry.host, host)
            if matches:
                return entry
    return None


def is_possible(policy: TlsPolicy, *, host: str, port: int | None, local: Callable[[str], bool]) -> bool:
    """Whether plain http to `host` could be allowed once connected. `local` says if a name may mean this
    machine.
    """
    if allowed(policy, host=host, port=port, peer_address=None, plaintext=True) is not None:
        return True
    address = literal(host)
    peer = str(address) if address is not None else "127.0.0.1"
    if allowed(policy, host=host, port=port, peer_address=peer, plaintext=True) is None:
        return False
    return address is not None or local(host)


def _counts(policy: TlsPolicy, entry: AllowEntry) -> bool:
    """An entry holds through the whole of its last day, UTC."""
    return entry.expires is None or date.fromisoformat(entry.expires) >= policy.now().astimezone(UTC).date()


def _names(pattern: str, host: str) -> bool:
    pattern = pattern.lower().rstrip(".")
    host = host.lower().rstrip(".")
    if pattern.startswith("*."):
        return literal(host) is None and host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    address = literal(pattern)
    return host == pattern or (address is not None and literal(host) == address)
