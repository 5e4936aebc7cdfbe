"""What the tests of this room share: a journal in a folder, and reading back what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

from securemfg.audit import Journal, Tags
from securemfg.context import StepContext
from securemfg.labels import Sensitivity, Stage

TAGS = Tags.of(actor="alice", host="press-4")


def tags(sensitivity: Sensitivity = Sensitivity.INTERNAL) -> Tags:
    step = StepContext(
        step_id="0192f0aa-0000-7000-8000-000000000000", name="train", stage=Stage.TRAINING, sensitivity=sensitivity
    )
    return Tags.of(step, actor="alice", host="press-4", site="plant-1", line="line-2")


def raw_lines(journal: Journal) -> list[bytes]:
    """Every complete line of this process's writers, in order."""
    found = []
    for writer in journal.writer_ids:
        found += writer_lines(journal.folder / writer)
    return found


def writer_lines(folder: Path) -> list[bytes]:
    content = b"".join(segment.read_bytes() for segment in sorted(folder.glob("*.jsonl")))
    return content.split(b"\n")[:-1]


def recorded(journal: Journal) -> list[dict]:
    return [json.loads(line) for line in raw_lines(journal)]
