"""Traces: what was asked and answered is sealed, and the tree stays. Over SQLite, a real server and a folder of files."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import securemfg
from tests.live.test_tracking import local_key, settings
from tests.parts import until
from tests.parts.mlflow_server import Store, use
from tests.parts.tracked import ask, holding

pytest.importorskip("mlflow.tracing.client", reason="needs MLflow 3: pip install 'securemfg[mlflow]'")

CONFIDENTIAL = "confidential"


@pytest.fixture(params=["local", "server"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found


@pytest.fixture
def word() -> str:
    return f"canary-{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def _nothing_waiting() -> Iterator[None]:
    yield
    import mlflow

    mlflow.flush_trace_async_logging()


def traced(word: str) -> tuple[str, str]:
    """A trace with a child that answers, and one with a child that raises. Their ids."""
    import mlflow
    from mlflow.entities import SpanEvent

    @mlflow.trace(name="inner", attributes={"machine": f"{word} attribute"})
    def inner(question: str) -> dict[str, str]:
        span = mlflow.get_current_active_span()
        span.add_event(SpanEvent(name=f"{word} event", attributes={"detail": f"{word} detail"}))
        return {"answer": f"{word} inner"}

    @mlflow.trace(name="outer")
    def outer(question: str) -> str:
        mlflow.update_current_trace(
            tags={"shift": f"{word} tag"},
            metadata={"line": f"{word} metadata"},
            client_request_id=f"{word} request",
            session_id=f"{word} session",
            user=f"{word} user",
            request_preview=f"{word} preview",
        )
        inner(question)
        return f"{word} outer"

    @mlflow.trace(name="failing")
    def failing(pressure: int) -> None:
        raise ValueError(f"{word} exception")

    @mlflow.trace(name="around")
    def around() -> None:
        failing(7)

    outer(f"{word} question")
    one = mlflow.get_last_active_trace_id()
    with pytest.raises(ValueError, match="exception"):
        around()
    two = mlflow.get_last_active_trace_id()
    mlflow.flush_trace_async_logging()
    assert one is not None
    assert two is not None
    return one, two


def spoken(trace: Any) -> dict[str, Any]:
    info = trace.info
    return {
        "spans": [
            [
                span.name, span.inputs, span.outputs, str(span.status.status_code), span.status.description,
                {key: value for key, value in span.attributes.items() if not key.startswith("mlflow.")},
                [[event.name, event.attributes.get("detail"), event.attributes.get("exception.message")] for event in span.events],
            ]
            for span in trace.data.spans
        ],
        "previews": [info.request_preview, info.response_preview],
        "ids": [info.client_request_id, info.trace_metadata.get("mlflow.trace.session"), info.trace_metadata.get("mlflow.trace.user")],
        "tags": {key: value for key, value in info.tags.items() if not key.startswith("mlflow.")},
        "metadata": info.trace_metadata.get("line"),
        "state": str(info.state),
    }  # fmt: skip


def read(one: str, two: str) -> list[dict[str, Any]]:
    import mlflow

    traces = [mlflow.get_trace(one), mlflow.get_trace(two)]
    found = {trace.info.trace_id: spoken(trace) for trace in mlflow.search_traces(return_type="list")}
    assert [found[one], found[two]] == [spoken(trace) for trace in traces]
    return [spoken(trace) for trace in traces]


def test_a_trace_is_readable_without_the_step_and_not_with_it(
    store: Store, experiment: str, word: str, mlflow_database: Path
) -> None:
    plain = read(*traced(word))
    assert {
        "spans.content", "trace_info.request_preview", "trace_info.response_preview", "trace_info.client_request_id",
        "trace_tags.value", "trace_request_metadata.value",
    } <= holding(mlflow_database, word)  # fmt: skip
    other = word[::-1]
    with securemfg.step("inference", sensitivity=CONFIDENTIAL):
        ids = traced(other)
        assert holding(mlflow_database, other) == set()
        assert json.loads(json.dumps(read(*ids)).replace(other, word)) == json.loads(json.dumps(plain))


def test_the_tree_stays_for_mlflows_pages(store: Store, experiment: str, word: str, mlflow_database: Path) -> None:
    with securemfg.step("inference", sensitivity=CONFIDENTIAL):
        _, failed = traced(word)
    spans = {
        name: (span, parent, status)
        for name, span, parent, status in ask(
            mlflow_database, "SELECT name, span_id, parent_span_id, status FROM spans WHERE trace_id = ?", failed
        )
    }
    assert set(spans) == {"around", "failing"}
    assert spans["failing"][1] == spans["around"][0]
    assert {status for _, _, status in spans.values()} == {"ERROR"}
    ((preview, state),) = ask(
        mlflow_database, "SELECT request_preview, status FROM trace_info WHERE request_id = ?", failed
    )
    assert state == "ERROR"
    assert preview in {None, "", "<sealed>"}
    contents = ask(mlflow_database, "SELECT content FROM spans WHERE trace_id = ?", failed)
    events = [event for (content,) in contents for event in json.loads(content)["events"]]
    assert [(event["name"], event["attributes"]) for event in events] == [("exception", {})] * 2


def test_the_exception_and_its_stack_read_back(local_store: Store, local_experiment: str, word: str) -> None:
    import mlflow

    with securemfg.step("inference", sensitivity=CONFIDENTIAL):
        _, failed = traced(word)
        spans = mlflow.get_trace(failed).data.spans
        events = [event for span in spans for event in span.events]
        assert {event.attributes["exception.message"] for event in events} == {f"{word} exception"}
        assert all("test_tracking_traces.py" in event.attributes["exception.stacktrace"] for event in events)
        assert {event.attributes["exception.type"] for event in events} == {"ValueError"}


def test_tags_of_a_trace_are_set_changed_and_deleted(
    store: Store, experiment: str, word: str, mlflow_database: Path
) -> None:
    import mlflow

    with securemfg.step("inference", sensitivity=CONFIDENTIAL):
        trace_id, _ = traced(word)
        mlflow.set_trace_tag(trace_id, "shift", f"{word} changed")
        mlflow.set_trace_tag(trace_id, "later", f"{word} later")
        mlflow.set_trace_tag(trace_id, "long", f"{word} {'L' * 7000}")
        mlflow.delete_trace_tag(trace_id, "later")
        tags = mlflow.get_trace(trace_id).info.tags
        assert (tags["shift"], tags["long"]) == (f"{word} changed", f"{word} {'L' * 7000}")
        assert "later" not in tags
        mlflow.delete_trace_tag(trace_id, "shift")
        assert "shift" not in mlflow.get_trace(trace_id).info.tags
        assert not any(key.startswith("securemfg.") for key in tags)
    assert holding(mlflow_database, word) == set()


def test_assessments_are_sealed_updated_and_renamed(
    store: Store, experiment: str, word: str, mlflow_database: Path
) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource, Expectation, Feedback

    source = AssessmentSource(source_type="HUMAN", source_id=f"{word} who")
    with securemfg.step("evaluation", sensitivity=CONFIDENTIAL):
        trace_id, _ = traced(word)
        text = mlflow.log_feedback(
            trace_id=trace_id, name="text", value={"said": f"{word} value"}, rationale=f"{word} why",
            metadata={"desk": f"{word} desk"}, source=source,
        )  # fmt: skip
        number = mlflow.log_feedback(trace_id=trace_id, name="number", value=0.75)
        mlflow.log_feedback(trace_id=trace_id, name="failed", error=ValueError(f"{word} error"))
        expected = mlflow.log_expectation(trace_id=trace_id, name="expected", value=[f"{word} a", 2])

        def by_name() -> dict[str, Any]:
            return {one.name: one for one in mlflow.get_trace(trace_id).info.assessments}

        assert (text.value, text.rationale, text.metadata["desk"]) == (
            {"said": f"{word} value"}, f"{word} why", f"{word} desk",
        )  # fmt: skip
        found = by_name()
        assert found["text"].value == {"said": f"{word} value"}
        assert found["text"].source.source_id == f"{word} who"
        assert found["text"].metadata == {"desk": f"{word} desk"}
        assert found["number"].value == number.value == 0.75
        assert found["failed"].error.error_message == f"{word} error"
        assert found["expected"].value == expected.value == [f"{word} a", 2]
        mlflow.update_assessment(
            trace_id, text.assessment_id, Feedback(name="text", value=f"{word} new", rationale=f"{word} new why")
        )
        assert (by_name()["text"].value, by_name()["text"].rationale) == (f"{word} new", f"{word} new why")
        assert by_name()["text"].metadata == {"desk": f"{word} desk"}
        mlflow.update_assessment(trace_id, expected.assessment_id, Expectation(name="wanted", value=f"{word} wanted"))
        mlflow.update_assessment(trace_id, text.assessment_id, Feedback(name="renamed", value=f"{word} newest"))
        found = by_name()
        assert found["wanted"].value == f"{word} wanted"
        assert (found["renamed"].value, found["renamed"].metadata) == (f"{word} newest", {"desk": f"{word} desk"})
        assert found["renamed"].source.source_id == f"{word} who"
        assert holding(mlflow_database, word) == set()


def test_a_span_that_was_moved_is_marked(
    local_store: Store, local_experiment: str, word: str, mlflow_database: Path
) -> None:
    import mlflow

    with securemfg.step("inference", sensitivity=CONFIDENTIAL):
        one, _ = traced(word)
        other, _ = traced(word[::-1])
        rows = ask(mlflow_database, "SELECT name, content FROM spans WHERE trace_id = ?", one)
        foreign = dict(ask(mlflow_database, "SELECT name, content FROM spans WHERE trace_id = ?", other))
        for name, content in rows:
            changed = json.loads(content)
            changed["attributes"]["securemfg.sealed"] = json.loads(foreign[name])["attributes"]["securemfg.sealed"]
            ask(
                mlflow_database, "UPDATE spans SET content = ? WHERE trace_id = ? AND name = ?",
                json.dumps(changed), one, name,
            )  # fmt: skip
        spans = mlflow.get_trace(one).data.spans
    assert [span.name for span in spans] == ["outer", "inner"]
    assert all("moved or swapped" in span.inputs for span in spans)
    assert word[::-1] not in str([span.to_dict() for span in spans])


def test_a_trace_exported_after_its_step_keeps_its_steps_rule(
    local_store: Store, word: str, mlflow_database: Path
) -> None:
    import mlflow

    settings(artifacts='tracking = { internal = "allow", confidential = "seal" }', keys=f'default = "{local_key()}"')
    gate = threading.Event()

    @mlflow.trace
    def predict(question: str) -> str:
        return f"{word} answer"

    def busy() -> None:
        with securemfg.step("training", sensitivity="internal"):
            gate.wait(60)

    for _ in use(local_store):
        thread = threading.Thread(target=busy)
        thread.start()
        try:
            with securemfg.step("inference", sensitivity=CONFIDENTIAL):
                predict(f"{word} question")
            mlflow.flush_trace_async_logging()
            assert mlflow.get_last_active_trace_id() is not None
        finally:
            gate.set()
            thread.join()
        assert holding(mlflow_database, word) == set()
        with securemfg.step("inference", sensitivity="internal"):
            predict(f"{word} question")
            mlflow.flush_trace_async_logging()
        assert "spans.content" in holding(mlflow_database, word)


def test_redacted_traces_are_gone_for_everyone(local_store: Store, word: str, mlflow_database: Path) -> None:
    settings(artifacts='tracking = "redact"', keys=f'default = "{local_key()}"')
    for _ in use(local_store):
        with securemfg.step("inference"):
            found = read(*traced(word))
        assert holding(mlflow_database, word) == set()
        assert word not in json.dumps(found)
        assert found[0]["spans"][0][1] == "<redacted>"


def test_traces_in_a_folder_of_files_are_sealed_too(
    monkeypatch: pytest.MonkeyPatch, own_place: Path, word: str
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = own_place / "mlruns"
    files = Store(
        name="files", tracking_uri=folder.as_uri(), artifact_location=None, stored=dict,
        put=lambda *_: None, remove=lambda *_: None,
    )  # fmt: skip

    def found() -> list[Path]:
        return [path for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]

    for _ in use(files):
        traced(word)
        plain = set(found())
        assert plain
        with securemfg.step("inference", sensitivity=CONFIDENTIAL):
            one, _ = traced(word)
            assert spoken(mlflow.get_trace(one))["spans"][0][1] == {"question": f"{word} question"}
            assert spoken(mlflow.get_trace(one))["tags"] == {"shift": f"{word} tag"}
        assert set(found()) == plain


def test_an_exporter_gets_sealed_spans_while_it_is_on(local_store: Store, local_experiment: str, word: str) -> None:
    from mlflow.tracing import provider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from securemfg.artifacts.tracking_spans import SealingExporter

    memory = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(SealingExporter(memory)))
    tracer = tracers.get_tracer("tests")

    def speak() -> list[str]:
        memory.clear()
        with pytest.raises(ValueError, match="exception"), tracer.start_as_current_span("press") as span:
            span.set_attribute("mlflow.spanInputs", json.dumps(word))
            span.add_event(f"{word} event", {"detail": word})
            raise ValueError(f"{word} exception")
        return [span.to_json() for span in memory.get_finished_spans()]

    made = provider.get_otlp_exporter
    (plain,) = speak()
    assert plain.count(word) >= 5
    with securemfg.step("inference", sensitivity=CONFIDENTIAL):
        assert provider.get_otlp_exporter is not made
        (sealed,) = speak()
    assert word not in sealed
    shown = json.loads(sealed)
    assert (shown["name"], shown["status"], shown["attributes"]["mlflow.spanInputs"]) == (
        "press", {"status_code": "ERROR"}, '"<sealed>"',
    )  # fmt: skip
    assert [event["name"] for event in shown["events"]] == ["event", "exception"]
    securemfg.workflow.reset()
    assert provider.get_otlp_exporter is made
    assert word in speak()[0]


def test_what_goes_to_a_collector_past_mlflows_store_is_sealed(
    local_store: Store, local_experiment: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="optional: opentelemetry's exporter for HTTP")
    import mlflow

    taken: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{server.server_port}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")

    @mlflow.trace(name="predict")
    def predict(question: str) -> str:
        return f"{word} answer"

    def sent() -> bytes:
        until(lambda: any(b"predict" in body for body in taken), what="a span at the collector")
        return b"".join(taken)

    try:
        mlflow.tracing.reset()
        predict(word)
        assert word.encode() in sent()
        taken.clear()
        with securemfg.step("inference", sensitivity=CONFIDENTIAL):
            predict(word)
            body = sent()
            assert word.encode() not in body
            assert b"securemfg:2:" in body
    finally:
        monkeypatch.undo()
        mlflow.tracing.reset()
        server.shutdown()
        thread.join()
        server.server_close()
