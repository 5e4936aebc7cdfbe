"""A Dask cluster as an executor for bulk work, over links that are TLS 1.3 and authenticated at both ends."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securemfg.errors import ConfigError, PlaintextRefused, TransportError

_CONNECT = 10.0  # seconds


@dataclass(frozen=True, kw_only=True)
class ClusterTls:
    """What both ends of a cluster's links prove themselves with: PEM files."""

    ca_file: Path
    cert_file: Path
    key_file: Path

    def security(self) -> Any:
        """Dask's own object for it: encryption required, nothing below TLS 1.3."""
        from distributed.security import Security

        return Security(
            require_encryption=True,
            tls_min_version=ssl.TLSVersion.TLSv1_3,
            tls_ca_file=str(self.ca_file),
            tls_client_cert=str(self.cert_file),
            tls_client_key=str(self.key_file),
        )


@contextlib.contextmanager
def dask_executor(address: str, tls: ClusterTls, *, timeout: float = _CONNECT) -> Iterator[tuple[Executor, int]]:
    """The cluster's executor and how many threads its workers have. A worker that dies has its work done by another.

    `timeout` is for the connection, in seconds.
    Raises PlaintextRefused for an address that is not `tls://`, TransportError when nobody answers, ConfigError when
    Dask is not installed.
    """
    if not address.startswith("tls://"):
        raise PlaintextRefused(
            f"a cluster is reached over TLS only, like tls://scheduler:8786, got {address!r}: start its scheduler and "
            "workers with --tls-ca-file, --tls-cert and --tls-key"
        )
    for file in (tls.ca_file, tls.cert_file, tls.key_file):
        if not file.is_file():
            raise ConfigError(
                f"{file} is missing: the cluster's certificates are set in [dask] ca_file, cert_file, key_file"
            )
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("a cluster needs Dask: pip install 'securemfg[dask]'") from error
    try:
        client = Client(address, security=tls.security(), timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise TransportError(
            f"the cluster at {address} cannot be reached over TLS 1.3: {error}; check that its scheduler runs and uses "
            "certificates of the same authority"
        ) from error
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise TransportError(f"the cluster at {address} has no workers: start some with 'dask worker {address}'")
        # pure=False: the same work is done again when it is asked for again; a dead worker's goes to another
        yield client.get_executor(pure=False, retries=2), threads
    finally:
        client.close()
