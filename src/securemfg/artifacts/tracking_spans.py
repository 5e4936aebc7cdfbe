"""Spans: what was asked and answered, attributes, and events with their exceptions, sealed as one attribute.

Structure, names, states, kinds, times and counts of tokens stay, so that MLflow still shows a trace as a tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.state import STATE
from securemfg.artifacts.tracking_calls import PLAIN, Call, Handler, Rule, pack, rule
from securemfg.artifacts.tracking_tags import SPAN_KEPT
from securemfg.artifacts.tracking_values import REDACTED, SHOWN, Opening, Values, is_marked

CONTENT: Final = "securemfg.sealed"  # a span's attribute
_INPUTS: Final = "mlflow.spanInputs"
_OUTPUTS: Final = "mlflow.spanOutputs"
_TRACE_ID: Final = "mlflow.traceRequestId"
_EXCEPTION: Final = "exception"
_EVENT: Final = "event"


def _log_spans(call: Call) -> Any:
    if call.rule.plain:
        return call.proceed()
    spans = call.get("spans")
    call.send(spans=[_hidden_span(call.values, call.rule, span) for span in spans])
    return spans


def _hidden_span(values: Values, by: Rule, span: Any) -> Any:
    from mlflow.entities import Span

    plain = span.to_dict()
    if "context" in plain:  # an older schema
        return Span.from_dict(_hidden_old(values, by, span, plain))
    attributes = dict(plain["attributes"])
    status, events, links = dict(plain["status"]), list(plain["events"]), list(plain.get("links") or ())
    content = _content(attributes, events, status.get("message"), links)
    status["message"] = ""
    hidden = {
        **plain,
        "attributes": _shown(values, by, content, attributes, Subject("span", span.trace_id, span.span_id)),
        "status": status,
        "events": [{**event, "name": _event_name(event["name"]), "attributes": {}} for event in events],
        "links": [{**link, "attributes": {}} for link in links],
    }
    return Span.from_dict(hidden)


def _hidden_old(values: Values, by: Rule, span: Any, plain: dict[str, Any]) -> dict[str, Any]:
    content = _content(dict(plain["attributes"]), plain["events"], plain.get("status_message"), [])
    subject = Subject("span", span.request_id, span.span_id)
    return {
        **plain,
        "attributes": _shown(values, by, content, plain["attributes"], subject),
        "status_message": "",
        "events": [{**event, "name": _event_name(event["name"]), "attributes": {}} for event in plain["events"]],
    }


def _content(
    attributes: dict[str, Any], events: Sequence[Any], message: str | None, links: list[Any]
) -> dict[str, Any]:
    """What of a span is hidden."""
    return {
        "attributes": {key: value for key, value in attributes.items() if key not in SPAN_KEPT},
        "events": [{"name": event["name"], "attributes": dict(event.get("attributes") or {})} for event in events],
        "message": message,
        "links": [link.get("attributes") for link in links],
    }


def _shown(
    values: Values, by: Rule, content: dict[str, Any], attributes: Mapping[str, Any], subject: Subject
) -> dict[str, Any]:
    """A span's attributes as they are kept: values are JSON, as MLflow's are."""
    text = REDACTED if by.redacts else SHOWN
    shown = {key: value for key, value in attributes.items() if key in SPAN_KEPT}
    shown |= {key: json.dumps(text) for key in (_INPUTS, _OUTPUTS) if key in attributes}
    if not by.redacts:
        shown[CONTENT] = json.dumps(values.seal(pack(content), subject))
    return shown


def _event_name(name: str) -> str:
    return _EXCEPTION if name == _EXCEPTION else _EVENT


def opened_span(opening: Opening, span: Any) -> Any:
    from mlflow.entities import Span

    stored = span.to_dict()
    attributes = dict(stored.get("attributes") or {})
    sealed = attributes.pop(CONTENT, None)
    if sealed is None:
        return span
    text = _loaded(sealed)
    content = opening.text(text, Subject("span", span.trace_id, span.span_id))
    opened = _restored(stored, attributes, content) if content is not text and not is_marked(content) else None
    if opened is None:
        said = json.dumps(content if is_marked(content) else SHOWN)
        opened = {**stored, "attributes": attributes | {key: said for key in (_INPUTS, _OUTPUTS) if key in attributes}}
    return Span.from_dict(opened)


def _restored(stored: dict[str, Any], attributes: dict[str, Any], text: str) -> dict[str, Any]:
    content = json.loads(text)
    events = [{**event, **was} for event, was in zip(stored.get("events") or (), content["events"], strict=False)]
    opened = {**stored, "attributes": {**attributes, **content["attributes"]}, "events": events}
    if "context" in stored:
        return {**opened, "status_message": content["message"]}
    opened["status"] = {**stored["status"], "message": content["message"]}
    links = stored.get("links") or ()
    opened["links"] = [{**link, "attributes": was} for link, was in zip(links, content["links"], strict=False)]
    return opened


def _loaded(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


# -- past MLflow's store ----------------------------------------------------------------------------------------------


class SealingExporter:
    """Around an exporter of OpenTelemetry's that MLflow sends traces to, past its own store: the same is hidden."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def export(self, spans: Sequence[Any]) -> Any:
        by = rule(carried=False) if STATE.protection is not None else PLAIN
        if by.plain:
            return self._inner.export(spans)
        values = Values(None)
        return self._inner.export([_hidden_readable(values, by, span) for span in spans])


def _hidden_readable(values: Values, by: Rule, span: Any) -> Any:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import Link, Status

    attributes = dict(span.attributes or {})
    events = [{"name": event.name, "attributes": dict(event.attributes or {})} for event in span.events]
    links = [{"attributes": dict(link.attributes or {})} for link in span.links]
    content = _content(attributes, events, span.status.description, links)
    trace_id = _loaded(attributes.get(_TRACE_ID)) or f"tr-{span.context.trace_id:032x}"
    subject = Subject("span", str(trace_id), f"{span.context.span_id:016x}")
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_shown(values, by, content, attributes, subject),
        events=[Event(_event_name(event.name), timestamp=event.timestamp) for event in span.events],
        links=[Link(link.context) for link in span.links],
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


HANDLERS: Final[Mapping[str, Handler]] = {"log_spans": _log_spans}
