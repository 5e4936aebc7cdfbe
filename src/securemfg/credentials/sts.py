"""AWS STS: short-lived sessions of a role, tagged with the step, and boto3 sessions that outlive one of them.

Rights needed: `sts:AssumeRole` and `sts:TagSession` on the role, for the identity the process runs as. STS sessions
cannot be revoked one by one: they are dropped here and end by themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from securemfg._secret import Secret
from securemfg.credentials.aws_errors import told, translated
from securemfg.credentials.grant import Credential, Grant, Wanted
from securemfg.credentials.lease import Lease
from securemfg.errors import ConfigError, CredentialDenied
from securemfg.forking import forget_after_fork
from securemfg.settings import CredentialSettings

if TYPE_CHECKING:
    import boto3

    from securemfg.credentials.broker import Broker

__all__ = ["StsSource", "assumed_session", "identity", "session", "session_name", "sts_client"]

# The limits of AssumeRole (AWS STS API reference)
_LEAST: Final = timedelta(minutes=15)
_MOST: Final = timedelta(hours=12)
_MOST_POLICY: Final = 2048  # characters
_MOST_TAGS: Final = 50
_TAG: Final = re.compile(r"[\w\s.:/=+@-]*")
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException"})


def sts_client(region: str | None = None) -> Any:
    """A boto3 STS client with bounded waits, on the process's own AWS identity."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"})
    return boto3.session.Session().client("sts", region_name=region, config=config)


def identity(region: str | None = None, *, client: Any = None) -> str:
    """The ARN this process is to AWS (GetCallerIdentity, which needs no right). `client` is an STS client.

    Raises CredentialDenied when AWS refuses who we are or there is nobody to be, CredentialError when it is out of
    reach.
    """
    with told("this process's AWS identity", "GetCallerIdentity", "check the process's own AWS credentials"):
        found = (client or sts_client(region)).get_caller_identity()
    return str(found["Arn"])


