"""Whose rules hold for an artifact, when a process has several workflows; and those rules for another process."""

from __future__ import annotations

import sys
import threading
import uuid
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from securemfg import context
from securemfg._lifecycle import LIVE
from securemfg.errors import EncryptionError
from securemfg.labels import Sensitivity

if TYPE_CHECKING:
    from securemfg.artifacts.protection import Protection
    from securemfg.config import Config
    from securemfg.encryption.run_key import KeyGroups
    from securemfg.workflow import Workflow

ENCRYPTING: list[Workflow] = []  # those for which artifacts are encrypted now


class Here:
    """The Protection of the workflow whose step this code runs in: the artifacts room knows one for the process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(responsible().protection, name)


def responsible() -> Workflow:
    """Whose rules hold for an artifact: the current step's workflow; on a thread without one, that of all that run."""
    here = context.current()
    live = LIVE.get(here.step_id) if here is not None else None
    if live is not None and live.tags is not None:
        return live.workflow
    running = {step.workflow for step in list(LIVE.values()) if step.tags is not None}
    if len(running) == 1:
        return running.pop()
    if not ENCRYPTING:
        raise EncryptionError("encrypted artifacts were switched off while one was being handled: nothing was written")
    return ENCRYPTING[0]


def protection_of(workflow: Workflow) -> Protection:
    """The artifacts room's rules, from a workflow's settings and keys."""
    from securemfg.artifacts.protection import Protection
    from securemfg.artifacts.versions import RecordVersions

    config, keys = workflow.config, workflow.keys
    artifacts = config.settings.artifacts

    def writing_keys() -> KeyGroups:
        """The keys of the current step's assets; outside any step, of all that run."""
        here = context.current()
        steps = (here,) if here is not None else context.active()
        return keys.for_assets(tuple(dict.fromkeys(asset for one in steps for asset in one.assets)))

    return Protection(
        writing_keys=writing_keys,
        keys_for=keys.for_assets,
        group=keys.group,
        open_key=partial(keys.open, origin="argument"),
        reading_keys=keys.for_reading,
        sensitivity=partial(context.strictest_active, max(Sensitivity)),  # what nobody classified is encrypted
        encrypt_from=artifacts.encrypt_from,
        plaintext_reads=config.plaintext_reads,
        plaintext_origin=config.origin("artifacts.plaintext_reads"),
        emit=workflow.emit,
        enforcing=config.enforcing,
        scope=workflow,
        staging=artifacts.staging,
        tracking=artifacts.tracking,
        versions=RecordVersions(config.home / "record-versions"),
        signatures=workflow.signatures,
    )


def encryption_on() -> bool:
    return sys.modules["securemfg.artifacts.state"].STATE.protection is not None


@dataclass(frozen=True)
class Rules:
    """A workflow's rules, to be handed to whatever process does bulk work: the settings travel, no key does."""

    config: Config
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, workflow: Workflow) -> Rules:
        # an environment can hold anything: what it set is in the settings already
        rules = cls(replace(workflow.config, environment={}))
        with _lock:
            _known[rules.token] = workflow
        return rules

    def __call__(self) -> Protection:
        """The rules here: the workflow's own where it lives, else those of one made from the same settings."""
        from securemfg.workflow import Workflow

        with _lock:
            workflow = _known.get(self.token)
            if workflow is None:
                workflow = _known[self.token] = Workflow(self.config)
        return workflow.protection


_known: dict[str, Workflow] = {}
_lock = threading.Lock()
