"""Runs: params, tags, names and the list of models.

A run's values are sealed for the run key of its artifact root. Its id is known only once it was made, so the tags that
it is made with follow in a second call.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.tracking_calls import (
    Call,
    Handler,
    Opener,
    limit,
    open_tags,
    pack,
    set_run_tags,
    shown_name,
    with_value,
)
from securemfg.artifacts.tracking_inputs import open_input
from securemfg.artifacts.tracking_params import take_queue, unless_logged
from securemfg.artifacts.tracking_tags import HISTORY, INPUTS, REAL_NAME, RUN_NAME, brief_history, stays
from securemfg.artifacts.tracking_values import REDACTED, ROOTS, Opening, root_at


def _create_run(call: Call) -> Any:
    if call.rule.plain:
        return call.proceed()
    tags, later = [], []
    name: Any = call.get("run_name") or next((tag.value for tag in call.get("tags") or () if tag.key == RUN_NAME), None)
    shown: Any = shown_name() if name and call.rule.names else name
    for tag in call.get("tags") or ():
        if tag.key == RUN_NAME:
            tags.append(with_value(tag, shown))
        elif stays(tag.key, tag.value):
            tags.append(tag)
        elif tag.key == HISTORY:
            tags.append(with_value(tag, brief_history(tag.value)))
        elif call.rule.redacts:
            tags.append(with_value(tag, REDACTED))
        else:
            later.append(tag)
    changed: dict[str, Any] = {"run_name": shown} if call.get("run_name") else {}
    run = call.proceed(tags=tags, **changed)
    ROOTS.remember(run.info.run_id, run.info.artifact_uri)
    real = [_real_name(call, run.info.run_id, shown, name)] if name != shown and not call.rule.redacts else []
    if later or real:
        try:
            set_run_tags(call, run.info.run_id, [*(_hidden_tag(call, run.info.run_id, tag) for tag in later), *real])
        except BaseException:
            with contextlib.suppress(Exception):  # the run was made, and is not what was asked for
                _fail(call.inner, run.info)
            raise
    run.data.tags.update({tag.key: tag.value for tag in later})
    if real:
        _name(run, name)
    return run


def _fail(inner: Any, info: Any) -> None:
    from mlflow.entities import RunStatus

    inner.update_run_info(info.run_id, RunStatus.FAILED, int(time.time() * 1000), None)


def _real_name(call: Call, run_id: str, shown: str, name: str) -> Any:
    from mlflow.entities import RunTag

    text = call.values.seal(
        pack({"shown": shown, "name": name}),
        Subject("run-name", run_id, RUN_NAME),
        root=ROOTS.of(run_id, call.inner),
        most=limit("MAX_TAG_VAL_LENGTH", 5000),
    )
    return RunTag(REAL_NAME, text)


def _hidden_tag(call: Call, run_id: str, tag: Any) -> Any:
    if stays(tag.key, tag.value):
        return tag
    if tag.key == HISTORY and not call.rule.plain:
        return with_value(tag, brief_history(tag.value))
    where = {"root": ROOTS.of(run_id, call.inner), "most": limit("MAX_TAG_VAL_LENGTH", 5000)}
    return with_value(tag, call.hide(tag.value, Subject("tag", run_id, tag.key), **where))


def _hidden_param(call: Call, run_id: str, param: Any) -> Any:
    where = {"root": ROOTS.of(run_id, call.inner), "most": limit("MAX_PARAM_VAL_LENGTH", 500)}
    return with_value(param, call.hide(param.value, Subject("param", run_id, param.key), **where))


def _log_param(call: Call) -> Any:
    run_id, param = call.get("run_id"), call.get("param")
    hidden = _hidden_param(call, run_id, param)

    def attempt(but: Collection[str]) -> Any:
        return None if param.key in but else call.proceed(param=hidden)

    return unless_logged(call.values, call.inner, run_id, [param], [hidden], attempt)


def _set_tag(call: Call) -> Any:
    run_id, tag = call.get("run_id"), call.get("tag")
    tags = _renamed(call, run_id, [tag])
    result = call.proceed(tag=tags[0])
    if len(tags) > 1:
        call.inner.set_tag(run_id, tags[1])
    return result


def _renamed(call: Call, run_id: str, tags: Iterable[Any]) -> list[Any]:
    """Tags as they are kept; after one that names the run, its real name."""
    kept = []
    for tag in tags:
        if tag.key == RUN_NAME and call.rule.names:
            shown = shown_name()
            kept.append(with_value(tag, shown))
            if not call.rule.redacts:
                kept.append(_real_name(call, run_id, shown, tag.value))
        else:
            kept.append(tag if tag.key == RUN_NAME else _hidden_tag(call, run_id, tag))
    return kept


def _log_batch(call: Call) -> Any:
    run_id, params = call.get("run_id"), list(call.get("params") or ())
    hidden = [_hidden_param(call, run_id, param) for param in params]
    tags = _renamed(call, run_id, call.get("tags") or ())

    def attempt(but: Collection[str]) -> Any:
        return call.proceed(params=[param for param in hidden if param.key not in but], tags=tags)

    return unless_logged(call.values, call.inner, run_id, params, hidden, attempt)


def _log_batch_async(call: Call) -> Any:
    """Sealed here, in the caller's step: what waits in the queue is ciphertext."""
    run_id = call.get("run_id")
    take_queue(call.inner, call.values)
    params = [_hidden_param(call, run_id, param) for param in call.get("params") or ()]
    return call.proceed(params=params, tags=_renamed(call, run_id, call.get("tags") or ()))


