"""AWS Secrets Manager: read one secret. Right needed: `secretsmanager:GetSecretValue` (and the key's `kms:Decrypt`)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from securemfg._secret import Secret
from securemfg.credentials.aws_errors import translated
from securemfg.credentials.grant import Grant, Wanted
from securemfg.forking import forget_after_fork

__all__ = ["SecretsManagerSource", "secrets_manager_client"]


def secrets_manager_client(region: str | None = None) -> Any:
    """A boto3 Secrets Manager client with bounded waits, on the process's own AWS identity."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"})
    return boto3.session.Session().client("secretsmanager", region_name=region, config=config)


class SecretsManagerSource:
    """Secrets by name or ARN. `client` makes a Secrets Manager client for a region (None: the environment's)."""

    def __init__(self, client: Callable[[str | None], Any] = secrets_manager_client) -> None:
        self._make = client
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """In a forked child: no connection of the parent's."""
        self._clients: dict[str | None, Any] = {}

    def lease(self, wanted: Wanted, /) -> Grant:
        """The current version: the fields of a JSON object, else one field `value` (binary as Base64).

        It has no lease: it is read again after the setting `ttl`, if there is one. Raises CredentialDenied or
        CredentialError.
        """
        with translated(wanted, "the secret", "check its name, region and the right secretsmanager:GetSecretValue"):
            client = self._clients.get(wanted.settings.region)
            if client is None:
                client = self._clients[wanted.settings.region] = self._make(wanted.settings.region)
            reply = client.get_secret_value(SecretId=wanted.target)
        ttl = wanted.settings.ttl
        return Grant(
            values=_fields(reply),
            ttl=None if ttl is None else ttl.total_seconds(),
            ends="a value read from Secrets Manager has no lease to revoke",
        )

    def close(self, timeout: float = 2.0, /) -> None:
        """Close the connections. There is nothing to revoke."""
        del timeout
        for client in self._clients.values():
            client.close()
        self._clients = {}


def _fields(reply: dict[str, Any]) -> dict[str, Secret]:
    text = reply.get("SecretString")
    if text is None:
        return {"value": Secret(base64.b64encode(reply.get("SecretBinary") or b"").decode())}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict) and found:
        return {str(k): Secret(v if isinstance(v, str) else json.dumps(v)) for k, v in found.items()}
    return {"value": Secret(text)}
