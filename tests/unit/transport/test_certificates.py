"""The development CA: what it issues passes strict verification, and its keys are nobody else's."""

from __future__ import annotations

import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from securemfg.errors import ConfigError
from securemfg.transport.certificates import DevelopmentCA, Issued, read_certificate
from securemfg.transport.contexts import client_context, server_context
from securemfg.transport.policy import TlsPolicy
from tests.parts.tls import Pki


def shake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """A handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=host)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert near.version() == "TLSv1.3"
    return near


@pytest.mark.parametrize("host", ["press.plant", "10.1.2.3", "::1", "müller.plant"])
def test_a_certificate_passes_strict_verification_for_each_of_its_names(tmp_path: Path, host: str) -> None:
    ca = DevelopmentCA.create(tmp_path / "ca")
    issued = ca.issue(["press.plant", "10.1.2.3", "::1", "müller.plant"])
    client = ssl.create_default_context(cafile=ca.ca_file)
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # the default from Python 3.13
    shake(client, server_context(issued.certificate, issued.key), host)


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    ca = DevelopmentCA.create(tmp_path / "ca")
    issued = ca.issue(["press.plant"])
    for file in (tmp_path / "ca" / "ca.key", issued.key):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_the_ca_can_sign_no_further_ca(tmp_path: Path) -> None:
    from cryptography import x509

    ca = DevelopmentCA.create(tmp_path / "ca")
    certificate = x509.load_pem_x509_certificate(ca.ca_file.read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_a_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ca = DevelopmentCA.create(tmp_path / "ca", days=10, now=lambda: now)
    facts = read(ca.issue(["press.plant"], days=90))
    assert facts.not_after == now + timedelta(days=10)
    assert facts.names == ("press.plant",)


def test_an_existing_ca_is_opened_and_not_overwritten(tmp_path: Path) -> None:
    first = DevelopmentCA.create(tmp_path / "ca")
    text = first.ca_file.read_bytes()
    with pytest.raises(ConfigError, match="already"):
        DevelopmentCA.create(tmp_path / "ca")
    assert DevelopmentCA.open(tmp_path / "ca").issue(["a.plant"]).ca_file.read_bytes() == text


def test_a_folder_without_a_ca_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no CA"):
        DevelopmentCA.open(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file modes")
def test_a_ca_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    DevelopmentCA.create(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match="read by others"):
        DevelopmentCA.open(tmp_path / "ca")


def test_a_ca_with_a_foreign_key_is_refused(tmp_path: Path) -> None:
    DevelopmentCA.create(tmp_path / "ca")
    other = DevelopmentCA.create(tmp_path / "other")
    (tmp_path / "ca" / "ca.key").write_bytes((other.folder / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="not its own"):
        DevelopmentCA.open(tmp_path / "ca")


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    issued = DevelopmentCA.create(tmp_path / "ca").issue(["../../etc/passwd"])
    assert issued.key.parent == tmp_path / "ca" / "issued"


def test_no_names_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one name"):
        DevelopmentCA.create(tmp_path / "ca").issue([])


def test_a_context_is_shared_until_its_file_changes(pki: Pki, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(pki.ca.ca_file.read_bytes())
    policy = TlsPolicy(ca_file=bundle)
    first = client_context(policy)
    assert client_context(TlsPolicy(ca_file=bundle)) is first
    bundle.write_bytes(pki.ca.ca_file.read_bytes() + pki.other.ca_file.read_bytes())
    second = client_context(policy)
    assert second is not first
    assert (first.minimum_version, first.verify_mode, first.check_hostname) == (
        ssl.TLSVersion.TLSv1_3,
        ssl.CERT_REQUIRED,
        True,
    )


def test_a_bundle_that_holds_no_certificate_is_a_settings_error(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("nothing")
    with pytest.raises(ConfigError, match=r"tls\.ca_file .* cannot be used"):
        client_context(TlsPolicy(ca_file=bundle))


def test_a_key_that_does_not_belong_to_the_certificate_is_a_settings_error(pki: Pki) -> None:
    with pytest.raises(ConfigError, match="give a pair"):
        server_context(pki.good.certificate, pki.unknown.key)


def test_an_encrypted_key_is_a_settings_error_and_asks_nobody(pki: Pki, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pki.good.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="is encrypted"):
        server_context(pki.good.certificate, locked)


def read(issued: Issued):
    return read_certificate(ssl.PEM_cert_to_DER_cert(issued.certificate.read_text()))
