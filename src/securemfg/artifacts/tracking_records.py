"""Data sets for evaluating language models: their records and tags.

MLflow finds a record by the text of its inputs. No two sealed texts are equal, so one that is stored already keeps its
sealed inputs, and what MLflow would merge is merged before it is sealed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from securemfg.artifacts.sealing import Subject, is_sealed
from securemfg.artifacts.tracking_calls import Call, Handler, Opener, open_tags, pack
from securemfg.artifacts.tracking_tags import stays
from securemfg.artifacts.tracking_values import REDACTED, Opening, is_marked

_SEALED: Final = "securemfg"  # the one key of a dict that is sealed
_RECORD: Final = "record"
_TAG: Final = "evaluation-dataset-tag"
_FIELDS: Final = ("outputs", "expectations")
_TRACE: Final = "trace_id"  # of a record's source: an id, by which MLflow shows where it comes from


def _create(call: Call) -> Any:
    tags = dict(call.get("tags") or {})
    later = {} if call.rule.plain else {key: value for key, value in tags.items() if not stays(key, value)}
    if not later:
        return call.proceed()
    made = call.proceed(tags={key: value for key, value in tags.items() if key not in later})
    try:
        call.inner.set_dataset_tags(made.dataset_id, _tags(call, made.dataset_id, later))
    except BaseException:
        with contextlib.suppress(Exception):
            call.inner.delete_dataset(made.dataset_id)
        raise
    made.tags = {**(made.tags or {}), **later}
    return made


def _tags(call: Call, dataset_id: str, tags: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if stays(key, value) else call.hide(value, Subject(_TAG, dataset_id, key))
        for key, value in tags.items()
    }


def _set_tags(call: Call) -> Any:
    return call.proceed(tags=_tags(call, call.get("dataset_id"), call.get("tags") or {}))


# -- records ----------------------------------------------------------------------------------------------------------


def _upsert(call: Call) -> Any:
    if call.rule.plain:
        return call.proceed()
    dataset_id, given = call.get("dataset_id"), call.get("records")
    known = {} if call.rule.redacts else _known(call, dataset_id)
    return call.proceed(records=[_hidden(call, dataset_id, record, known) for record in given])


def _known(call: Call, dataset_id: str) -> dict[str, tuple[dict[str, Any], Any]]:
    """The stored records by what their inputs are: the sealed inputs, and the record opened."""
    load = getattr(call.inner, "_load_dataset_records", None)
    if load is None:
        return {}
    found, _ = load(dataset_id, max_results=None)
    stored = [record.inputs for record in found]
    for record in found:
        _open_record(Opening(call.values), record)
    return {_canonical(record.inputs): (sealed, record) for sealed, record in zip(stored, found, strict=True)}


def _canonical(inputs: Any) -> str:
    return json.dumps(inputs, sort_keys=True, default=str)


def _hidden(call: Call, dataset_id: str, record: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    inputs = record.get("inputs", {})
    stored, before = known.get(_canonical(inputs), (None, None))
    hidden = dict(record)
    hidden["inputs"] = stored or _sealed(call, inputs, Subject(_RECORD, dataset_id, "inputs"))
    of = _of(hidden["inputs"])
    for field in _FIELDS:
        value = record.get(field)
        earlier = getattr(before, field, None)
        if field == "expectations" and isinstance(earlier, dict) and isinstance(value, dict):
            value = {**earlier, **value}
        if value is not None:
            hidden[field] = _sealed(call, value, Subject(_RECORD, dataset_id, f"{field}/{of}"))
    if record.get("tags"):
        hidden["tags"] = {
            key: value if stays(key, value) else call.hide(value, Subject(_RECORD, dataset_id, f"tags/{key}/{of}"))
            for key, value in record["tags"].items()
        }
    source = record.get("source")
    if source is not None:
        hidden["source"] = _hidden_source(call, source, Subject(_RECORD, dataset_id, f"source/{of}"))
    return hidden


def _hidden_source(call: Call, source: Any, subject: Subject) -> Any:
    given = source if isinstance(source, dict) else source.to_dict()
    data = given.get("source_data") or {}
    kept = {_TRACE: data[_TRACE]} if _TRACE in data else {}
    rest = {key: value for key, value in data.items() if key != _TRACE}
    return {**given, "source_data": {**kept, **(_sealed(call, rest, subject) if rest else {})}}


def _sealed(call: Call, value: Any, subject: Subject) -> dict[str, Any]:
    return {_SEALED: REDACTED if call.rule.redacts else call.hide(pack(value), subject)}


def _of(inputs: Mapping[str, Any]) -> str:
    """A digest of the sealed inputs: what belongs to them is bound to it. Of ciphertext, so nothing can be guessed."""
    return hashlib.sha256(str(inputs.get(_SEALED)).encode()).hexdigest()[:32]


def _open_record(opening: Opening, record: Any) -> None:
    inputs, dataset_id = record.inputs, record.dataset_id
    if not _is_sealed(inputs):
        return
    of = _of(inputs)
    record.inputs = _opened(opening, inputs, Subject(_RECORD, dataset_id, "inputs"))
    for field in _FIELDS:
        value = getattr(record, field, None)
        if _is_sealed(value):
            setattr(record, field, _opened(opening, value, Subject(_RECORD, dataset_id, f"{field}/{of}")))
    for key, value in list((record.tags or {}).items()):
        record.tags[key] = opening.text(value, Subject(_RECORD, dataset_id, f"tags/{key}/{of}"))
    data = getattr(record.source, "source_data", None)
    if _is_sealed(data):
        rest = _opened(opening, {_SEALED: data.pop(_SEALED)}, Subject(_RECORD, dataset_id, f"source/{of}"))
        data.update(rest)


def _is_sealed(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and is_sealed(value.get(_SEALED))


def _opened(opening: Opening, value: dict[str, Any], subject: Subject) -> Any:
    text = opening.text(value[_SEALED], subject)
    return {_SEALED: text} if is_marked(text) else json.loads(text)


def _open_dataset(opening: Opening, dataset: Any) -> None:
    if isinstance(dataset.tags, dict):
        open_tags(opening, dataset.tags, _TAG, dataset.dataset_id)


HANDLERS: Final[Mapping[str, Handler]] = {
    "create_dataset": _create,
    "set_dataset_tags": _set_tags,
    "upsert_dataset_records": _upsert,
}
OPENERS: Final[Mapping[str, Opener]] = {"EvaluationDataset": _open_dataset, "DatasetRecord": _open_record}
PASSING: Final = frozenset({"add_dataset_to_experiments", "remove_dataset_from_experiments"})
OWN: Final = frozenset({"_load_dataset_records"})
