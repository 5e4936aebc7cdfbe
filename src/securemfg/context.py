"""The current step's plain data, and how it reaches threads, workers and the rooms below the workflow.

A contextvar reaches coroutines and `asyncio.to_thread`, not `Thread` or `ThreadPoolExecutor`: `carry` takes it there.
Code that runs with no step at all (MLflow's async queue) asks `strictest_active`.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from securemfg.labels import Sensitivity, Stage

P = ParamSpec("P")
R = TypeVar("R")

Scalar: TypeAlias = str | int | float | bool | None


class Emit(Protocol):
    """What a room below the audit trail needs of it: one call per event, with chosen fields only.

    `resource` names the thing acted on (a path, a host, a credential), `kind` its type. `outcome` is
    `success`, `failure` or `denied`. `detail` holds a few chosen scalars, never call arguments or secrets.
    Returns the event's id when it was recorded.
    """

    def __call__(
        self,
        action: str,
        *,
        resource: str | None = None,
        kind: str | None = None,
        outcome: str = "success",
        reason: str | None = None,
        detail: Mapping[str, Scalar] | None = None,
    ) -> str | None: ...


class StepContext(NamedTuple):  # not a frozen dataclass: it is made for every call, in a third of the time
    """What is true of a step while it runs. Plain, picklable data: no clients, no secrets."""

    step_id: str  # UUIDv7, also the events' session id
    name: str
    stage: Stage
    sensitivity: Sensitivity
    assets: tuple[str, ...] = ()
    role: str | None = None
    credentials: tuple[str, ...] = ()


_current: ContextVar[StepContext | None] = ContextVar("securemfg_step", default=None)
_active: dict[str, StepContext] = {}
_lock = threading.Lock()


def current() -> StepContext | None:
    """The step this code runs in, or None."""
    return _current.get()


def enter(step: StepContext) -> Token[StepContext | None]:
    """Make `step` the current one here, and count it among the process's active steps."""
    with _lock:
        _active[step.step_id] = step
    return _current.set(step)


def leave(step: StepContext, token: Token[StepContext | None]) -> None:
    with _lock:
        _active.pop(step.step_id, None)
    try:
        _current.reset(token)
    except ValueError:  # left in another context than entered (an async generator's finaliser): nothing to reset
        return


def active() -> tuple[StepContext, ...]:
    """Every step running in this process, in any thread."""
    with _lock:
        return tuple(_active.values())


def strictest_active(default: Sensitivity = Sensitivity.INTERNAL) -> Sensitivity:
    """The sensitivity that code outside any step must assume: the strictest of all that run."""
    step = _current.get()
    if step is not None:
        return step.sensitivity
    return Sensitivity.strictest((step.sensitivity for step in active()), default)


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be called in another thread, running in the step that is current here and now."""
    step = _current.get()

    @functools.wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _current.set(step)
        try:
            return function(*args, **kwargs)
        finally:
            _current.reset(token)

    return carried


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


# The default workflow, handed in by the face: a lower room never imports it.
_provider: Callable[[], Any] | None = None


def provide(factory: Callable[[], Any]) -> None:
    """Hand in what makes (once) or returns the process's default workflow."""
    global _provider
    _provider = factory


def default_workflow() -> Any:
    """The process's default workflow, made on first use."""
    if _provider is None:
        raise RuntimeError("securemfg was not imported through its package")
    return _provider()
