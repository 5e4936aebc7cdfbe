"""The sources that the settings describe: Vault, STS, Secrets Manager. Each is made on first use."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from securemfg.config import Config
from securemfg.credentials.grant import Source

if TYPE_CHECKING:
    import requests

    from securemfg.credentials.vault_client import VaultClient

__all__ = ["check_vault", "sources", "vault_client"]


def sources(config: Config) -> Mapping[str, Callable[[], Source]]:
    """Per kind of service, what makes its source. Nothing is imported or connected before it is called."""

    def vault() -> Source:
        from securemfg.credentials.vault import VaultSource

        return VaultSource(vault_client(config))

    def sts() -> Source:
        from securemfg.credentials.sts import StsSource

        return StsSource()

    def secrets_manager() -> Source:
        from securemfg.credentials.secrets_manager import SecretsManagerSource

        return SecretsManagerSource()

    return {"vault": vault, "sts": sts, "secrets_manager": secrets_manager}


def vault_client(config: Config) -> VaultClient:
    """A client of the Vault that the settings name, under their TLS rules. Raises ConfigError for what is missing.

    `observe` does not apply to it: a token never goes over a connection that the settings do not allow.
    """
    from securemfg.credentials.vault_client import VaultClient

    return VaultClient(config.settings.vault, origin=config.origin, session=lambda: _session(config))


def check_vault(config: Config) -> str:
    """Log in to the Vault of the settings once, and say in one line as whom and for how long; then log out.

    Raises ConfigError, CredentialDenied or CredentialError.
    """
    client = vault_client(config)
    try:
        return client.check()
    finally:
        client.close()


def _session(config: Config) -> requests.Session:
    from securemfg.credentials.vault_session import session
    from securemfg.transport.policy import TlsPolicy, allowed

    policy = TlsPolicy.of(config)
    settings = config.settings.vault
    place = urlsplit(settings.address or "")
    older = allowed(policy, host=place.hostname or "", port=place.port or 443, peer_address=None, plaintext=False)
    return session(
        ca_file=settings.ca_file or policy.ca_file,
        floor=ssl.TLSVersion.TLSv1_2 if older is not None else policy.floor,
        plain_to=lambda host, port, peer: (
            allowed(policy, host=host, port=port, peer_address=peer, plaintext=True) is not None
        ),
        origin=config.origin("vault.address"),
    )
