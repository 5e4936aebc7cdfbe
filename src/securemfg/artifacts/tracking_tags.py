"""What of the values that MLflow itself writes stays readable in its tracking store, and why. All others are hidden.

MLflow, its server and its pages read these tags: without them runs are not nested, prompts are not found, traces are
not loaded. None of them holds what a user wrote, but for names and paths, which stay readable everywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

RUN_NAME: Final = "mlflow.runName"
NOTE: Final = "mlflow.note.content"
HISTORY: Final = "mlflow.log-model.history"
DATA_CONTEXT: Final = "mlflow.data.context"
REAL_NAME: Final = "securemfg.run_name"  # sealed: a run's own name, where another is shown
INPUTS: Final = "securemfg.inputs."  # sealed: a run's tags of one of its data sets
TRACE: Final = "securemfg.trace."  # sealed, in parts: what a trace's own fields are too short for

_ID: Final = "an id"
_NAMES: Final = "names and paths"
_SET: Final = "one of a few words of MLflow's"
_COUNTS: Final = "sizes, counts and costs, as metrics are"
_WHERE: Final = "where MLflow keeps the spans: it cannot load them without"

KEPT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mlflow.user": "who did it: MLflow's own column, and evidence",
        "mlflow.parentRunId": _ID,
        "mlflow.source.type": _SET,
        "mlflow.runSourceType": _SET,
        "mlflow.runType": _SET,
        "mlflow.runColor": _SET,
        "mlflow.autologging": _NAMES,
        "mlflow.loggedArtifacts": _NAMES,
        "mlflow.loggedImages": _SET,
        "mlflow.latest_checkpoint_artifact": _NAMES,
        "mlflow.model.isExternal": _SET,
        "mlflow.modelVersions": _NAMES,
        "mlflow.linkedPrompts": _NAMES,
        "mlflow.prompt.is_prompt": _SET,
        "_mlflow_prompt_type": _SET,
        "_mlflow_experiment_ids": _ID,
        "mlflow.prompt.associatedRunIds": _ID,
        "mlflow.prompt.run_ids": _ID,
        "mlflow.experimentKind": _SET,
        "mlflow.experiment.isGateway": _SET,
        "mlflow.experiment.sourceType": _SET,
        "mlflow.experiment.sourceId": _ID,
        "mlflow.experiment.primaryMetric.name": _NAMES,
        "mlflow.experiment.primaryMetric.greaterIsBetter": _SET,
        "mlflow.artifactLocation": _WHERE,
        "mlflow.trace.spansLocation": _WHERE,
        "mlflow.trace.archiveLocation": _WHERE,
        "mlflow.trace.archivalFailure": _SET,
        "mlflow.trace.archivalRetention": _SET,
        "mlflow.trace.archiveNow": _SET,
        "mlflow.traceName": _NAMES,
        "mlflow.trace.sourceScorer": _NAMES,
        "mlflow.trace.sizeStats": _COUNTS,
        "mlflow.trace.sizeBytes": _COUNTS,
        "mlflow.trace.tokenUsage": _COUNTS,
        "mlflow.trace.cost": _COUNTS,
        "mlflow.trace.infoFinalized": _SET,
        "mlflow.trace_schema.version": _SET,
        "mlflow.sourceRun": _ID,
        "mlflow.modelId": _ID,
        "mlflow.eval.requestId": _ID,
        "mlflow.assessment.sourceRunId": _ID,
        "mlflow.assessment.scorerTraceId": _ID,
        "mlflow.assessment.judgeCost": _COUNTS,
        "mlflow.assessment.judgeInputTokens": _COUNTS,
        "mlflow.assessment.judgeOutputTokens": _COUNTS,
        "securemfg.encrypted": "says how",
        "securemfg.manifest": "a digest of ciphertext",
    }
)
SPAN_KEPT: Final = frozenset(
    {
        "mlflow.traceRequestId",
        "mlflow.experimentId",
        "mlflow.spanType",
        "mlflow.spanLogLevel",
        "mlflow.chat.tokenUsage",
        "mlflow.llm.cost",
    }
)
_CONTEXTS: Final = frozenset({"train", "training", "test", "testing", "eval", "evaluation", "validation", "inference"})
_HISTORY_KEPT: Final = ("artifact_path", "run_id", "utc_time_created", "model_uuid")

_FIELD: Final = re.compile(
    r"\b(params?|parameters?|tags?|metadata|request_metadata)\s*\.\s*(?:`([^`]+)`|\"([^\"]+)\"|([\w./-]+))",
    re.IGNORECASE,
)
_LITERAL: Final = re.compile(r"((?:=|<|>|\bI?LIKE|\bIN)\s*\(?\s*)(?:'[^']*'|\"[^\"]*\")", re.IGNORECASE)
_TEXTS: Final = re.compile(r"\b(run_name|`run name`|trace\.text|span\.(?:content|attributes[\w.`]*))", re.IGNORECASE)


def stays(key: str, value: object = None) -> bool:
    """Whether the tag `key` stays as it is."""
    if key == DATA_CONTEXT:
        return value in _CONTEXTS
    if key == NOTE:
        return isinstance(value, str) and _is_ours(value)
    return key in KEPT


def _is_ours(note: str) -> bool:
    from securemfg.artifacts.marking import NOTE as OURS

    before, after = OURS.split("{id}")
    return re.fullmatch(f"{re.escape(before)}[0-9a-f]+{re.escape(after)}", note) is not None


def brief_history(value: str) -> str:
    """A run's list of its models with what MLflow's pages show of it: the rest is in each model's MLmodel file."""
    try:
        entries = json.loads(value)
    except ValueError:
        return "[]"
    return json.dumps([brief_entry(entry) for entry in entries if isinstance(entry, dict)])


def brief_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    flavors = entry.get("flavors")
    names: dict[str, Any] = {str(name): {} for name in flavors} if isinstance(flavors, dict) else {}
    return {**{key: entry[key] for key in _HISTORY_KEPT if key in entry}, "flavors": names}


def sealed_fields(expressions: str) -> list[str]:
    """What a filter or an order asks of fields that are hidden: it compares ciphertext, so it never matches."""
    found = []
    expressions = _LITERAL.sub(r"\1''", expressions)
    for match in _FIELD.finditer(expressions):
        key = match[2] or match[3] or match[4]
        if match[1].lower().startswith("param") or not (stays(key) or key == DATA_CONTEXT):
            found.append(f"{match[1]}.{key}")
    return found + [match[1] for match in _TEXTS.finditer(expressions)]
