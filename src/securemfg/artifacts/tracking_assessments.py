"""Assessments of traces: values, reasons, metadata, errors, and who gave them. Numbers stay, as metrics do."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Final

from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.tracking_calls import Call, Handler, Opener, alias, pack
from securemfg.artifacts.tracking_tags import stays
from securemfg.artifacts.tracking_values import Opening, is_marked

_SOURCE: Final = "securemfg.source"  # of an assessment's metadata: who gave it
_NOBODY: Final = frozenset({"", "default"})


def _hide_json(call: Call, value: Any, subject: Subject) -> Any:
    """A number or a yes or no stays, as metrics do."""
    return value if value is None or isinstance(value, bool | int | float) else call.hide(pack(value), subject)


def _open_json(opening: Opening, value: Any, subject: Subject) -> Any:
    text = opening.text(value, subject)
    return text if text is value or is_marked(text) else json.loads(text)


def _about(name: str, trace_id: str, field: str) -> Subject:
    return Subject("assessment", trace_id, f"{name}/{field}")


def _hidden_value(call: Call, value: Any, name: str, trace_id: str) -> Any:
    """The value, and the error, of a feedback or an expectation."""
    if value is None:
        return None
    hidden = copy.copy(value)
    hidden.value = _hide_json(call, value.value, _about(name, trace_id, "value"))
    if getattr(value, "error", None) is not None:
        hidden.error = _hidden_error(call, value.error, name, trace_id)
    return hidden


def _hidden_error(call: Call, error: Any, name: str, trace_id: str) -> Any:
    hidden = copy.copy(error)
    for field in ("error_message", "stack_trace"):
        setattr(hidden, field, call.hide(getattr(error, field, None), _about(name, trace_id, field)))
    return hidden


def _hidden_metadata(call: Call, metadata: Mapping[str, str] | None, name: str, trace_id: str) -> Any:
    return metadata and {
        key: value if stays(key) else call.hide(value, _about(name, trace_id, f"metadata/{key}"))
        for key, value in metadata.items()
    }


def hidden_assessment(call: Call, given: Any, trace_id: str) -> Any:
    hidden, name = copy.copy(given), given.name
    hidden.feedback = _hidden_value(call, given.feedback, name, trace_id)
    hidden.expectation = _hidden_value(call, given.expectation, name, trace_id)
    if getattr(given, "error", None) is not None:
        hidden.error = _hidden_error(call, given.error, name, trace_id)
    hidden.rationale = call.hide(given.rationale, _about(name, trace_id, "rationale"))
    hidden.metadata = _hidden_metadata(call, given.metadata, name, trace_id)
    source = getattr(given.source, "source_id", None)
    if source and source not in _NOBODY and call.rule.names:
        hidden.source = copy.copy(given.source)
        hidden.source.source_id = alias("source", source)
        if not call.rule.redacts:
            text = call.values.seal(source, _about(name, trace_id, "source"))
            hidden.metadata = {**(hidden.metadata or {}), _SOURCE: text}
    return hidden


def _create_assessment(call: Call) -> Any:
    given = call.get("assessment")
    return (
        call.proceed() if call.rule.plain else call.proceed(assessment=hidden_assessment(call, given, given.trace_id))
    )


def _update_assessment(call: Call) -> Any:
    """What is sealed is bound to the assessment's name: under another one, all of it is sealed anew."""
    if call.rule.plain:
        return call.proceed()
    trace_id = call.get("trace_id")
    after = copy.copy(call.inner.get_assessment(trace_id, call.get("assessment_id")))
    renamed = call.get("name") not in {None, after.name}
    if renamed:
        open_assessment(Opening(call.values), after, trace_id)
        after.name = call.get("name")
        after.metadata = {**(after.metadata or {}), **(call.get("metadata") or {})}
    else:
        after.metadata, after.source = call.get("metadata"), None
    for field in ("expectation", "feedback", "rationale"):
        value = call.get(field)
        if value is not None or not renamed:
            setattr(after, field, value)
    hidden = hidden_assessment(call, after, trace_id)
    changed = {field: getattr(hidden, field) for field in ("expectation", "feedback", "rationale", "metadata")}
    return call.proceed(**{field: value for field, value in changed.items() if value is not None})


def open_assessment(opening: Opening, assessment: Any, trace_id: str | None = None) -> None:
    name, trace_id = assessment.name, trace_id or assessment.trace_id or ""
    for one in (assessment.feedback, assessment.expectation):
        if one is not None:
            one.value = _open_json(opening, one.value, _about(name, trace_id, "value"))
    errors = [getattr(assessment.feedback, "error", None), getattr(assessment, "error", None)]
    for error in {id(error): error for error in errors if error is not None}.values():
        for field in ("error_message", "stack_trace"):
            setattr(error, field, opening.text(getattr(error, field, None), _about(name, trace_id, field)))
    assessment.rationale = opening.text(assessment.rationale, _about(name, trace_id, "rationale"))
    metadata = dict(assessment.metadata or {})
    source = metadata.pop(_SOURCE, None)
    if source is not None and assessment.source is not None:
        assessment.source = copy.copy(assessment.source)
        assessment.source.source_id = opening.text(source, _about(name, trace_id, "source"))
    assessment.metadata = {
        key: opening.text(value, _about(name, trace_id, f"metadata/{key}")) for key, value in metadata.items()
    } or None


HANDLERS: Final[Mapping[str, Handler]] = {
    "create_assessment": _create_assessment,
    "update_assessment": _update_assessment,
}
OPENERS: Final[Mapping[str, Opener]] = {"Assessment": open_assessment}
