"""Data sets that a run was given, and experiments: schemas, sources, profiles and tags.

MLflow keeps one data set of a name and digest for all runs of an experiment, so what is sealed of it carries its key.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.tracking_calls import Call, Handler, Opener, limit, open_tags, pack, set_run_tags, with_value
from securemfg.artifacts.tracking_tags import INPUTS, stays
from securemfg.artifacts.tracking_values import REDACTED, ROOTS, SHOWN, Opening


def _log_inputs(call: Call) -> Any:
    datasets = call.get("datasets")
    if call.rule.plain or not datasets:
        return call.proceed()
    result = call.proceed(datasets=[_hidden_input(call, one) for one in datasets])
    real = [tag for one in datasets if (tag := _real_tags(call, call.get("run_id"), one)) is not None]
    if real:
        set_run_tags(call, call.get("run_id"), real)
    return result


def _real_tags(call: Call, run_id: str, given: Any) -> Any:
    """A run's tag with those of one of its data sets: MLflow's 500 characters for each are too few for a sealed one."""
    from mlflow.entities import RunTag

    hidden = {tag.key: tag.value for tag in given.tags or () if not stays(tag.key, tag.value)}
    if not hidden or call.rule.redacts:
        return None
    key = _inputs_key(given.dataset)
    root, most = ROOTS.of(run_id, call.inner), limit("MAX_TAG_VAL_LENGTH", 5000)
    return RunTag(key, call.values.seal(pack(hidden), Subject("tag", run_id, key), root=root, most=most))


def _inputs_key(dataset: Any) -> str:
    return f"{INPUTS}{hashlib.sha256(f'{dataset.name}/{dataset.digest}'.encode()).hexdigest()[:16]}"


def _hidden_input(call: Call, given: Any) -> Any:
    hidden = copy.copy(given)
    dataset = copy.copy(given.dataset)
    about = f"{dataset.name}/{dataset.digest}"  # MLflow keeps one of that name and digest for all runs
    for field in ("schema", "source", "profile"):
        setattr(dataset, f"_{field}", call.hide(getattr(dataset, field, None), Subject("dataset", about, field)))
    hidden._dataset = dataset
    shown = REDACTED if call.rule.redacts else SHOWN
    hidden._tags = [tag if stays(tag.key, tag.value) else with_value(tag, shown) for tag in given.tags or []]
    return hidden


# -- experiments ------------------------------------------------------------------------------------------------------


def _hidden_experiment_tag(call: Call, experiment_id: str, tag: Any) -> Any:
    if stays(tag.key, tag.value):
        return tag
    subject = Subject("experiment-tag", experiment_id, tag.key)
    return with_value(tag, call.hide(tag.value, subject, most=limit("MAX_EXPERIMENT_TAG_VAL_LENGTH", 5000)))


def _create_experiment(call: Call) -> Any:
    tags = list(call.get("tags") or ())
    later = [] if call.rule.plain else [tag for tag in tags if not stays(tag.key, tag.value)]
    if not later:
        return call.proceed()
    for tag in later:  # what cannot be sealed is refused before anything is made
        _hidden_experiment_tag(call, "", tag)
    made = call.proceed(tags=[tag for tag in tags if tag not in later])
    for tag in later:
        call.inner.set_experiment_tag(made, _hidden_experiment_tag(call, str(made), tag))
    return made


def _set_experiment_tag(call: Call) -> Any:
    return call.proceed(tag=_hidden_experiment_tag(call, str(call.get("experiment_id")), call.get("tag")))


def open_input(opening: Opening, one: Any, tags: Mapping[str, str]) -> None:
    dataset = one.dataset
    for field in ("schema", "source", "profile"):
        subject = Subject("dataset", f"{dataset.name}/{dataset.digest}", field)
        setattr(dataset, f"_{field}", opening.text(getattr(dataset, field, None), subject))
    real = tags.get(_inputs_key(dataset))
    if real is not None:
        with contextlib.suppress(ValueError):  # it could not be opened
            texts = json.loads(real)
            one._tags = [
                with_value(tag, texts[tag.key]) if tag.value == SHOWN and tag.key in texts else tag for tag in one.tags
            ]


def _open_experiment(opening: Opening, experiment: Any) -> None:
    open_tags(opening, experiment.tags, "experiment-tag", str(experiment.experiment_id))


HANDLERS: Final[Mapping[str, Handler]] = {
    "log_inputs": _log_inputs,
    "create_experiment": _create_experiment,
    "set_experiment_tag": _set_experiment_tag,
}
OPENERS: Final[Mapping[str, Opener]] = {"Experiment": _open_experiment}
PASSING: Final = frozenset({"rename_experiment"})
