"""Params that were logged before. MLflow takes a param again with an equal value only, and compares the stored texts.

No two sealed texts are equal: so where it refuses, the values are compared here.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any

from mlflow.exceptions import MlflowException

from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.tracking_calls import with_value
from securemfg.artifacts.tracking_values import ROOTS, Opening, Values


def unless_logged(
    values: Values,
    inner: Any,
    run_id: str,
    given: list[Any],
    hidden: list[Any],
    attempt: Callable[[Collection[str]], Any],
) -> Any:
    """Log params by `attempt`, which is told which keys to leave out: those that have an equal value already.

    Raises MLflow's own error, with the values in plain, when one would be changed.
    """
    try:
        return attempt(())
    except MlflowException as error:
        if not given or "param" not in str(error).lower():
            raise
        refused = error
    stored = inner.get_run(run_id).data.params
    opening, root = Opening(values), ROOTS.of(run_id, inner)
    before = {
        param.key: opening.text(stored[param.key], Subject("param", run_id, param.key), root)
        for param in given
        if param.key in stored
    }
    wanted = {param.key: str(param.value) for param in given}
    equal = {key for key, value in before.items() if value == wanted[key]}
    if equal:
        try:
            return attempt(equal)
        except MlflowException as error:
            refused = error
    sealed = {param.key: param.value for param in hidden}
    _say_in_plain(
        refused, [(stored[key], before[key]) for key in before] + [(sealed[key], wanted[key]) for key in wanted]
    )
    raise refused


def _say_in_plain(error: MlflowException, texts: Iterable[tuple[str, str]]) -> None:
    message = str(getattr(error, "message", error))
    for sealed, plain in texts:
        if sealed and sealed != plain:
            message = message.replace(sealed, str(plain))
    error.message = message
    error.args = (message, *error.args[1:])


_queues: list[tuple[weakref.ref[Any], Any]] = []
_queue_lock = threading.Lock()


def take_queue(inner: Any, values: Values) -> None:
    """The store's queue writes by a function of ours, which compares what was logged before."""
    queue: Any = getattr(inner, "_async_logging_queue", None)
    write = getattr(queue, "_logging_func", None)
    if write is None or getattr(write, "__securemfg__", False):
        return

    @functools.wraps(write)
    def written(run_id: str, metrics: Any = (), params: Any = (), tags: Any = (), **more: Any) -> Any:
        def attempt(but: Collection[str]) -> Any:
            return write(
                run_id=run_id,
                metrics=metrics,
                params=[param for param in params if param.key not in but],
                tags=tags,
                **more,
            )

        opening = Opening(values)
        given = [
            with_value(param, opening.text(param.value, Subject("param", run_id, param.key), ROOTS.of(run_id, inner)))
            for param in params
        ]
        return unless_logged(values, inner, run_id, given, list(params), attempt)

    written.__securemfg__ = True  # type: ignore[attr-defined]
    with _queue_lock:
        if getattr(queue._logging_func, "__securemfg__", False):
            return
        _queues.append((weakref.ref(queue), write))
        queue._logging_func = written


def give_back_queues() -> None:
    """MLflow's queues write by its own functions again."""
    with _queue_lock:
        while _queues:
            reference, write = _queues.pop()
            queue = reference()
            if queue is not None:
                queue._logging_func = write
