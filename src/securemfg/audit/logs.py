"""Application logs: structlog and the standard library on one handler, each line tagged with the current step.

These are not the audit trail: they may be lost, and nothing is proven by them. Secrets are hidden by the same rules.
watchtower may carry them to CloudWatch; its stream is made here, beforehand, since its handler drops what comes
while it makes one itself.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Self, TextIO

from securemfg import context
from securemfg.audit import redaction
from securemfg.errors import AuditError

__all__ = ["Configured", "configure"]


class Configured:
    """The logging that `configure` set up; `undo` puts back what was there. Also a context manager."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo: Callable[[], None] | None = undo

    def undo(self) -> None:
        """Restore the earlier logging. Once."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def configure(
    *,
    level: int | str = logging.INFO,
    json: bool = True,
    stream: TextIO | None = None,
    cloudwatch_client: Any = None,
    log_group: str | None = None,
    log_stream: str | None = None,
) -> Configured:
    """Send structlog and standard logging to `stream` (standard error), each line with the current step's tags.

    With a `cloudwatch_client`, `log_group` and `log_stream`, watchtower carries a copy to CloudWatch Logs. Raises
    AuditError when that stream cannot be made.
    """
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _tag,
        _hide,
    ]
    renderer = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _hide,
            renderer,
        ],
    )
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    if cloudwatch_client is not None:
        if not log_group or not log_stream:
            raise AuditError("application logs to CloudWatch need a log_group and a log_stream: name both")
        handlers.append(_watchtower(cloudwatch_client, log_group, log_stream))
    root = logging.getLogger()
    before = (list(root.handlers), root.level, structlog.get_config(), structlog.is_configured())
    for handler in handlers:
        handler.setFormatter(formatter)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # else `undo` would not reach loggers already used
    )

    def undo() -> None:
        root.handlers[:], structlog_was = before[0], before[2]
        root.setLevel(before[1])
        if before[3]:
            structlog.configure(**structlog_was)
        else:
            structlog.reset_defaults()
        for handler in handlers:
            with contextlib.suppress(Exception):
                handler.close()

    return Configured(undo)


def _watchtower(client: Any, group: str, stream: str) -> logging.Handler:
    import watchtower

    from securemfg.audit.cloudwatch import CloudWatchLogs

    CloudWatchLogs(lambda: client, group).prepare(stream)
    handler: logging.Handler = watchtower.CloudWatchLogHandler(
        boto3_client=client,
        log_group_name=group,
        log_stream_name=stream,
        create_log_group=False,
        create_log_stream=False,
        send_interval=5,
    )
    return handler


def _tag(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    step = context.current()
    if step is not None:
        line.setdefault("step", step.name)
        line.setdefault("stage", step.stage.value)
        line.setdefault("session", step.step_id)
        line.setdefault("sensitivity", step.sensitivity.value)
    return line


def _hide(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in line.items():
        if key.startswith("_") or key in {"exc_info", "timestamp", "session"}:
            continue
        if redaction.sensitive_key(key) and value is not None:
            line[key] = redaction.REDACTED
        elif isinstance(value, str):
            line[key] = redaction.scrub_text(value)
    return line
