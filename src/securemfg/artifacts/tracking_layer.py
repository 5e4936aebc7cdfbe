"""What is done with MLflow's tracking store: runs, logged models, traces and evaluation data sets together."""

from __future__ import annotations

from typing import Final

from securemfg.artifacts import (
    tracking_assessments,
    tracking_inputs,
    tracking_models,
    tracking_records,
    tracking_runs,
    tracking_spans,
    tracking_traces,
)
from securemfg.artifacts.tracking_calls import Layer

_HANDLERS: Final = (
    tracking_runs, tracking_inputs, tracking_models, tracking_spans, tracking_traces, tracking_assessments,
    tracking_records,
)  # fmt: skip
_OPENERS: Final = (
    tracking_runs, tracking_inputs, tracking_models, tracking_traces, tracking_assessments, tracking_records
)  # fmt: skip
_PASSING: Final = (tracking_runs, tracking_inputs, tracking_models, tracking_traces, tracking_records)

LAYER: Final = Layer(
    handlers={name: handler for part in _HANDLERS for name, handler in part.HANDLERS.items()},
    openers={name: opener for part in _OPENERS for name, opener in part.OPENERS.items()},
    passing=frozenset(name for part in _PASSING for name in part.PASSING),
    own=tracking_records.OWN,
)
