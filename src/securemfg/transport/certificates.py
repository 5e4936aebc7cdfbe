"""A certificate authority for development and tests, and reading what a certificate says.

P-256 keys; the CA has path length 0; every certificate has the key identifiers and key usages that the strict
verification of Python 3.13 wants (RFC 5280, 4.2.1). The CA's key lies in a file: not for production.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from securemfg.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["CertificateFacts", "DevelopmentCA", "Issued", "read_certificate"]

_CA_DAYS: Final = 365
_LEAF_DAYS: Final = 30
_BACKDATED: Final = timedelta(minutes=5)  # machines' clocks differ
_SECRET_MODE: Final = 0o600


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Issued:
    """The files of one certificate, PEM. `key` is 0600."""

    certificate: Path
    key: Path
    ca_file: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateFacts:
    """What a certificate says of itself."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


class DevelopmentCA:
    """A CA in a folder: `ca.pem`, `ca.key` (0600) and what it issued."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime] = _utc_now) -> None:
        self.folder = folder
        self._now = now

    @property
    def ca_file(self) -> Path:
        """The CA's certificate: what clients trust (`tls.ca_file`)."""
        return self.folder / "ca.pem"

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        name: str = "securemfg development CA",
        days: float = _CA_DAYS,
        now: Callable[[], datetime] = _utc_now,
    ) -> DevelopmentCA:
        """Make a CA in `folder` (0700). Raises ConfigError when there is one already."""
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ca = cls(folder, now=now)
        if ca.ca_file.exists() or ca._key_file.exists():
            raise ConfigError(f"{folder} holds a CA already: use DevelopmentCA.open, or another folder")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = (
            ca._builder(subject, subject, key.public_key(), key.public_key(), ca._in(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        _write(ca._key_file, _key_pem(key), secret=True)
        _write(ca.ca_file, _sign(builder, key))
        return ca

    @classmethod
    def open(cls, folder: Path, *, now: Callable[[], datetime] = _utc_now) -> DevelopmentCA:
        """The CA in `folder`. Raises ConfigError when there is none, or others can read its key."""
        ca = cls(folder, now=now)
        try:
            mode = ca._key_file.stat().st_mode
        except OSError as error:
            raise ConfigError(f"{folder} holds no CA: make one with DevelopmentCA.create") from error
        if os.name == "posix" and mode & 0o077:
            raise ConfigError(f"{ca._key_file} can be read by others: make a new CA, then chmod 600 its key")
        ca._load()
        return ca

    def issue(self, names: Sequence[str], *, days: float = _LEAF_DAYS) -> Issued:
        """A certificate for `names` (DNS names and addresses), for servers and for clients, with a new key.

        Never longer than the CA itself. The files are named after the first name and replaced when it is
        issued again. Raises ConfigError for no names.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        if not names:
            raise ConfigError("a certificate needs at least one name: a DNS name or an address")
        ca_certificate, ca_key = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        last = min(self._in(days), ca_certificate.not_valid_after_utc)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            self._builder(subject, ca_certificate.subject, key.public_key(), ca_key.public_key(), last)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        )
        stem = re.sub(r"[^A-Za-z0-9.-]", "_", names[0]).lstrip(".") or "certificate"
        issued = Issued(
            certificate=self.folder / "issued" / f"{stem}.pem",
            key=self.folder / "issued" / f"{stem}.key",
            ca_file=self.ca_file,
        )
        issued.key.parent.mkdir(exist_ok=True, mode=0o700)
        _write(issued.key, _key_pem(key), secret=True)
        _write(issued.certificate, _sign(builder, ca_key))
        return issued

    @property
    def _key_file(self) -> Path:
        return self.folder / "ca.key"

    def _load(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            certificate = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
            key = serialization.load_pem_private_key(self._key_file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"the CA in {self.folder} cannot be read: {error}; make a new one") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"the CA in {self.folder} has a key that is not its own: make a new one")
        return certificate, key

    def _in(self, days: float) -> datetime:
        return self._now().astimezone(UTC) + timedelta(days=days)

    def _builder(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        public: ec.EllipticCurvePublicKey,
        signer: ec.EllipticCurvePublicKey,
        last: datetime,
    ) -> x509.CertificateBuilder:
        from cryptography import x509

        now = self._now().astimezone(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(secrets.randbits(127) | 1)  # RFC 5280, 4.1.2.2: positive, at most 20 bytes
            .not_valid_before(min(now, last) - _BACKDATED)
            .not_valid_after(last)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
        )


def read_certificate(der: bytes) -> CertificateFacts:
    """What the DER certificate says. Raises ValueError when it is none."""
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        shown = tuple(str(name.value) for name in names)
    except x509.ExtensionNotFound:
        shown = ()
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=shown,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode("ascii") if not name.isascii() else name)


def _sign(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization

    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, *, secret: bool = False) -> None:
    """Whole or not at all, and never readable by others for a moment when secret."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _SECRET_MODE if secret else 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
