"""Traces: previews, metadata, tags and ids that a user gave.

What a trace says of itself is sealed in tags, in parts: MLflow cuts its other fields at 250 characters. It carries its
key, as spans do: they are sent before the trace is made, and one key of the process serves them all.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Final

from securemfg.artifacts.location import Root
from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.tracking_assessments import hidden_assessment, open_assessment
from securemfg.artifacts.tracking_calls import Call, Handler, Opener, alias, limit, pack
from securemfg.artifacts.tracking_spans import opened_span
from securemfg.artifacts.tracking_tags import TRACE, stays
from securemfg.artifacts.tracking_values import REDACTED, SHOWN, Opening, is_marked, root_at

_SESSION: Final = "mlflow.trace.session"
_PART: Final = 4000  # characters in one tag
_PREVIEWS: Final = ("request_preview", "response_preview")
_REQUEST: Final = "client_request_id"


def _start_trace(call: Call) -> Any:
    info = call.get("trace_info")
    if call.rule.plain:
        return call.proceed()
    if info is None:  # MLflow 2: the trace has no id yet, and what is known is said again at its end
        return call.proceed(
            **{
                name: {key: value if stays(key, value) else SHOWN for key, value in (call.get(name) or {}).items()}
                for name in ("request_metadata", "tags")
            }
        )
    hidden = copy.copy(info)
    content: dict[str, Any] = {"fields": {}}
    for field in (*_PREVIEWS, _REQUEST):
        value = getattr(info, field, None)
        if value and (field != _REQUEST or call.rule.names):
            shown = alias("request", value) if field == _REQUEST else REDACTED if call.rule.redacts else SHOWN
            content["fields"][field] = [shown, value]
            setattr(hidden, field, shown)
    hidden.trace_metadata, content["metadata"] = _hidden_texts(call, info.trace_metadata)
    hidden.tags, content["tags"] = _hidden_texts(call, info.tags)
    hidden.tags.update(_parts(call, info.trace_id, content))
    hidden.assessments = [hidden_assessment(call, one, info.trace_id) for one in info.assessments or ()]
    return call.proceed(trace_info=hidden)


def _end_trace(call: Call) -> Any:
    """MLflow 2 only: with the values that were held back at the start."""
    if call.rule.plain:
        return call.proceed()
    metadata, hidden_metadata = _hidden_texts(call, call.get("request_metadata") or {})
    tags, hidden_tags = _hidden_texts(call, call.get("tags") or {})
    content = {"fields": {}, "metadata": hidden_metadata, "tags": hidden_tags}
    tags.update(_parts(call, call.get("request_id"), content))
    return call.proceed(request_metadata=metadata, tags=tags)


def _hidden_texts(call: Call, texts: Mapping[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Metadata or tags as they are kept, and of each that is hidden: what is shown, and what it was."""
    kept, hidden = {}, {}
    for key, value in (texts or {}).items():
        if stays(key, value) or not value:
            kept[key] = value
            continue
        kept[key] = REDACTED if call.rule.redacts else SHOWN
        if key == _SESSION:
            if not call.rule.names:
                kept[key] = value
                continue
            kept[key] = alias("session", value)
        hidden[key] = [kept[key], str(value)]
    return kept, hidden


def _parts(call: Call, trace_id: str, content: dict[str, Any]) -> dict[str, str]:
    if call.rule.redacts or not any(content.values()):
        return {}
    text = call.values.seal(pack(content), Subject("trace", trace_id, "info"))
    return {f"{TRACE}{at // _PART}": text[at : at + _PART] for at in range(0, len(text), _PART)}


def _open_info(opening: Opening, info: Any) -> None:
    trace_id = getattr(info, "trace_id", None) or info.request_id
    parts = {key: info.tags.pop(key) for key in list(info.tags) if key.startswith(TRACE)}
    if parts:
        whole = "".join(parts[key] for key in sorted(parts, key=lambda key: int("0" + key.removeprefix(TRACE))))
        text = opening.text(whole, Subject("trace", trace_id, "info"))
        if text is not whole and not is_marked(text):
            _restore_info(info, json.loads(text))
        else:
            _mark_info(info, text if is_marked(text) else SHOWN)
    for key, value in list(info.tags.items()):
        info.tags[key] = opening.text(value, Subject("trace-tag", trace_id, key), lambda: _root_of(info))
    for assessment in getattr(info, "assessments", None) or ():
        open_assessment(opening, assessment, trace_id)


def _metadata(info: Any) -> dict[str, str]:
    found: dict[str, str] = info.trace_metadata if hasattr(info, "trace_metadata") else info.request_metadata
    return found


def _restore_info(info: Any, content: dict[str, Any]) -> None:
    for field, (shown, value) in content["fields"].items():
        if field in (*_PREVIEWS, _REQUEST) and getattr(info, field, None) == shown:
            setattr(info, field, value)
    for texts, hidden in ((_metadata(info), content["metadata"]), (info.tags, content["tags"])):
        for key, (shown, value) in hidden.items():
            if texts.get(key) == shown:  # else it was changed, or removed, since
                texts[key] = value


def _mark_info(info: Any, said: str) -> None:
    for field in _PREVIEWS:
        if getattr(info, field, None) == SHOWN:
            setattr(info, field, said)
    for texts in (_metadata(info), info.tags):
        texts.update({key: said for key, value in texts.items() if value == SHOWN})


def _open_trace(opening: Opening, trace: Any) -> None:
    _open_info(opening, trace.info)
    trace.data.spans = [opened_span(opening, span) for span in trace.data.spans]


def _root_of(info: Any) -> Root:
    return root_at(info.tags.get("mlflow.artifactLocation"))


def _set_trace_tag(call: Call) -> Any:
    names = [name for name in ("trace_id", "request_id") if name in call.arguments]
    trace_id, key, value = call.get(names[0]), call.get("key"), call.get("value")
    if call.rule.plain or stays(key, value):
        return call.proceed()

    def root() -> Root:
        return _root_of(call.inner.get_trace_info(trace_id))

    most = min(limit("MAX_TRACE_TAG_VAL_LENGTH", 4096) or 4096, 4096)
    return call.proceed(value=call.hide(value, Subject("trace-tag", trace_id, key), spill=root, most=most))


HANDLERS: Final[Mapping[str, Handler]] = {
    "start_trace": _start_trace,
    "end_trace": _end_trace,
    "set_trace_tag": _set_trace_tag,
}
OPENERS: Final[Mapping[str, Opener]] = {
    "Trace": _open_trace,
    "TraceInfo": _open_info,
    "TraceInfoV2": _open_info,
}
PASSING: Final = frozenset({"link_prompts_to_trace", "archive_traces"})
