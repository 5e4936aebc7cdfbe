"""The current step: where it reaches, how it is carried, and what code outside any step must assume."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from securemfg import context
from securemfg.context import StepContext, active, carry, current, enter, leave, strictest_active
from securemfg.labels import Sensitivity, Stage


def a_step(name: str = "train", sensitivity: Sensitivity = Sensitivity.CONFIDENTIAL) -> StepContext:
    return StepContext(step_id=name, name=name, stage=Stage.TRAINING, sensitivity=sensitivity)


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=10)


def test_no_step_runs_outside_any() -> None:
    assert current() is None
    assert active() == ()
    assert strictest_active() is Sensitivity.INTERNAL
    assert strictest_active(Sensitivity.PII) is Sensitivity.PII


def test_steps_nest_and_unwind() -> None:
    outer, inner = a_step("outer"), a_step("inner")
    first = enter(outer)
    second = enter(inner)
    assert current() is inner
    assert active() == (outer, inner)
    leave(inner, second)
    assert current() is outer
    leave(outer, first)
    assert (current(), active()) == (None, ())


def test_step_is_frozen_plain_data_that_travels_to_workers() -> None:
    step = a_step()
    assert pickle.loads(pickle.dumps(step)) == step
    with pytest.raises(AttributeError):
        step.role = "admin"  # type: ignore[misc]


def test_thread_has_no_step_unless_it_is_carried() -> None:
    step = a_step()
    token = enter(step)
    try:
        assert in_a_thread(current) is None
        assert in_a_thread(carry(current)) is step
        assert in_a_thread(active) == (step,)
    finally:
        leave(step, token)


def test_carried_function_keeps_the_step_of_when_it_was_carried_and_leaves_none_behind() -> None:
    step = a_step()
    token = enter(step)
    carried = carry(current)
    leave(step, token)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(carried).result(timeout=10) is step
        assert pool.submit(current).result(timeout=10) is None
    assert current() is None


def test_carried_function_passes_arguments_results_and_errors_and_keeps_its_name() -> None:
    def divide(a: int, b: int = 1) -> float:
        return a / b

    carried = carry(divide)
    assert carried.__name__ == "divide"
    assert carried(6, b=3) == 2
    with pytest.raises(ZeroDivisionError):
        carried(1, b=0)
    assert current() is None


def test_step_reaches_coroutines_and_to_thread_and_concurrent_tasks_keep_their_own() -> None:
    async def task(name: str) -> tuple[str, str]:
        step = a_step(name)
        token = enter(step)
        await asyncio.sleep(0)
        try:
            inside, thread = current(), await asyncio.to_thread(current)
            assert inside is step
            assert thread is step
            return inside.name, thread.name
        finally:
            leave(step, token)

    async def both() -> list[tuple[str, str]]:
        return await asyncio.gather(task("a"), task("b"))

    assert asyncio.run(both()) == [("a", "a"), ("b", "b")]
    assert active() == ()


def test_step_left_in_another_context_is_no_longer_active() -> None:
    step = a_step()
    token = contextvars.copy_context().run(enter, step)
    assert active() == (step,)
    leave(step, token)
    assert active() == ()


def test_code_outside_any_step_assumes_the_strictest_of_all_that_run() -> None:
    steps = [a_step("a", Sensitivity.PUBLIC), a_step("b", Sensitivity.PII), a_step("c", Sensitivity.INTERNAL)]
    tokens = [enter(step) for step in steps]
    try:
        assert strictest_active() is Sensitivity.INTERNAL  # here the innermost step is known
        assert in_a_thread(strictest_active) is Sensitivity.PII
    finally:
        for step, token in reversed(list(zip(steps, tokens, strict=True))):
            leave(step, token)


def test_code_outside_any_step_may_assume_public_when_only_public_steps_run() -> None:
    step = a_step(sensitivity=Sensitivity.PUBLIC)
    token = enter(step)
    try:
        assert in_a_thread(strictest_active) is Sensitivity.PUBLIC
    finally:
        leave(step, token)


def test_child_of_a_fork_is_not_stuck_on_a_lock_that_another_thread_held() -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with context._lock:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(10)  # a deadlock ends it by a signal, and the test fails
        active()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    release.set()
    thread.join()
    assert status == 0


def test_default_workflow_is_what_was_provided(monkeypatch) -> None:
    monkeypatch.setattr(context, "_provider", None)
    with pytest.raises(RuntimeError, match="not imported through its package"):
        context.default_workflow()
    context.provide(lambda: "the workflow")
    assert context.default_workflow() == "the workflow"
