from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from securemfg import context
from securemfg.audit.logs import configure
from securemfg.context import StepContext
from securemfg.errors import AuditError
from securemfg.labels import Sensitivity, Stage

STEP = StepContext(step_id="s1", name="train", stage=Stage.TRAINING, sensitivity=Sensitivity.CONFIDENTIAL)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_of_structlog_and_of_the_standard_library_carry_the_current_step():
    stream = io.StringIO()
    with configure(stream=stream):
        token = context.enter(STEP)
        try:
            structlog.get_logger("a").info("loaded", rows=3)
            logging.getLogger("b").warning("odd %s", "row")
        finally:
            context.leave(STEP, token)
        structlog.get_logger("a").info("outside")
    first, second, outside = lines(stream)
    for line in (first, second):
        assert (line["step"], line["stage"], line["session"], line["sensitivity"]) == (
            "train",
            "training",
            "s1",
            "confidential",
        )
    assert (first["event"], first["rows"], second["event"], second["level"]) == ("loaded", 3, "odd row", "warning")
    assert "step" not in outside


def test_secrets_are_hidden_in_lines_and_in_tracebacks():
    stream = io.StringIO()
    with configure(stream=stream):
        structlog.get_logger().info("login", password="hunter2", note="token=hunter2")
        try:
            raise ValueError("refused postgres://u:hunter2@db/x")
        except ValueError:
            logging.getLogger("b").exception("failed")
    assert "hunter2" not in stream.getvalue()
    assert "ValueError" in stream.getvalue()


def test_undo_puts_back_what_was_there_however_often():
    root = logging.getLogger()
    before = (list(root.handlers), root.level, structlog.is_configured())
    first = configure(stream=io.StringIO())
    second = configure(stream=io.StringIO())
    second.undo()
    first.undo()
    first.undo()
    assert (list(root.handlers), root.level, structlog.is_configured()) == before


def test_cloudwatch_needs_both_names():
    with pytest.raises(AuditError, match="name both"):
        configure(cloudwatch_client=object(), log_group="g")
