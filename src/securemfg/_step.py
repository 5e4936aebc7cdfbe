"""The step: a decorator and a `with` over one engine. What it does on its way in and out stands in `_lifecycle`.

This module loads with the first decorated function, so it imports nothing heavy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar

from securemfg import _lifecycle, context
from securemfg.context import Scalar, StepContext
from securemfg.errors import ConfigError
from securemfg.labels import Sensitivity, Stage

if TYPE_CHECKING:
    import httpx

    from securemfg.credentials.grant import Credential
    from securemfg.workflow import Workflow

P = ParamSpec("P")
R = TypeVar("R")

_COROUTINE: Final = 0x80  # code flags, as in `inspect`, which takes longer to import than all of this
_GENERATORS: Final = 0x20 | 0x200


class Plan:
    """What the author of a step wrote down, checked as far as it can be without settings."""

    __slots__ = ("assets", "credentials", "name", "prepared", "role", "sensitivity", "stage")

    def __init__(
        self,
        stage: Stage,
        name: str | None,
        assets: tuple[str, ...],
        sensitivity: Sensitivity | None,
        role: str | None,
        credentials: tuple[str, ...],
    ) -> None:
        self.stage = stage
        self.name = name
        self.assets = assets
        self.sensitivity = sensitivity
        self.role = role
        self.credentials = credentials
        self.prepared: Any = None  # the workflow's own note: what of it stays the same for every call

    def named(self, name: str) -> Plan:
        """This plan for the function `name`: a plan of its own, unless the author named the step."""
        given = self.name or name
        return Plan(self.stage, given, self.assets, self.sensitivity, self.role, self.credentials)


def _planned(
    stage: Stage | str,
    *,
    name: str | None = None,
    assets: Sequence[str] = (),
    sensitivity: Sensitivity | str | None = None,
    role: str | None = None,
    credentials: Sequence[str] = (),
) -> Plan:
    for what, value in (("assets", assets), ("credentials", credentials)):
        if isinstance(value, str):
            raise ConfigError(f"{what}= takes a list of names, got the text {value!r}: write [{value!r}]")
    return Plan(
        Stage.parse(stage),
        name,
        tuple(dict.fromkeys(assets)),
        None if sensitivity is None else Sensitivity.parse(sensitivity),
        role,
        tuple(dict.fromkeys(credentials)),
    )


class step:  # noqa: N801 - the face's verb: a decorator and a context manager
    """Run code as one step of a secure workflow: `@step(...)` on a function, or `with step(...) as step:`.

    `stage` is one of Stage. The step's sensitivity is the strictest of `sensitivity` and what the catalog says of
    `assets`; with neither it is internal. `role` is a claim until it is bound to an identity. `credentials` names those
    of the settings that the step may use; they are leased on first use.

    A decorated call makes a fresh Step each time; a `with` is single-use. Coroutine functions work the same.
    Raises ConfigError, CatalogError, AccessDenied, AuditError on entering; the body's own exception is never masked.
    """

    def __init__(
        self,
        stage: Stage | str,
        *,
        name: str | None = None,
        assets: Sequence[str] = (),
        sensitivity: Sensitivity | str | None = None,
        role: str | None = None,
        credentials: Sequence[str] = (),
        workflow: Workflow | None = None,
    ) -> None:
        self._plan = _planned(
            stage, name=name, assets=assets, sensitivity=sensitivity, role=role, credentials=credentials
        )
        self._workflow = workflow
        self._step: Step | None = None

    def _fresh(self, plan: Plan) -> Step:
        workflow: Workflow = self._workflow or context.default_workflow()
        return Step(workflow, plan)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        code = getattr(function, "__code__", None)
        if isinstance(function, type) or code is None:
            raise ConfigError(f"@step goes on a function, not on {function!r}: decorate the method that does the work")
        if code.co_flags & _GENERATORS:
            raise ConfigError(
                f"@step cannot hold a generator: {function.__qualname__} would leave the step at each yield; "
                "use 'with securemfg.step(...)' around the loop that consumes it"
            )
        plan = self._plan.named(function.__qualname__)
        if code.co_flags & _COROUTINE:

            @functools.wraps(function)
            async def entered(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self._fresh(plan):
                    return await function(*args, **kwargs)  # type: ignore[misc]  # the flag says it is awaitable

        else:

            @functools.wraps(function)
            def entered(*args: P.args, **kwargs: P.kwargs) -> R:
                with self._fresh(plan):
                    return function(*args, **kwargs)

        return entered  # type: ignore[return-value]  # the same signature, synchronous or not

    def __enter__(self) -> Step:
        if self._step is not None:
            raise ConfigError("this step was entered before: a 'with' is single-use, write securemfg.step(...) again")
        self._step = self._fresh(self._plan)
        return self._step.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._step is not None
        self._step.__exit__(kind, error, trace)

    async def __aenter__(self) -> Step:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class Step:
    """A step while it runs: its plain data, and clients that hold to its rules."""

    __slots__ = ("_http", "before", "context", "plan", "tags", "token", "workflow")

    def __init__(self, workflow: Workflow, plan: Plan) -> None:
        self.workflow = workflow
        self._http: Any = None
        self.plan = plan
        self.context: StepContext
        self.token: Token[StepContext | None] | None = None
        self.tags: Any = None
        self.before: Any = None

    def __repr__(self) -> str:
        return f"<step {self.plan.name or self.plan.stage} ({self.plan.stage})>"

    def __enter__(self) -> Self:
        _lifecycle.enter(self.workflow, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            self._http.close()
        _lifecycle.leave(self.workflow, self, error)

    @property
    def name(self) -> str:
        return self.context.name

    @property
    def stage(self) -> Stage:
        return self.context.stage

    @property
    def sensitivity(self) -> Sensitivity:
        return self.context.sensitivity

    @property
    def http(self) -> httpx.Client:
        """An httpx.Client that speaks TLS 1.3 only; closed with the step."""
        if self._http is None:
            self._http = self.workflow.http_client()
        client: httpx.Client = self._http
        return client

    def aws(self, service: str, credential: str | None = None, **options: Any) -> Any:
        """A boto3 client for `service` on the step's short-lived STS credential (the only one, or the one named).

        Raises ConfigError when the step has none, or several and none was named.
        """
        return self.workflow.aws_client(self, service, credential, options)

    def credential(self, name: str) -> Credential:
        """The credential `name`: leased now or before, fresh enough to use. Its values are Secrets.

        Raises ConfigError when the step does not declare it, CredentialError when it cannot be had.
        """
        return self.workflow.credential(self, name)

    def audit(
        self,
        action: str,
        resource: str | None = None,
        *,
        kind: str | None = None,
        outcome: str = "success",
        reason: str | None = None,
        detail: Mapping[str, Scalar] | None = None,
    ) -> str | None:
        """Record an event of the user's own with this step's tags; returns its id."""
        return self.workflow.record(
            self.tags, action, resource=resource, kind=kind, outcome=outcome, reason=reason, detail=detail
        )