class StsSource:
    """Sessions of roles. `client` makes an STS client for a region (None: the environment's)."""

    def __init__(self, client: Callable[[str | None], Any] = sts_client) -> None:
        self._make = client
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """In a forked child: no connection of the parent's."""
        self._clients: dict[str | None, Any] = {}

    def lease(self, wanted: Wanted, /) -> Grant:
        """Assume the role: `access_key_id`, `secret_access_key` and `session_token`, 15 minutes unless `ttl` says more.

        Raises ConfigError for what AssumeRole would not take, CredentialDenied or CredentialError.
        """
        request = _request(wanted)
        with translated(wanted, "the role", "check its trust policy (sts:AssumeRole, sts:TagSession) and who we are"):
            client = self._client(wanted.settings.region)
            reply = client.assume_role(**request)
        found = reply["Credentials"]
        values = {
            "access_key_id": Secret(found["AccessKeyId"]),
            "secret_access_key": Secret(found["SecretAccessKey"]),
            "session_token": Secret(found["SessionToken"]),
        }
        expires: datetime = found["Expiration"]
        return Grant(
            values=values,
            ttl=_ttl(float(request["DurationSeconds"]), expires, reply),
            ends=f"STS sessions end by themselves at {expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        )

    def close(self, timeout: float = 2.0, /) -> None:
        """Close the connections. There is nothing to revoke."""
        del timeout
        for client in self._clients.values():
            client.close()
        self._clients = {}

    def _client(self, region: str | None) -> Any:
        client = self._clients.get(region)
        if client is None:
            client = self._clients[region] = self._make(region)
        return client


def _ttl(asked: float, expires: datetime, reply: Mapping[str, Any]) -> float:
    """Seconds of life by the server's own clock, so that ours may be wrong."""
    sent = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        left = (expires - parsedate_to_datetime(sent)).total_seconds() if sent else asked
    except (TypeError, ValueError):
        return asked
    return min(asked, left)


def _request(wanted: Wanted) -> dict[str, Any]:
    """AssumeRole's parameters, with its limits checked here: the message can then name the setting."""
    settings, name = wanted.settings, wanted.name
    ttl = settings.ttl if settings.ttl is not None else _LEAST
    if not _LEAST <= ttl <= _MOST:
        raise ConfigError(f"'credentials.{name}.ttl' must be from 15m to 12h for STS, got {ttl} ({wanted.origin})")
    request: dict[str, Any] = {
        "RoleArn": wanted.target,
        "RoleSessionName": session_name(wanted.holder),
        "DurationSeconds": int(ttl.total_seconds()),
    }
    tags = {**wanted.tags, **settings.tags}
    if tags:
        request["Tags"] = _tags(tags, wanted)
    if settings.external_id is not None:
        request["ExternalId"] = settings.external_id
    if settings.policy is not None:
        request["Policy"] = _policy(settings.policy, wanted)
    return request


def session_name(holder: str) -> str:
    """A role session name from a step's id: 2 to 64 characters of those CloudTrail shows."""
    return f"securemfg-{re.sub(r'[^A-Za-z0-9_+=,.@-]', '-', holder)}"[:64]


def _tags(tags: Mapping[str, str], wanted: Wanted) -> list[dict[str, str]]:
    where = f"session tags of credential {wanted.name!r} ({wanted.origin})"
    if len(tags) > _MOST_TAGS:
        raise ConfigError(f"{where}: {len(tags)} of them, AWS takes {_MOST_TAGS}")
    for key, value in tags.items():
        if not 1 <= len(key) <= 128 or len(value) > 256 or not _TAG.fullmatch(key) or not _TAG.fullmatch(value):
            raise ConfigError(
                f"{where}: {key!r} must be 1 to 128 characters and its value up to 256, of letters, digits, "
                "spaces and _.:/=+-@"
            )
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _policy(text: str, wanted: Wanted) -> str:
    where = f"'credentials.{wanted.name}.policy' ({wanted.origin})"
    try:
        compact = json.dumps(json.loads(text), separators=(",", ":"))
    except ValueError as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from error
    if len(compact) > _MOST_POLICY:
        raise ConfigError(
            f"{where} has {len(compact)} characters, a session policy may have {_MOST_POLICY}: shorten it"
        )
    return compact


def session(lease: Lease, *, region: str | None = None) -> boto3.Session:
    """A boto3 session whose clients use the lease's credential of the moment, so that they outlive any one of it.

    When AWS says that a session has expired, the lease is renewed at once; the failed call is not repeated.
    """
    import boto3
    import botocore.credentials
    import botocore.session

    class Leased(botocore.credentials.Credentials):
        """Reads the lease on each signature; keeps no value. (botocore's refreshing class would ask STS each time.)"""

        def __init__(self) -> None:
            self.method = "securemfg-lease"
            self.account_id = None

        def _value(self, name: str) -> str:
            return _revealed(lease.credential(), name)

        @property
        def access_key(self) -> str:  # type: ignore[override]  # read-only on purpose
            return self._value("access_key_id")

        @property
        def secret_key(self) -> str:  # type: ignore[override]  # read-only on purpose
            return self._value("secret_access_key")

        @property
        def token(self) -> str:  # type: ignore[override]  # read-only on purpose
            return self._value("session_token")

        def get_frozen_credentials(self) -> botocore.credentials.ReadOnlyCredentials:
            now = lease.credential()  # once: the three belong together
            return botocore.credentials.ReadOnlyCredentials(
                _revealed(now, "access_key_id"),
                _revealed(now, "secret_access_key"),
                _revealed(now, "session_token"),
                None,
            )

    def expired(parsed: Mapping[str, Any] | None = None, **_: Any) -> None:
        if parsed is not None and parsed.get("Error", {}).get("Code") in _EXPIRED:
            lease.invalidate()

    core = botocore.session.Session()
    core._credentials = Leased()  # type: ignore[attr-defined]  # where set_credentials puts its static ones
    core.register("after-call", expired)
    return boto3.session.Session(botocore_session=core, region_name=region or lease.region)


def assumed_session(broker: Broker, role_arn: str, *, region: str | None = None) -> boto3.Session:
    """A boto3 session on short-lived credentials of a role, leased until `broker` closes.

    The settings need not name the role. Raises CredentialDenied when AWS refuses the role, else CredentialError.
    """
    broker.define(role_arn, CredentialSettings(sts=role_arn, region=region))
    return session(broker.acquire(role_arn, "session"), region=region)


def _revealed(credential: Credential, name: str) -> str:
    try:
        return credential[name].reveal()
    except KeyError:
        raise CredentialDenied(
            f"credential {credential.name!r} has no {name!r}: it is not an AWS session; name one with 'sts'"
        ) from None
