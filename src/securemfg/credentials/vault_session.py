"""The HTTP session Vault is spoken to with: TLS 1.3, one authority, nothing ambient, plain http on loopback only.

Plain http is decided by the connected peer's address, before a byte is sent (trust rule 8).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securemfg.errors import ConfigError, PlaintextRefused
from securemfg.transport.policy import is_loopback

if TYPE_CHECKING:
    import requests


def _loopback_only(host: str, port: int | None, peer: str) -> bool:
    del host, port  # a name proves nothing
    return is_loopback(peer)


def session(
    *,
    ca_file: Path | None = None,
    plain_to: Callable[[str, int | None, str], bool] = _loopback_only,
    floor: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    certificate: tuple[Path, Path] | None = None,
    origin: str = "built-in",
) -> requests.Session:
    """A requests session with its own TLS context.

    `plain_to` says whether plain http may go to a (host, port, peer address); `certificate` is (certificate, key) for
    the cert login. Raises ConfigError when a file cannot be read.
    """
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
    except (OSError, ssl.SSLError) as error:
        what = ca_file if certificate is None else f"{ca_file or 'system trust store'} or {certificate[0]}"
        raise ConfigError(f"the certificates in {what} ({origin}) cannot be read: {error}") from error
    context.minimum_version = floor

    class PeerChecked(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            peer = str(self.sock.getpeername()[0])
            if not plain_to(str(self.host), self.port, peer):
                self.close()
                raise PlaintextRefused(
                    f"Vault at http://{self.host}:{self.port} ({peer}) would be spoken to without TLS ({origin}): "
                    "use its https address"
                )

    class PeerCheckedPool(HTTPConnectionPool):
        ConnectionCls = PeerChecked

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs, ssl_context=context)
            self.poolmanager.pool_classes_by_scheme = {"http": PeerCheckedPool, "https": HTTPSConnectionPool}

        def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:  # noqa: ARG002
            # requests would add its own bundle of public authorities to the context's: the context alone decides
            if url.lower().startswith("https"):
                conn.cert_reqs = "CERT_REQUIRED"

    made = requests.Session()
    made.trust_env = False  # no proxies, .netrc or REQUESTS_CA_BUNDLE of the environment
    adapter = Adapter(max_retries=0)
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made
