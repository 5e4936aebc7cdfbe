"""What the artifacts room needs of the workflow: keys, rules and a place for events, handed in at activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from securemfg.context import Emit
from securemfg.encryption.keys import Key
from securemfg.labels import Sensitivity
from securemfg.settings import PlaintextReads

# Keys that must all be used to read (assets with different keys); within one group any key will do.
KeyGroups: TypeAlias = tuple[tuple[Key, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Protection:
    """The rules in force while encrypted artifacts are on."""

    writing_keys: Callable[[], KeyGroups]  # for the current step's assets; raises KeyUnavailable
    reading_keys: Callable[[], Sequence[Key]]  # every key the settings name and that can be used here
    sensitivity: Callable[[], Sensitivity]  # of what is being written here and now
    encrypt_from: Sensitivity
    plaintext_reads: PlaintextReads
    plaintext_origin: str  # where that rule was set
    emit: Emit
    scope: object = None  # whose rules these are: what one scope's keys opened is not given to another
    staging: Path | None = None  # where plaintext lies while it is being used; None: tmpfs if there is one
    written: list[int] = field(default_factory=lambda: [0, 0])  # files, bytes: for summaries
