"""A step's way in and out, in the design's order; everything that one call costs is here.

In: strictest sensitivity, access decision, `step.started` (the decision is a field of it), TLS enforcement, encrypted
artifacts. Out: `step.finished` or `step.failed`, flushed as the fail policy says, and the end of its leases.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from securemfg import context
from securemfg.context import Scalar, StepContext
from securemfg.errors import ConfigError, SecureMfgError, nearest
from securemfg.home import make_home
from securemfg.labels import Sensitivity

if TYPE_CHECKING:
    from securemfg._step import Plan, Step
    from securemfg.workflow import Workflow

LIVE: Final[dict[str, Step]] = {}  # the running steps, by step id


class _Prepared:
    """What is the same for every call of one plan: made once per workflow."""

    __slots__ = ("base", "decision", "name", "sensitivity", "started", "strict", "tagged", "workflow")

    def __init__(self, workflow: Workflow, plan: Plan) -> None:
        from securemfg.audit.events import Tags
        from securemfg.audit.redaction import plain
        from securemfg.settings import FailPolicy

        self.workflow = workflow
        self.name = plan.name or str(plan.stage)
        self.sensitivity = workflow.sensitivity_of(plan.assets, plan.sensitivity)
        self.decision = workflow.decide(str(plan.stage), plan.assets, plan.role)
        audit = workflow.config.settings.audit
        self.strict = audit.policy(self.sensitivity) is FailPolicy.FAIL_CLOSED
        self.tagged = Tags
        tags = Tags.of(role=plan.role, sensitivity=self.sensitivity, stage=plan.stage, site=audit.site, line=audit.line)
        self.base = {**tags.fields, "step": self.name}
        hidden: list[str] = []  # scrubbed once here, not for every call
        self.started = {
            **self.base,
            "decision": plain(self.decision.plain(), "decision", hidden),
            "policy_version": self.decision.policy_version,
        }


def enter(workflow: Workflow, live: Step) -> None:
    """Everything that happens before a step's body. Raises what forbids it; then nothing is left on."""
    plan = live.plan
    if workflow.config.disabled:
        _enter_disabled(workflow, live)
        return
    prepared = plan.prepared
    if prepared is None or prepared.workflow is not workflow:
        prepared = plan.prepared = _prepare(workflow, plan)
    step_id = _uuid7()
    tags = live.tags = prepared.tagged(sensitivity=prepared.sensitivity, fields={**prepared.base, "session": step_id})
    here = live.context = StepContext(
        step_id=step_id,
        name=prepared.name,
        stage=plan.stage,
        sensitivity=prepared.sensitivity,
        assets=plan.assets,
        role=plan.role,
        credentials=plan.credentials,
    )
    if not prepared.decision.allowed:
        workflow.denied(tags, ", ".join(plan.assets), prepared.decision)
    started = prepared.tagged(sensitivity=prepared.sensitivity, fields={**prepared.started, "session": step_id})
    workflow.trail.record(started, "step.started", durable=prepared.strict)
    live.token = context.enter(here)
    LIVE[step_id] = live
    try:
        workflow.enforce_tls()
        try:
            if not workflow.artifacts_on:
                workflow.hold_artifacts()
            live.before = (time.monotonic_ns(), workflow.enforcement.observed(), workflow.written())
        except BaseException:
            workflow.release_tls(keep=True)
            raise
    except BaseException as error:
        _gone(live)
        try:
            _record_end(workflow, live, error)
        except SecureMfgError as late:
            error.add_note(f"securemfg, while leaving {here.name}: {late}")
        raise


def _prepare(workflow: Workflow, plan: Plan) -> _Prepared:
    known = workflow.config.settings.credentials
    for name in plan.credentials:
        if name not in known:
            raise ConfigError(
                f"credential {name!r} is not in the settings ({workflow.config.source or 'no settings file found'})"
                f"{nearest(name, known)}"
            )
    make_home(workflow.config.home)
    workflow.tell_weakenings()
    return _Prepared(workflow, plan)


def leave(workflow: Workflow, live: Step, error: BaseException | None) -> None:
    """Everything that happens after a step's body. The body's own exception is never masked."""
    if live.token is None:
        return
    _gone(live)
    if live.tags is None:  # disabled
        _leases_end(workflow, live)
        return
    try:
        workflow.release_tls(keep=True)
        _record_end(workflow, live, error)
        workflow.trail.settle(live.context.sensitivity)
    except SecureMfgError as late:
        if error is None:
            raise
        error.add_note(f"securemfg, while leaving {live.context.name}: {late}")
    finally:
        _leases_end(workflow, live)


def _leases_end(workflow: Workflow, live: Step) -> None:
    if live.context.credentials and "broker" in workflow.__dict__:
        workflow.broker.leave(live.context.step_id)


def _gone(live: Step) -> None:
    LIVE.pop(live.context.step_id, None)
    if live.token is not None:
        context.leave(live.context, live.token)
        live.token = None
        staging = sys.modules.get("securemfg.artifacts.staging")
        if staging is not None:
            staging.end_step(live.context.step_id)


def _record_end(workflow: Workflow, live: Step, error: BaseException | None) -> None:
    detail: dict[str, Scalar] = {}
    if live.before is not None:
        started, connections, written = live.before
        detail["duration_us"] = (time.monotonic_ns() - started) // 1000
        detail.update(_since(connections, workflow.enforcement.observed()))
        files = workflow.written()[0] - written[0]
        if files:
            detail["artifacts_encrypted"] = files
            detail["artifact_bytes"] = workflow.written()[1] - written[1]
    if error is None:
        workflow.trail.record(live.tags, "step.finished", detail=detail)
    else:  # the class only: an exception's text may hold data
        name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        workflow.trail.record(live.tags, "step.failed", outcome="failure", reason=name, detail=detail)


def _enter_disabled(workflow: Workflow, live: Step) -> None:
    """SECUREMFG_DISABLED=1: nothing is enforced, and that is in the trail when it can be."""
    with contextlib.suppress(SecureMfgError):
        make_home(workflow.config.home)
        workflow.tell_weakenings()
    plan = live.plan
    live.context = StepContext(
        step_id=_uuid7(), name=plan.name or str(plan.stage), stage=plan.stage,
        sensitivity=plan.sensitivity or Sensitivity.INTERNAL, assets=plan.assets, role=plan.role,
        credentials=plan.credentials,
    )  # fmt: skip
    live.token = context.enter(live.context)
    LIVE[live.context.step_id] = live


def _since(before: Mapping[Any, int], now: Mapping[Any, int]) -> dict[str, Scalar]:
    """What connections were made between two snapshots: how many, and with which versions."""
    if now is before:
        return {}
    fresh = {connection: count - before.get(connection, 0) for connection, count in now.items()}
    made = [connection for connection, count in fresh.items() if count > 0]
    protected = [connection for connection in made if connection.version.startswith("TLS")]
    detail: dict[str, Scalar] = {
        "tls_connections": sum(fresh[connection] for connection in protected),
        "tls_versions": ", ".join(sorted({connection.version for connection in protected})),
    }
    others = sum(fresh[connection] for connection in made if connection not in protected)
    if others:
        detail["tls_exceptions"] = others
    return detail


def _uuid7() -> str:
    global _uuid7
    from securemfg.audit.events import uuid7

    _uuid7 = uuid7
    return uuid7()
