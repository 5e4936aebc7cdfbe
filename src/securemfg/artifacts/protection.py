"""What the artifacts room needs of the workflow: keys, rules and a place for events, handed in at activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from securemfg.artifacts.versions import RecordVersions
from securemfg.context import Emit
from securemfg.encryption.configured_signers import ConfiguredSigners
from securemfg.encryption.keys import Key
from securemfg.encryption.run_key import KeyGroups
from securemfg.labels import Sensitivity
from securemfg.settings import PlaintextReads, Tracking


@dataclass(frozen=True, kw_only=True)
class Protection:
    """The rules in force while encrypted artifacts are on."""

    writing_keys: Callable[[], KeyGroups]  # for the current step's assets; raises KeyUnavailable
    keys_for: Callable[[Sequence[str]], KeyGroups]  # for assets by name; none: the default keys
    group: Callable[[str], tuple[str, Sequence[Key]]]  # what the settings have today for a group of that name
    open_key: Callable[[str], Key]  # a key's text, with the settings' services
    reading_keys: Callable[[], Sequence[Key]]  # every key the settings name and that can be used here
    sensitivity: Callable[[], Sensitivity]  # of what is being written here and now
    encrypt_from: Sensitivity
    plaintext_reads: PlaintextReads
    plaintext_origin: str  # where that rule was set
    emit: Emit
    enforcing: bool = True  # False in mode observe: refusals that cost no secrecy are only audited
    scope: object = None  # whose rules these are: what one scope's keys opened is not given to another
    staging: Path | None = None  # where plaintext lies while it is being used; None: tmpfs if there is one
    tracking: Tracking | Mapping[Sensitivity, Tracking] = Tracking.SEAL  # params, tags, traces and the registry's texts
    versions: RecordVersions = field(default_factory=RecordVersions)  # of rewrapped records: older ones are refused
    signatures: ConfiguredSigners | None = None  # who signs models and whose signatures count
    written: list[int] = field(default_factory=lambda: [0, 0])  # files, bytes: for summaries
