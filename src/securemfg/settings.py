"""The settings' shapes: what each table may hold, with its built-in values. `config` fills them in.

No setting holds a secret: where one is needed, the setting names the file or the service it comes from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from securemfg.labels import Sensitivity, Stage

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")
_UNIT = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def duration(value: Any) -> timedelta:
    """A timedelta from text like `15m`, `90d` or `1.5h`. Raises ValueError on anything else."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return timedelta(**{_UNIT[match[2]]: float(match[1])})
    raise ValueError(f"must be like '15m' or '90d', got {value!r}")


def _sensitivity(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().lower().replace("_", "-")
    return value


def _iso_date(value: Any) -> str:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = date.fromisoformat(value)
    if not isinstance(value, date) or isinstance(value, datetime):
        raise ValueError(f"must be a date like '2027-01-31', got {value!r}")
    return value.isoformat()


Duration = Annotated[timedelta, BeforeValidator(duration)]
Level = Annotated[Sensitivity, BeforeValidator(_sensitivity)]
IsoDate = Annotated[str, BeforeValidator(_iso_date)]
KeyText = str | tuple[str, ...]


class Mode(StrEnum):
    ENFORCE = "enforce"
    OBSERVE = "observe"


class FailPolicy(StrEnum):
    """What a step does when its audit trail cannot be kept (NIST AU-5)."""

    DEGRADE = "degrade"
    BLOCK = "block"
    FAIL_CLOSED = "fail_closed"


class PlaintextReads(StrEnum):
    REFUSE = "refuse"
    AUDIT = "audit"
    ALLOW = "allow"


class Tracking(StrEnum):
    SEAL = "seal"
    REDACT = "redact"
    ALLOW = "allow"


class Table(BaseModel):
    """A table of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class VaultAuth(Table):
    """How to log in. Secrets come from files, never from the settings."""

    method: Literal["approle", "token", "kubernetes", "jwt", "cert"] = "approle"
    mount: str | None = None  # where the method is mounted, when not at its own name
    role_id: str | None = None
    role: str | None = None
    secret_id_file: Path | None = None
    secret_id_wrapped: bool = False  # the file holds a response-wrapping token (single use)
    token_file: Path | None = None
    jwt_file: Path | None = None


class VaultSettings(Table):
    address: str | None = None
    namespace: str | None = None
    ca_file: Path | None = None
    auth: VaultAuth = VaultAuth()
    timeout: Duration = timedelta(seconds=10)  # for one whole request, retries included


class CredentialSettings(Table):
    """One named credential: exactly one of `vault`, `sts` and `secrets_manager`."""

    vault: str | None = None  # a Vault path: `database/creds/role` or `kv-mount/path`
    sts: str | None = None  # the ARN of the role to assume
    secrets_manager: str | None = None  # a secret's name or ARN
    ttl: Duration | None = None
    tags: dict[str, str] = Field(default_factory=dict)  # STS session tags
    policy: str | None = None  # an STS session policy, as JSON
    external_id: str | None = None
    region: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> CredentialSettings:
        named = [n for n in ("vault", "sts", "secrets_manager") if getattr(self, n) is not None]
        if len(named) != 1:
            raise ValueError(f"needs exactly one of vault, sts, secrets_manager; has {', '.join(named) or 'none'}")
        return self


class CloudWatchSettings(Table):
    log_group: str
    region: str | None = None
    create: bool = True  # make the group when it is absent


ON_FAILURE: Final[Mapping[Sensitivity, FailPolicy]] = MappingProxyType(
    {
        Sensitivity.INTERNAL: FailPolicy.DEGRADE,
        Sensitivity.CONFIDENTIAL: FailPolicy.BLOCK,
        Sensitivity.PII: FailPolicy.FAIL_CLOSED,
    }
)


class AuditSettings(Table):
    cloudwatch: CloudWatchSettings | None = None
    retention: dict[str, Duration] = Field(
        default_factory=lambda: {"inference": timedelta(days=90), "audit": timedelta(days=365)}
    )
    on_failure: dict[Level, FailPolicy] = Field(default_factory=dict)  # over ON_FAILURE, level by level
    deadline: Duration = timedelta(seconds=5)  # how long `block` and `fail_closed` wait for durability
    checkpoint_events: Annotated[int, Field(ge=1)] = 1000
    checkpoint_interval: Duration = timedelta(seconds=60)
    site: str | None = None
    line: str | None = None

    @field_validator("on_failure")
    @classmethod
    def _over_the_built_in(cls, given: dict[Sensitivity, FailPolicy]) -> dict[Sensitivity, FailPolicy]:
        """A level that is not named keeps its built-in policy: naming one must not loosen another."""
        merged = {**ON_FAILURE, **given}
        return {level: merged[level] for level in sorted(merged)}

    def policy(self, sensitivity: Sensitivity) -> FailPolicy:
        """The fail policy of `sensitivity`: each entry holds from its level up."""
        held = [level for level in self.on_failure if level <= sensitivity]
        return self.on_failure[max(held)] if held else FailPolicy.DEGRADE


class AllowEntry(Table):
    """One exception to the transport rules, with its reason."""

    host: str  # `loopback` (by the connected peer's address), a name, `*.suffix`, or an address
    port: int | None = None
    reason: Annotated[str, Field(min_length=3)]
    expires: IsoDate | None = None  # UTC; past it the entry no longer counts
    floor: Literal["1.2"] | None = None  # allow TLS 1.2 to this host instead of plain http


LOOPBACK = AllowEntry(host="loopback", reason="same machine")


class TlsSettings(Table):
    floor: Literal["1.3", "1.2"] = "1.3"
    allow: tuple[AllowEntry, ...] = (LOOPBACK,)
    ca_file: Path | None = None  # a private CA's bundle, used instead of the system's trust store


SIGNER_KINDS: Final = ("ed25519", "ecdsa", "aws-kms", "vault-transit")


def check_signer(value: Any) -> str:
    """The text of a signer or of a pinned key, if it can be one. Raises ValueError."""
    kind, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in SIGNER_KINDS or not rest:
        raise ValueError(f"must be like 'ed25519:PATH', of kind {', '.join(SIGNER_KINDS)}, got {value!r}")
    return str(value)


SignerText = Annotated[str, BeforeValidator(check_signer)]


class ArtifactSettings(Table):
    encrypt_from: Level = Sensitivity.INTERNAL
    tracking: Tracking | dict[Level, Tracking] = Tracking.SEAL
    plaintext_reads: PlaintextReads | None = None  # built in: refuse in enforce, audit in observe
    activate: bool = False  # on as soon as MLflow is imported, without a step
    staging: Path | None = None
    signer: SignerText | None = None  # signs each model that is logged
    signers: tuple[SignerText, ...] = ()  # whose signatures count; built in: the signer's own

    @field_validator("signers", mode="before")
    @classmethod
    def _list_of_signers(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            raise ValueError(f"must be a list like ['ed25519:signer.pem'], got {given!r}")
        return given


# Suites of the message format that do not commit to their key, and those that do and are always read.
UNCOMMITTED_SUITES: Final = ("0x0014", "0x0046", "0x0078", "0x0114", "0x0146", "0x0178", "0x0214", "0x0346", "0x0378")
COMMITTED_SUITES: Final = ("0x0478", "0x0578")
_NAMED_SUITES: Final = f"those to be named are {', '.join(UNCOMMITTED_SUITES)}"


def _uncommitted(value: Any) -> str:
    if value in COMMITTED_SUITES:
        raise ValueError(f"must not name {value}: it commits to its key and is always read; {_NAMED_SUITES}")
    if value not in UNCOMMITTED_SUITES:
        raise ValueError(f"must be a suite's id as text, got {value!r}; {_NAMED_SUITES}")
    return str(value)


SuiteId = Annotated[str, BeforeValidator(_uncommitted)]


class EncryptionSettings(Table):
    read_suites: tuple[SuiteId, ...] = ()  # of UNCOMMITTED_SUITES, for reading only: nothing is ever written with them

    @field_validator("read_suites", mode="before")
    @classmethod
    def _list_of_ids(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            raise ValueError(f"must be a list like ['0x0378'], got {given!r}")
        return given


class DaskSettings(Table):
    """The certificates for the links to a cluster, for bulk work."""

    address: str | None = None  # tls://scheduler:8786
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class Settings(Table):
    """The whole of `[tool.securemfg]`."""

    catalog: Path | None = None
    mode: Mode = Mode.ENFORCE
    keys: dict[str, KeyText] = Field(default_factory=dict)  # `default` and one per asset
    vault: VaultSettings = VaultSettings()
    credentials: dict[str, CredentialSettings] = Field(default_factory=dict)
    audit: AuditSettings = AuditSettings()
    tls: TlsSettings = TlsSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    dask: DaskSettings = DaskSettings()
    encryption: EncryptionSettings = EncryptionSettings()


def retention_class(stage: Stage | None) -> str:
    """Which entry of `audit.retention` holds for an event of `stage`."""
    return "inference" if stage is Stage.INFERENCE else "audit"