def _alone_async(kind: str) -> Handler:
    def logged(call: Call) -> Any:
        given: dict[str, Any] = {"metrics": [], "params": [], "tags": [], kind: [call.get(kind.removesuffix("s"))]}
        return call.store.log_batch_async(run_id=call.get("run_id"), **given)

    return logged


def _update_run_info(call: Call) -> Any:
    name = call.get("run_name")
    if not name or not call.rule.names:
        return call.proceed()
    shown = shown_name()
    info = call.proceed(run_name=shown)
    if not call.rule.redacts:
        call.inner.set_tag(call.get("run_id"), _real_name(call, call.get("run_id"), shown, name))
        _set_name(info, name)
    return info


def _record_logged_model(call: Call) -> Any:
    """MLflow keeps a list of a run's models in a tag: only what its pages show of each."""
    if call.rule.plain:
        return call.proceed()
    model = copy.copy(call.get("mlflow_model"))
    for name in ("signature", "saved_input_example_info", "metadata", "resources", "prompts"):
        if getattr(model, name, None) is not None:
            with contextlib.suppress(AttributeError):
                setattr(model, name, None)
    model.flavors = {name: {} for name in model.flavors or {}}
    return call.proceed(mlflow_model=model)


# -- in ---------------------------------------------------------------------------------------------------------------


def _open_run(opening: Opening, run: Any) -> None:
    info, data = run.info, run.data
    ROOTS.remember(info.run_id, info.artifact_uri)
    root = functools.partial(root_at, info.artifact_uri)
    if data is not None:
        real = data.tags.pop(REAL_NAME, None)
        open_tags(opening, data.params, "param", info.run_id, root)
        open_tags(opening, data.tags, "tag", info.run_id, root)
        if real is not None:
            _restore_name(run, opening.text(real, Subject("run-name", info.run_id, RUN_NAME), root))
    for one in getattr(getattr(run, "inputs", None), "dataset_inputs", None) or ():
        open_input(opening, one, data.tags if data is not None else {})
    for key in [key for key in (data.tags if data is not None else ()) if key.startswith(INPUTS)]:
        del data.tags[key]


def _restore_name(run: Any, text: str) -> None:
    """A run's own name, unless it was given another one since."""
    try:
        names = json.loads(text)
        shown, name = names["shown"], names["name"]
    except (ValueError, KeyError, TypeError):  # it could not be opened
        return
    if getattr(run.info, "run_name", None) == shown or run.data.tags.get(RUN_NAME) == shown:
        _name(run, name)


def _name(run: Any, name: str) -> None:
    _set_name(run.info, name)
    if RUN_NAME in run.data.tags:
        run.data.tags[RUN_NAME] = name


def _set_name(info: Any, name: str) -> None:
    for attribute in ("_run_name", "_name"):
        if hasattr(info, attribute):
            setattr(info, attribute, name)


HANDLERS: Final[Mapping[str, Handler]] = {
    "create_run": _create_run,
    "log_param": _log_param,
    "log_param_async": _alone_async("params"),
    "set_tag": _set_tag,
    "set_tag_async": _alone_async("tags"),
    "log_batch": _log_batch,
    "log_batch_async": _log_batch_async,
    "update_run_info": _update_run_info,
    "record_logged_model": _record_logged_model,
}
OPENERS: Final[Mapping[str, Opener]] = {"Run": _open_run}
PASSING: Final = frozenset(
    {
        "log_metric",
        "log_metric_async",
        "log_outputs",
        "link_traces_to_run",
        "unlink_traces_from_run",
        "filter_active_experiment_ids",
        "end_async_logging",
        "flush_async_logging",
        "shut_down_async_logging",
    }
)
