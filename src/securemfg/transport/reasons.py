"""Why a TLS handshake failed, in words, and what to do about it. The same for every library.

The certificate codes are OpenSSL's X509_V_ERR_* numbers (`SSLCertVerificationError.verify_code`).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from securemfg.transport.policy import TlsPolicy

__all__ = ["Reason", "explain", "tls_error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """What was wrong (`why`) and what mends it (`remedy`). `code` is short and stable, for events."""

    code: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.why}; {self.remedy}"


_VERSION: Final = frozenset({"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"})
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
_ASKS_CERTIFICATE: Final = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"})


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """The ssl error inside `error`, however a library wrapped it; a certificate error before any other."""
    found = [e for e in _chain(error) if isinstance(e, ssl.SSLError)]
    certificate = [e for e in found if isinstance(e, ssl.SSLCertVerificationError)]
    return next(iter(certificate or found), None)


def explain(error: BaseException, *, host: str, policy: TlsPolicy, ours: bool = True) -> Reason | None:
    """Why the handshake with `host` was refused; None when the failure is no matter of TLS policy.

    `ours=False` for any library's connection, which need not have used `tls.ca_file`.
    """
    found = tls_error(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        return _certificate(found, host, policy, ours=ours)
    reason = getattr(found, "reason", None) or ""
    if reason in _VERSION:
        return Reason(
            code="tls_version",
            why=f"{host} speaks at most TLS 1.2, "
            f"and {version_name(policy.floor)} is required (tls.floor, {policy.origin})",
            remedy='turn TLS 1.3 on at the server, or add an entry with floor = "1.2" to tls.allow',
        )
    if reason in _NOT_TLS:
        return Reason(
            code="not_tls",
            why=f"{host} does not answer in TLS on this port",
            remedy="check the port, or turn TLS on at the server",
        )
    if reason in _ASKS_CERTIFICATE:
        return Reason(
            code="client_certificate",
            why=f"{host} asks for a client certificate and none was given",
            remedy="hand one in with certificate=(certificate file, key file)",
        )
    if reason.startswith(("SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT", "TLSV13_ALERT", "SSLV3_ALERT")):
        return Reason(
            code="alert",
            why=f"{host} broke the handshake off ({reason.lower().replace('_', ' ')})",
            remedy="read the server's log: its TLS settings or its view of our certificate are the cause",
        )
    return None


def version_name(version: ssl.TLSVersion) -> str:
    """`TLS 1.3` for TLSv1_3."""
    return version.name.replace("TLSv", "TLS ").replace("_", ".")


def _certificate(error: ssl.SSLCertVerificationError, host: str, policy: TlsPolicy, *, ours: bool) -> Reason:
    code = error.verify_code
    said = error.verify_message
    bundle = policy.ca_file or "the system's trust store"
    trust = f"set tls.ca_file to the CA's certificate; {bundle} was used (tls.*, {policy.origin})"
    if not ours:
        trust = "hand the CA's certificate file to the library in use; securemfg's own clients read tls.ca_file"
    if code == 9:
        return Reason(
            code="not_yet_valid",
            why=f"the certificate of {host} is not valid yet",
            remedy="check this machine's clock, then the certificate's start",
        )
    if code == 10:
        return Reason(
            code="expired",
            why=f"the certificate of {host} has expired",
            remedy="renew it at the server; if it was renewed, check this machine's clock",
        )
    if code == 18:
        return Reason(
            code="self_signed",
            why=f"the certificate of {host} is self-signed, so nobody vouches for it",
            remedy=f"have a CA issue one, then {trust}",
        )
    if code in {2, 19, 20, 21}:
        return Reason(
            code="unknown_issuer",
            why=f"the certificate of {host} is from an issuer that is not trusted",
            remedy=trust,
        )
    if code in {62, 64}:
        return Reason(
            code="wrong_host",
            why=f"the certificate is not for {host} ({said})",
            remedy="use a name that the certificate holds, or have it issued for this one",
        )
    return Reason(
        code=f"certificate_{code}",
        why=f"the certificate of {host} does not verify ({said})",
        remedy="have a valid one issued; Python 3.13 and later also want key identifiers and a key usage",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and everything it was raised from or carries, each once."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        waiting += [
            item.__cause__,
            item.__context__,
            getattr(item, "reason", None),
            getattr(item, "os_error", None),
        ]
        waiting += list(item.args)
