"""What MLflow has queued to be written in the background, written before encryption goes off."""

from __future__ import annotations

import gc
import sys
from typing import Any, Final

from securemfg.errors import EncryptionError

# MLflow knows only the current store's queues and the repositories it still caches: the queues themselves are asked.
_QUEUES: Final = (
    ("mlflow.utils.async_logging.async_artifacts_logging_queue", "AsyncArtifactsLoggingQueue"),
    ("mlflow.utils.async_logging.async_logging_queue", "AsyncLoggingQueue"),
)


def drain() -> None:
    """Wait until every artifact, param, metric, tag and trace that MLflow queued is written. Raises EncryptionError."""
    try:
        _traces()
        kinds = {getattr(sys.modules.get(module), name, None) for module, name in _QUEUES} - {None}
        if kinds:
            for queue in [thing for thing in gc.get_objects() if type(thing) in kinds]:
                _flush(queue)
    except Exception as error:
        raise EncryptionError(
            f"MLflow's background writes could not be finished ({error}): encryption stays on; call deactivate() again"
        ) from error


def _flush(queue: Any) -> None:
    idle = getattr(queue, "is_idle", None)
    if idle() if idle is not None else not queue.is_active():
        return
    queue.flush()


def _traces() -> None:
    flush = getattr(sys.modules.get("mlflow.tracking.fluent"), "flush_trace_async_logging", None)
    if flush is not None and "mlflow.tracing.provider" in sys.modules:
        flush()
