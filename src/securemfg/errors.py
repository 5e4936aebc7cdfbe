"""The error tree, grouped by what went wrong and who can mend it.

    SecureMfgError
      ConfigError            a setting is unknown, missing, malformed or looser than the lock allows
      CatalogError           the data-flow catalog is malformed or does not know an asset
      AccessDenied           the role may not do this; the decision is in the audit trail
      CredentialError        a credential could not be had
        CredentialDenied     the service refused it: asking again will not help
        CredentialExpired    it ran out and could not be renewed in time
      EncryptionError        something could not be encrypted
        KeyUnavailable       the key cannot be reached, read or used
        DecryptionError      a message is damaged, not ours, or for other keys
      TransportError         a connection was not made
        PlaintextRefused     it would have been unprotected
        TlsRefused           its TLS version, certificate or settings fall short
      AuditError             an event could not be kept as durably as the fail policy asks
      EvidenceError          a service could not be asked what is true

Every message says what failed, where the setting came from, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AccessDenied",
    "AuditError",
    "CatalogError",
    "ConfigError",
    "CredentialDenied",
    "CredentialError",
    "CredentialExpired",
    "DecryptionError",
    "EncryptionError",
    "EvidenceError",
    "KeyUnavailable",
    "PlaintextRefused",
    "SecureMfgError",
    "TlsRefused",
    "TransportError",
    "nearest",
]


class SecureMfgError(Exception):
    """Anything securemfg refuses or fails to do."""


class ConfigError(SecureMfgError):
    """A setting is unknown, missing, malformed or looser than the lock allows."""


class CatalogError(SecureMfgError):
    """The data-flow catalog is malformed or does not know an asset."""


class AccessDenied(SecureMfgError):
    """The access decision was no. It is in the audit trail before this is raised (NIST AC-3, AU-12)."""


class CredentialError(SecureMfgError):
    """A credential could not be had."""


class CredentialDenied(CredentialError):
    """The service refused the credential: asking again will not help."""


class CredentialExpired(CredentialError):
    """A credential ran out and could not be renewed in time."""


class EncryptionError(SecureMfgError):
    """Something could not be encrypted. Nothing was written in its place."""


class KeyUnavailable(EncryptionError):
    """A key cannot be reached, read or used."""


class DecryptionError(EncryptionError):
    """A message is damaged, is not a message at all, or is for other keys."""


class TransportError(SecureMfgError):
    """A connection was not made."""


class PlaintextRefused(TransportError):
    """A connection would have carried bytes without TLS."""


class TlsRefused(TransportError):
    """The TLS version, the certificate or the client's settings fall short."""


class AuditError(SecureMfgError):
    """An event could not be kept as durably as the fail policy asks (NIST AU-5)."""


class EvidenceError(SecureMfgError):
    """A service could not be asked what is true."""


def nearest(value: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known value most like `value`, else the known ones, else nothing."""
    import difflib

    candidates = sorted(str(item) for item in known)
    if not candidates:
        return ""
    close = difflib.get_close_matches(value, candidates, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(candidates[:8]) + (", ..." if len(candidates) > 8 else "")
    return f"; known: {shown}"
