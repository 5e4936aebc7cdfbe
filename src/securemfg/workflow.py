"""The workflow: the one place where settings, catalog, audit trail, TLS, credentials and encryption meet.

What a step does on its way in and out stands in `_lifecycle`. The module itself is light: each part loads when the
first step needs it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from securemfg import context
from securemfg._choosing import by_name_or_path, check_declared, session_tags, sts_credential
from securemfg._lifecycle import LIVE
from securemfg._protecting import ENCRYPTING, Here, Rules, encryption_on, protection_of
from securemfg._step import Step, step
from securemfg.context import Scalar
from securemfg.errors import (
    AccessDenied,
    AuditError,
    CatalogError,
    ConfigError,
    SecureMfgError,
)
from securemfg.labels import Sensitivity, Stage

if TYPE_CHECKING:
    import boto3
    import httpx

    from securemfg.artifacts.protection import Protection
    from securemfg.audit.events import Tags
    from securemfg.audit.shipper import Shipper
    from securemfg.audit.trail import Trail
    from securemfg.config import Config
    from securemfg.credentials.broker import Broker
    from securemfg.credentials.grant import Credential
    from securemfg.credentials.vault_client import VaultClient
    from securemfg.encryption.configured import ConfiguredKeys
    from securemfg.encryption.configured_signers import ConfiguredSigners
    from securemfg.encryption.keys import KeyServices
    from securemfg.governance.access import Decision
    from securemfg.governance.catalog import Catalog
    from securemfg.transport.policy import TlsPolicy

__all__ = ["Workflow", "authorize", "aws_session", "current", "default_workflow", "reset", "secret"]

_PROCESS: Final = "process"  # the holder of what is used outside any step


class Workflow:
    """Settings and the parts made from them. `Workflow.from_config(path)` makes an explicit one; the module-level
    functions use the process's default one. Constructing does no I/O beyond reading the settings.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._lock = threading.RLock()
        self._weakenings_told = False
        self._artifacts_held = False  # from the first step until `close`
        self._closed = False
        _workflows.append(self)

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str] | None = None, *, overrides: Mapping[str, Any] | None = None
    ) -> Workflow:
        """A workflow by the settings at `path` (a file, or a folder to search from). Raises ConfigError."""
        from securemfg.config import load

        return cls(load(path, overrides=overrides))

    def __repr__(self) -> str:
        return f"<Workflow {self.config.source or 'embedded default'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(
        self,
        stage: Stage | str,
        *,
        name: str | None = None,
        assets: Sequence[str] = (),
        sensitivity: Sensitivity | str | None = None,
        role: str | None = None,
        credentials: Sequence[str] = (),
    ) -> step:
        """As `securemfg.step`, in this workflow."""
        return step(
            stage, name=name, assets=assets, sensitivity=sensitivity, role=role, credentials=credentials, workflow=self
        )

    # -- parts ------------------------------------------------------------------------------------------------------

    @cached_property
    def catalog(self) -> Catalog | None:
        """The data-flow catalog that the settings name, or None. Raises CatalogError."""
        path = self.config.settings.catalog
        if path is None:
            return None
        from securemfg.governance.catalog import load_catalog

        return load_catalog(path, origin=self.config.origin("catalog"))

    @cached_property
    def tls_policy(self) -> TlsPolicy:
        from securemfg.transport.policy import TlsPolicy

        return TlsPolicy.of(self.config)

    @cached_property
    def trail(self) -> Trail:
        """The audit trail of this workflow; its journal opens with the first event."""
        from securemfg.audit.journal import Journal
        from securemfg.audit.trail import Trail

        audit = self.config.settings.audit
        journal = Journal(
            self.config.home / "journal",
            keys=self.config.home / "keys",
            checkpoint_events=audit.checkpoint_events,
            checkpoint_interval=audit.checkpoint_interval,
        )
        return Trail(journal, policy_for=audit.policy, deadline=audit.deadline, shipper=self.shipper())

    def shipper(self) -> Shipper | None:
        cloudwatch = self.config.settings.audit.cloudwatch
        if cloudwatch is None:
            return None
        from securemfg.audit.cloudwatch import logs_client
        from securemfg.audit.shipper import Shipper
        from securemfg.transport.enforcement import quiet

        return Shipper(
            self.config.home / "journal",
            lambda: logs_client(cloudwatch.region),
            cloudwatch.log_group,
            create=cloudwatch.create,
            guard=quiet,
        )

    @cached_property
    def keys(self) -> ConfiguredKeys:
        from securemfg.encryption.configured import ConfiguredKeys

        return ConfiguredKeys(self.config, self.emit, self.key_services)

    @cached_property
    def signatures(self) -> ConfiguredSigners:
        from securemfg.encryption.configured_signers import ConfiguredSigners

        return ConfiguredSigners(self.config, self.emit, self.key_services)

    @cached_property
    def key_services(self) -> KeyServices:
        from securemfg.encryption.keys import KeyServices

        return KeyServices(vault=lambda: self.vault)

    @cached_property
    def vault(self) -> VaultClient:
        """A logged-in connection to the Vault of the settings, for its transit keys."""
        from securemfg.credentials.sources import vault_client

        return vault_client(self.config)

    @cached_property
    def broker(self) -> Broker:
        from securemfg.credentials.broker import Broker
        from securemfg.credentials.sources import sources

        settings = self.config.settings
        return Broker(
            settings.credentials,
            sources=sources(self.config),
            emit=self.emit,
            origin=self.config.origin,
        )

    # -- policy -----------------------------------------------------------------------------------------------------

    def sensitivity_of(self, assets: Sequence[str], stated: Sensitivity | None = None) -> Sensitivity:
        """The strictest of `stated` and the assets' own; internal when there is neither. Raises CatalogError."""
        levels = [stated] if stated is not None else []
        if assets:
            if self.catalog is None:
                raise CatalogError(
                    f"asset {assets[0]!r} is named, but no catalog is set: set 'catalog' to your data_flow.yaml "
                    f"({self.config.source or 'no settings file found'})"
                )
            levels += [self.catalog.asset(name).sensitivity for name in assets]
        return Sensitivity.strictest(levels)

    def decide(self, action: str, assets: Sequence[str], role: str | None) -> Decision:
        from securemfg.governance.access import decide

        return decide(self.catalog, role=role, action=action, assets=assets)

    def authorize(self, action: str, asset: str, *, role: str | None = None) -> Decision:
        """Decide whether `role` (else the current step's) may do `action` with `asset`; a denial is audited.

        Raises AccessDenied (in mode observe only audited), CatalogError.
        """
        here = context.current()
        decision = self.decide(action, (asset,), role or (here.role if here else None))
        if not decision.allowed:
            self.denied(self._tags_here(), asset, decision)
        return decision

    def denied(self, tags: Tags, resource: str, decision: Decision) -> None:
        """Audit a denial, durably, before anything else happens; it stays a denial when that fails."""
        enforcing = self.config.enforcing and not self.config.disabled
        mode = "disabled" if self.config.disabled else "observe"
        refusal = AccessDenied(
            f"{decision.action} refused: {decision.reason} (policy {decision.policy_version[:12]}, "
            f"{self.config.settings.catalog}); ask the asset's owner, or name the right role="
        )
        try:
            self.trail.record(
                tags,
                "access.denied",
                resource=resource,
                kind="asset",
                outcome="denied",
                reason=decision.reason,
                detail=None if enforcing else {"mode": mode},
                fields={"decision": decision.plain(), "policy_version": decision.policy_version},
                durable=True,
            )
        except AuditError as error:
            if not enforcing:
                raise
            raise refusal from error
        if enforcing:
            raise refusal

    def tell_weakenings(self) -> None:
        with self._lock:  # once, however many first steps there are
            told, self._weakenings_told = self._weakenings_told, True
        if told:
            return
        for weak in self.config.weakenings():
            _say(f"weakened: {weak.setting} = {weak.value} ({weak.origin}): {weak.meaning}")
            self.emit(
                "settings.weakened",
                resource=weak.setting,
                kind="setting",
                reason=weak.meaning,
                detail={"value": weak.value, "origin": weak.origin},
            )

    # -- audit ------------------------------------------------------------------------------------------------------

    def record(self, tags: Tags | None, action: str, **event: Any) -> str | None:
        """One event with `tags`. Raises AuditError as the fail policy says."""
        if tags is None:  # a disabled step
            return None
        return self.trail.record(tags, action, **event)

    def emit(
        self,
        action: str,
        *,
        resource: str | None = None,
        kind: str | None = None,
        outcome: str = "success",
        reason: str | None = None,
        detail: Mapping[str, Scalar] | None = None,
    ) -> str | None:
        """What the rooms below call (context.Emit): an event with the tags of the step that is current here."""
        return self.trail.record(
            self._tags_here(), action, resource=resource, kind=kind, outcome=outcome, reason=reason, detail=detail
        )

    audit = emit

    def _tags_here(self) -> Tags:
        here = context.current()
        if here is not None:
            live = LIVE.get(here.step_id)
            if live is not None and live.tags is not None:
                tags: Tags = live.tags
                return tags
        level = context.strictest_active()
        outside = self._outside.get(level)
        if outside is None:
            from securemfg.audit.events import Tags

            audit = self.config.settings.audit
            outside = self._outside[level] = Tags.of(sensitivity=level, site=audit.site, line=audit.line)
        return outside

    @cached_property
    def _outside(self) -> dict[Sensitivity, Tags]:
        return {}

    # -- transport --------------------------------------------------------------------------------------------------

    def http_client(self, **options: Any) -> httpx.Client:
        from securemfg.transport.clients import client

        self.tell_weakenings()
        return client(self.tls_policy, self.emit, **options)

    def async_http_client(self, **options: Any) -> httpx.AsyncClient:
        from securemfg.transport.clients import async_client

        self.tell_weakenings()
        return async_client(self.tls_policy, self.emit, **options)

    def enforce_tls(self) -> None:
        """Hold this process's connections to `tls_policy` until `release_tls`. Counted."""
        self.enforcement.enforce(self.tls_policy, self._emit)

    def release_tls(self, *, keep: bool = False) -> None:
        self.enforcement.release(self.tls_policy, self._emit, keep=keep)

    @cached_property
    def enforcement(self) -> ModuleType:
        from securemfg.transport import enforcement

        return enforcement

    @cached_property
    def _emit(self) -> context.Emit:
        return self.emit  # one bound method: comparing a new one each time costs more

    # -- artifacts --------------------------------------------------------------------------------------------------

    def activate_artifacts(self) -> None:
        """Encrypt what MLflow writes from now on, until as many `deactivate`. Steps hold it on by themselves.

        Raises EncryptionError when MLflow would bypass us.
        """
        from securemfg.artifacts import activation

        self.tell_weakenings()
        with self._lock:
            activation.activate(cast("Protection", Here()))
            if self not in ENCRYPTING:
                ENCRYPTING.append(self)
        activation.prepare(staging=self.config.settings.artifacts.staging, environment=self.config.for_children())

    @property
    def artifacts_on(self) -> bool:
        """Whether this workflow's steps hold encryption on, and it is on."""
        return self._artifacts_held and encryption_on()

    def hold_artifacts(self) -> None:
        """Keep encryption on for this workflow's steps, whatever explicit pairs of calls do."""
        with self._lock:
            if not self._artifacts_held or not encryption_on():
                self.activate_artifacts()
                self._artifacts_held = True

    @cached_property
    def rules(self) -> Rules:
        """This workflow's rules for bulk work, on whatever executor: `bulk.Job(rules=workflow.rules, ...)`."""
        return Rules.of(self)

    def written(self) -> tuple[int, int]:
        files, size = self.protection.written
        return files, size

    @cached_property
    def protection(self) -> Protection:
        return protection_of(self)

    # -- credentials ------------------------------------------------------------------------------------------------

    def credential(self, live: Step, name: str) -> Credential:
        check_declared(live.context, name)
        return self.broker.acquire(name, live.context.step_id, session_tags(live.context)).credential()

    def secret(self, name: str) -> Credential:
        """The credential that the settings call `name`, or whose path is `name`, for use outside a step as well."""
        found = by_name_or_path(self.config, name)
        here = context.current()
        holder = here.step_id if here is not None and found in here.credentials else _PROCESS
        return self.broker.acquire(found, holder).credential()

    def aws_client(self, live: Step, service: str, credential: str | None, options: Mapping[str, Any]) -> Any:
        name = sts_credential(self.config, live.context, service, credential)
        from securemfg.credentials.sts import session

        lease = self.broker.acquire(name, live.context.step_id, session_tags(live.context))
        made: Any = session(lease, region=self.config.settings.credentials[name].region)
        return made.client(service, **options)

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Revoke what is leased, stop encrypting, seal the journal. Bounded: about two seconds for credentials, one
        more for the trail. The workflow can still be used: what it needs opens again.
        """
        self._let_artifacts_go()
        self._close_services()

    def _close_services(self) -> None:
        with self._lock:
            if "broker" in self.__dict__:
                self.broker.close()
                del self.__dict__["broker"]
            if "vault" in self.__dict__:
                self.vault.close()
                del self.__dict__["vault"]
            if "trail" in self.__dict__:
                self.trail.close()
                del self.__dict__["trail"]
            if "enforcement" in self.__dict__:
                self.enforcement.restore()

    def _let_artifacts_go(self) -> None:
        """Encrypt no more for this workflow; for the others it stays on."""
        if self not in ENCRYPTING:
            return
        from securemfg.artifacts import activation

        if len(ENCRYPTING) == 1:
            activation.reset()  # what MLflow has queued is written first, by our rules
        elif self._artifacts_held and activation.active():
            activation.deactivate()
        with self._lock:
            if self in ENCRYPTING:
                ENCRYPTING.remove(self)
            self._artifacts_held = False


def _say(text: str) -> None:
    """One line for people, on stderr."""
    print(f"securemfg: {text}", file=sys.stderr)  # noqa: T201


# -- the process's default workflow -----------------------------------------------------------------------------------

_workflows: list[Workflow] = []
_default: Workflow | None = None
_default_lock = threading.Lock()


def default_workflow() -> Workflow:
    """The process's default workflow, by the settings found from the working folder upwards. Raises ConfigError."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = Workflow.from_config()
    return _default


