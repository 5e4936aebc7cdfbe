"""What a TLS server speaks and shows, for `doctor`. It looks and sends nothing; it trusts nothing it sees."""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from securemfg.transport import choke
from securemfg.transport.certificates import read_certificate
from securemfg.transport.contexts import context_with_floor
from securemfg.transport.observation import endpoint
from securemfg.transport.policy import TlsPolicy
from securemfg.transport.reasons import explain

__all__ = ["Probe", "probe"]


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What was found. `verified`: the certificate is valid, trusted and for this host. `ok`: and TLS is
    1.3.
    """

    host: str
    port: int
    version: str | None = None
    cipher: str | None = None
    verified: bool = False
    reason: str | None = None  # why it is not ok, and what to do
    subject: str | None = None
    issuer: str | None = None
    days_left: int | None = None  # whole days; negative when expired

    @property
    def ok(self) -> bool:
        return self.verified and self.version == "TLSv1.3"


def probe(
    host: str,
    port: int,
    *,
    ca_file: Path | None = None,
    timeout: float = 3.0,
    now: Callable[[], datetime] = _utc_now,
) -> Probe:
    """Look at `host:port`. Failures are in `reason`. Raises ConfigError when `ca_file` cannot be used."""
    policy = TlsPolicy(ca_file=ca_file, origin="probe")
    context = context_with_floor(policy, ssl.TLSVersion.TLSv1_2, None)
    try:
        return _look((host, port), context, timeout, now, reason=None)
    except ssl.SSLError as error:
        cause = explain(error, host=host, policy=policy)
        reason = str(cause) if cause is not None else f"no TLS with {endpoint(host, port)}: {error}"
        if not isinstance(error, ssl.SSLCertVerificationError):
            return Probe(host=host, port=port, reason=reason)
    except OSError as error:
        return Probe(host=host, port=port, reason=_unreachable(host, port, error))
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # only to read the certificate that was refused
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        return _look((host, port), unverified, timeout, now, reason=reason)
    except OSError:
        return Probe(host=host, port=port, reason=reason)


def _look(
    address: tuple[str, int],
    context: ssl.SSLContext,
    timeout: float,
    now: Callable[[], datetime],
    *,
    reason: str | None,
) -> Probe:
    host, port = address
    with (
        choke.exempt(),
        socket.create_connection((host, port), timeout) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        version, cipher, der = tls.version(), tls.cipher(), tls.getpeercert(binary_form=True)
    if reason is None and version != "TLSv1.3":
        reason = f"{endpoint(host, port)} speaks at most {version}; turn TLS 1.3 on at the server"
    try:
        facts = read_certificate(der) if der else None
    except ValueError:
        facts = None
    left = None if facts is None else math.floor((facts.not_after - now()).total_seconds() / 86400)
    return Probe(
        host=host,
        port=port,
        version=version,
        cipher=None if cipher is None else cipher[0],
        verified=context.verify_mode is ssl.CERT_REQUIRED,
        reason=reason,
        subject=None if facts is None else facts.subject,
        issuer=None if facts is None else facts.issuer,
        days_left=left,
    )


def _unreachable(host: str, port: int, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer from {endpoint(host, port)} in time: check the address and the firewall"
    return f"{endpoint(host, port)} cannot be reached: {error.strerror or error}; check that the server runs"
