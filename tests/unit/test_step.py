"""The step as its author sees it: a decorator and a `with`, for sync and async code, that leave the code as it was."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import securemfg
from securemfg import Sensitivity, Stage, context
from securemfg.errors import ConfigError
from tests.parts.trail import actions, events, settings


def test_signature_documentation_and_return_value_stay_those_of_the_function() -> None:
    @securemfg.step(Stage.TRAINING)
    def train(epochs: int = 20, *, rate: float) -> float:
        """Train."""
        return epochs * rate

    assert str(inspect.signature(train)) == "(epochs: 'int' = 20, *, rate: 'float') -> 'float'"
    assert (train.__name__, train.__doc__, train.__module__) == ("train", "Train.", __name__)
    assert train(3, rate=0.5) == 1.5
    assert train(rate=2.0) == 40.0
    assert not inspect.iscoroutinefunction(train)


async def test_coroutine_function_stays_one_and_its_value_comes_back() -> None:
    @securemfg.step("inference")
    async def predict(x: int, /) -> int:
        await asyncio.sleep(0)
        return x + securemfg.current().stage.count("inference")

    assert inspect.iscoroutinefunction(predict)
    assert str(inspect.signature(predict)) == "(x: 'int', /) -> 'int'"
    assert await predict(41) == 42


async def test_concurrent_tasks_each_see_their_own_step() -> None:
    inside = asyncio.Event()
    seen: dict[int, tuple[str, str]] = {}

    @securemfg.step("inference")
    async def predict(number: int) -> None:
        before = securemfg.current().context.step_id
        if number == 7:
            inside.set()
        await inside.wait()  # all eight are inside at once
        seen[number] = before, securemfg.current().context.step_id

    await asyncio.gather(*(predict(number) for number in range(8)))
    assert all(before == after for before, after in seen.values())
    assert len({before for before, _ in seen.values()}) == 8
    assert context.active() == ()


async def test_async_with_is_the_same_step() -> None:
    async with securemfg.step("inference") as step:
        await asyncio.sleep(0)
        assert securemfg.current() is step
    assert actions() == ["step.started", "step.finished"]


def test_every_call_makes_a_fresh_step() -> None:
    @securemfg.step("training")
    def train() -> securemfg.Step:
        return securemfg.current()

    first, second = train(), train()
    assert first is not second
    assert first.context.step_id != second.context.step_id
    assert [event["session"] for event in events("step.started")] == [first.context.step_id, second.context.step_id]


def test_recursion_and_nesting_come_back_to_the_outer_step() -> None:
    names = []

    @securemfg.step("evaluation", sensitivity="pii")
    def inner() -> None:
        names.append(securemfg.current().name)

    with securemfg.step("training", name="outer", sensitivity="public") as outer:
        assert context.strictest_active() is Sensitivity.PUBLIC
        inner()
        names.append(securemfg.current().name)
        assert securemfg.current() is outer
    assert names == [inner.__qualname__, "outer"]
    assert context.current() is None
    by_session = [(event["step"], event["action"], event["sensitivity"]) for event in events("step.")]
    assert by_session == [
        ("outer", "step.started", "public"),
        (inner.__qualname__, "step.started", "pii"),
        (inner.__qualname__, "step.finished", "pii"),
        ("outer", "step.finished", "public"),
    ]


def test_a_with_is_single_use() -> None:
    once = securemfg.step("training")
    with once:
        pass
    with pytest.raises(ConfigError, match="single-use"):
        with once:
            pytest.fail("the body ran a second time")
    assert actions() == ["step.started", "step.finished"]


def test_one_step_may_decorate_several_functions_and_each_keeps_its_name() -> None:
    training = securemfg.step("training")

    @training
    def fit() -> str:
        return securemfg.current().name

    @training
    def tune() -> str:
        return securemfg.current().name

    assert (fit(), tune()) == (fit.__qualname__, tune.__qualname__)


def test_name_is_the_argument_else_the_function_else_the_stage() -> None:
    @securemfg.step("training", name="press model")
    def named() -> str:
        return securemfg.current().name

    assert named() == "press model"
    with securemfg.step("training") as step:
        assert step.name == "training"


def test_methods_and_class_methods_can_be_decorated() -> None:
    class Model:
        def __init__(self) -> None:
            self.fitted = 0

        @securemfg.step("training")
        def fit(self, by: int = 1) -> int:
            self.fitted += by
            return self.fitted

        @classmethod
        @securemfg.step("training")
        def make(cls) -> Model:
            return cls()

        @staticmethod
        @securemfg.step("training")
        def add(a: int, b: int) -> int:
            return a + b

    model = Model.make()
    assert (model.fit(), model.fit(by=2), Model.add(1, 2)) == (1, 3, 3)


def test_a_generator_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(ConfigError, match=r"rows would leave the step at each yield; use 'with securemfg.step"):

        @securemfg.step("ingest")
        def rows():
            yield 1


def test_an_async_generator_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(ConfigError, match="cannot hold a generator"):

        @securemfg.step("ingest")
        async def rows():
            yield 1


class AnyCallable:
    def __call__(self) -> int:
        return 1


@pytest.mark.parametrize("thing", [AnyCallable, AnyCallable(), partial(int, "1"), len, 3, staticmethod(len)])
def test_what_is_no_function_is_refused(thing: object) -> None:
    with pytest.raises(ConfigError, match="goes on a function, not on"):
        securemfg.step("training")(thing)


@pytest.mark.parametrize("what", ["assets", "credentials"])
def test_text_in_place_of_a_list_is_refused_with_the_list_to_write(what: str) -> None:
    with pytest.raises(ConfigError, match=rf"{what}= takes a list of names, got the text 'x': write \['x'\]"):
        securemfg.step("training", **{what: "x"})


def test_unknown_stage_and_sensitivity_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown stage 'trainning'; did you mean 'training'"):
        securemfg.step("trainning")
    with pytest.raises(ConfigError, match="unknown sensitivity 'confidental'; did you mean 'confidential'"):
        securemfg.step("training", sensitivity="confidental")


def test_the_decorator_takes_no_positional_function() -> None:
    with pytest.raises(ConfigError, match="unknown stage"):

        @securemfg.step  # the brackets were forgotten
        def train() -> None: ...


def test_a_thread_sees_no_step_unless_it_is_carried() -> None:
    def name() -> str | None:
        here = context.current()
        return here.name if here else None

    with securemfg.step("training", name="outer") as step, ThreadPoolExecutor(1) as pool:
        assert pool.submit(name).result() is None
        assert pool.submit(context.carry(name)).result() == "outer"
        assert pool.submit(context.carry(securemfg.current)).result() is step
        with pytest.raises(ConfigError, match="no current step here.*carry it with securemfg.context.carry"):
            pool.submit(securemfg.current).result()
        pool.submit(context.carry(lambda: securemfg.audit.event("weld.seen"))).result()
        assert pool.submit(name).result() is None  # the worker thread keeps nothing
    assert events("weld.seen")[0]["session"] == step.context.step_id


async def test_to_thread_carries_the_step_by_itself() -> None:
    with securemfg.step("training") as step:
        assert await asyncio.to_thread(securemfg.current) is step


def test_steps_of_several_threads_do_not_mix() -> None:
    together = threading.Barrier(6)

    @securemfg.step("training")
    def work(number: int) -> tuple[str, str]:
        together.wait(20)
        mine = securemfg.current().context.step_id
        securemfg.audit.event("worked", str(number))
        together.wait(20)
        return mine, securemfg.current().context.step_id

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(work, range(6)))
    assert all(before == after for before, after in done)
    sessions = {event["resource"]["id"]: event["session"] for event in events("worked")}
    assert sessions == {str(number): before for number, (before, _) in enumerate(done)}


def test_outside_of_a_step_current_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="there is no current step here"):
        securemfg.current()


def test_an_exception_of_the_body_comes_out_as_it_was() -> None:
    class Broken(Exception):
        pass

    mine = Broken("canary-in-the-message")

    @securemfg.step("training")
    def train() -> None:
        raise mine

    with pytest.raises(Broken) as caught:
        train()
    assert caught.value is mine
    assert not hasattr(mine, "__notes__")
    assert mine.__cause__ is None


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_or_an_interrupt_in_the_body_is_a_failed_step(end: BaseException) -> None:
    with pytest.raises(type(end)) as caught:
        with securemfg.step("training"):
            raise end
    assert caught.value is end
    assert [(e["action"], e["reason"], e["outcome"]) for e in events("step.f")] == [
        ("step.failed", type(end).__name__, "failure")
    ]


async def test_a_cancelled_task_is_a_failed_step() -> None:
    @securemfg.step("inference")
    async def wait() -> None:
        await asyncio.Event().wait()

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert actions() == ["step.started"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events("step.failed")[0]["reason"] == "asyncio.exceptions.CancelledError"
    assert context.active() == ()


def test_a_refused_step_leaves_nothing_on() -> None:
    settings('[keys]\ndefault = "local:k"\n')
    with pytest.raises(ConfigError, match="credential 'features' is not in the settings"):
        with securemfg.step("training", credentials=["features"]):
            pytest.fail("the body ran")
    assert context.current() is None
    assert context.active() == ()
    from securemfg.transport import enforcement

    assert not enforcement.active()


def test_repr_shows_names_and_nothing_else() -> None:
    with securemfg.step("training", name="press model") as step:
        assert repr(step) == "<step press model (training)>"
