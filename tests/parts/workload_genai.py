"""The other half of the workload: traces, prompts and the data sets that language models are evaluated on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, SpanEvent
from mlflow.tracing.attachments import Attachment


class GenAI:
    """One pass, with words from `word`."""

    def __init__(self, word: Callable[[str], str], token: str) -> None:
        self.word = word
        self.token = token
        self.client = MlflowClient()

    def write(self) -> None:
        self.nested()
        self.failing()
        self.by_client()
        mlflow.flush_trace_async_logging()
        self.assessments()
        self.prompts()
        self.records()

    # -- traces -----------------------------------------------------------------------------------------------------

    def nested(self) -> None:
        word = self.word

        @mlflow.trace(name=word("span-name-inner"), attributes={word("span-attribute-key"): word("span-attribute")})
        def inner(question: str) -> dict[str, str]:
            span = mlflow.get_current_active_span()
            span.add_event(SpanEvent(name=word("span-event-name"), attributes={"detail": word("span-event")}))
            return {"answer": word("span-output")}

        @mlflow.trace(name=word("trace-name"))
        def outer(question: str, scan: Any) -> str:
            mlflow.update_current_trace(
                tags={word("trace-tag-key"): word("trace-tag")},
                metadata={"shift": word("trace-metadata")},
                client_request_id=word("client-request-id"),
                request_preview=word("request-preview"),
                response_preview=word("response-preview"),
                session_id=word("session-id"),
                user=word("trace-user"),
            )
            inner(question)
            return word("trace-output")

        scan = Attachment(content_type="text/plain", content_bytes=word("trace-attachment").encode())
        outer(word("trace-input"), scan)
        self.trace_id = mlflow.get_last_active_trace_id()

    def failing(self) -> None:
        """An exception: its text, and its stack, which names the file it was raised in."""
        names: dict[str, Any] = {"text": self.word("span-exception")}
        exec(compile("def fail():\n    raise ValueError(text)\n", self.word("span-stack"), "exec"), names)

        @mlflow.trace
        def press(pressure: str) -> None:
            names["fail"]()

        with contextlib.suppress(ValueError):
            press("L" * 2000 + self.word("span-input-long"))
        self.failed_id = mlflow.get_last_active_trace_id()

    def by_client(self) -> None:
        with mlflow.start_span(self.word("span-name")) as span:
            span.set_inputs({"messages": [{"role": "user", "content": self.word("span-message")}]})
            span.set_outputs([self.word("span-outputs-set")])
            span.set_attributes({"machine": {"serial": self.word("span-attributes-set")}})
        self.client_id = mlflow.get_last_active_trace_id()
        root = self.client.start_trace(
            "press", inputs={"q": self.word("client-trace-input")}, tags={"by": self.word("client-trace-tag")}
        )
        child = self.client.start_span("child", root.trace_id, root.span_id, inputs=self.word("client-span-input"))
        self.client.end_span(root.trace_id, child.span_id, outputs=self.word("client-span-output"))
        self.client.end_trace(root.trace_id, outputs={"a": self.word("client-trace-output")})
        self.manual_id = root.trace_id

    def assessments(self) -> None:
        word = self.word
        source = AssessmentSource(source_type="HUMAN", source_id=word("assessment-source"))
        mlflow.log_feedback(
            trace_id=self.trace_id,
            name=word("assessment-name"),
            value=word("feedback"),
            rationale=word("feedback-rationale"),
            metadata={"desk": word("feedback-metadata")},
            source=source,
        )
        mlflow.log_feedback(trace_id=self.trace_id, name="failed", error=ValueError(word("feedback-error")))
        mlflow.log_expectation(trace_id=self.trace_id, name="expected", value={"text": word("expectation")})
        mlflow.set_trace_tag(self.trace_id, "later", word("trace-tag-set"))
        self.client.set_trace_tag(self.trace_id, "client", word("trace-tag-client"))

    # -- prompts and records ----------------------------------------------------------------------------------------

    def prompts(self) -> None:
        word = self.word
        self.prompt = word("prompt-name")
        version = mlflow.genai.register_prompt(
            self.prompt,
            word("prompt") + " {{ question }}",
            commit_message=word("prompt-commit-message"),
            tags={word("prompt-tag-key"): word("prompt-tag")},
            response_format={"type": "object", "title": word("prompt-response-format")},
            model_config={"model_name": word("prompt-model-config")},
        )
        mlflow.genai.set_prompt_alias(self.prompt, word("prompt-alias"), version.version)
        mlflow.genai.set_prompt_tag(self.prompt, "owner", word("prompt-tag-set"))
        mlflow.genai.set_prompt_version_tag(self.prompt, version.version, "owner", word("prompt-version-tag"))
        self.chat = f"chat-{self.token}"
        mlflow.genai.register_prompt(self.chat, [{"role": "system", "content": word("prompt-chat")}])
        mlflow.genai.register_prompt(self.chat, [{"role": "system", "content": "L" * 20_000 + word("prompt-long")}])

    def records(self) -> None:
        word = self.word
        records = mlflow.genai.datasets.create_dataset(
            name=word("evaluation-dataset-name"), tags={"owner": word("evaluation-dataset-tag")}
        )
        records.merge_records(
            [
                {
                    "inputs": {word("record-input-key"): word("record-input")},
                    "expectations": {"answer": word("record-expectation")},
                    "tags": {"shift": word("record-tag")},
                }
            ]
        )
        mlflow.genai.datasets.set_dataset_tags(
            dataset_id=records.dataset_id, tags={"l": word("evaluation-dataset-set")}
        )
        self.dataset_id = records.dataset_id

    # -- in ---------------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any]:
        trace = mlflow.get_trace(self.trace_id)
        failed = mlflow.get_trace(self.failed_id)
        manual = mlflow.get_trace(self.manual_id)
        (raised,) = [event for span in failed.data.spans for event in span.events if event.name == "exception"]
        found = mlflow.search_traces(return_type="list", max_results=20)
        prompt = mlflow.genai.load_prompt(f"prompts:/{self.prompt}@{self.word('prompt-alias')}")
        chats = [mlflow.genai.load_prompt(self.chat, version=version).template for version in (1, 2)]
        records = mlflow.genai.datasets.get_dataset(dataset_id=self.dataset_id)
        return {
            "spans": [spoken(span) for span in trace.data.spans],
            "trace": [
                trace.info.request_preview,
                trace.info.response_preview,
                trace.info.client_request_id,
                {key: value for key, value in trace.info.tags.items() if not key.startswith(("mlflow.", "securemfg."))},
                trace.info.trace_metadata["shift"],
            ],
            "exception": [raised.attributes["exception.message"], self.word("span-stack") in str(raised.attributes)],
            "failed": [failed.info.state, [spoken(span) for span in failed.data.spans]],
            "manual": [spoken(span) for span in manual.data.spans],
            "search_traces": sorted(str(spoken(t.data.spans[0])[2]) for t in found),
            "assessments": sorted(
                [a.name, str(a.value), str(a.rationale), str((a.metadata or {}).get("desk")), str(a.error)]
                for a in trace.info.assessments
            ),
            "prompt": [prompt.template, prompt.commit_message, prompt.response_format, prompt.model_config],
            "prompt tags": [prompt.tags.get("owner"), mlflow.genai.get_prompt_tags(self.prompt).get("owner")],
            "chats": chats,
            "records": [[r["inputs"], r["expectations"], r["tags"]] for r in records.to_df().to_dict("records")],
            "record tags": records.tags,
        }


def spoken(span: Any) -> list[Any]:
    """A span by what was said: no ids, no times."""
    attributes = {key: value for key, value in span.attributes.items() if not key.startswith("mlflow.")}
    inputs = {k: v for k, v in span.inputs.items() if k != "scan"} if isinstance(span.inputs, dict) else span.inputs
    return [span.name, str(span.status.status_code), inputs, span.outputs, attributes]