def current() -> Step:
    """The step this code runs in. Raises ConfigError outside of one."""
    here = context.current()
    live = LIVE.get(here.step_id) if here is not None else None
    if live is None:
        raise ConfigError("there is no current step here: call it inside one, or carry it with securemfg.context.carry")
    return live


def secret(name: str) -> Credential:
    """A credential of the settings, by name or Vault path, in a step or outside. Its values are Secrets."""
    return default_workflow().secret(name)


def authorize(action: str, asset: str, *, role: str | None = None) -> Decision:
    """Whether `role` (else the current step's) may do `action` with `asset`. Raises AccessDenied, CatalogError."""
    return default_workflow().authorize(action, asset, role=role)


def aws_session(*, role_arn: str, region: str | None = None) -> boto3.Session:
    """A boto3 session on short-lived credentials of `role_arn`, renewed by themselves (NIST IA-5, AC-12)."""
    from securemfg.credentials.sts import assumed_session

    return assumed_session(default_workflow().broker, role_arn, region=region)


def reset() -> None:
    """Close every workflow and forget the default one. For tests and for programs that change their settings."""
    global _default
    for workflow in _workflows:
        with contextlib.suppress(SecureMfgError):
            workflow.close()
    _workflows.clear()
    _default = None


def _at_exit() -> None:
    for workflow in _workflows:
        with contextlib.suppress(SecureMfgError):  # an exit is too late to refuse anything
            workflow._close_services()  # artifacts stay encrypted: MLflow may still be emptying its queues


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for workflow in _workflows:
        workflow._lock = threading.RLock()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
