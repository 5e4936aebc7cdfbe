"""The technical controls, and the requirements of each framework that each one speaks to.

A mapping says that a control contributes to a requirement, never that it fulfils it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

__all__ = ["FRAMEWORKS", "Control", "Framework", "controls", "mapping_version"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Framework:
    """A body of requirements. `verified` is whether every id was looked up in the framework's own catalog."""

    key: str
    name: str
    verified: bool
    source: str


_MEMORY: Final = "from memory, unverified"


def _framework(key: str, name: str) -> Framework:
    return Framework(key=key, name=name, verified=False, source=_MEMORY)


FRAMEWORKS: Final[Mapping[str, Framework]] = {
    framework.key: framework
    for framework in (
        Framework(
            key="nist",
            name="NIST SP 800-53 Rev. 5",
            verified=True,
            source="every id exists in the Rev. 5 catalog (OSCAL 5.0.1) and none is withdrawn",
        ),
        _framework("iso", "ISO/IEC 27001:2022"),
        _framework("gdpr", "GDPR"),
        _framework("iec", "IEC 62443-3-3"),
        _framework("r171", "SP 800-171r3"),
        _framework("cmmc", "CMMC"),
        _framework("ai", "EU AI Act"),
        _framework("nis2", "NIS2"),
        _framework("rmf", "NIST AI RMF"),
        _framework("isa", "VDA ISA"),
    )
}
_TWO_WORDS = re.compile(r"[A-Z]+ \S+")  # ids such as 'SR 1.2' and 'MEASURE 2.7' hold a space


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """One technical control. `unsure` are the mapped ids that may be wrong; `shown` marks them with '?'."""

    id: str
    title: str
    mappings: Mapping[str, tuple[str, ...]]  # framework key -> requirement ids
    unsure: Mapping[str, tuple[str, ...]]

    def shown(self, framework: str) -> tuple[str, ...]:
        """The ids as a reader should see them: an unsure one ends in '?'."""
        unsure = self.unsure.get(framework, ())
        return tuple(f"{one}?" if one in unsure else one for one in self.mappings.get(framework, ()))


def _map() -> bytes:
    return files("securemfg.governance.frameworks").joinpath("control_map.json").read_bytes()


@functools.cache
def mapping_version() -> str:
    """The first 12 hex digits of the SHA-256 of the mapping file."""
    return hashlib.sha256(_map()).hexdigest()[:12]


@functools.cache
def controls() -> tuple[Control, ...]:
    """Every control, in the mapping's order."""
    return tuple(_control(name, entry) for name, entry in json.loads(_map()).items())


def _control(name: str, entry: Mapping[str, str]) -> Control:
    mappings: dict[str, tuple[str, ...]] = {}
    unsure: dict[str, tuple[str, ...]] = {}
    for key in FRAMEWORKS:
        written = _ids(key, entry[key])
        mappings[key] = tuple(one.removesuffix("?") for one in written)
        if doubtful := tuple(one.removesuffix("?") for one in written if one.endswith("?")):
            unsure[key] = doubtful
    return Control(id=name, title=entry["t"], mappings=mappings, unsure=unsure)


def _ids(framework: str, text: str) -> list[str]:
    if text == "-":
        return []
    return _TWO_WORDS.findall(text) if framework in {"iec", "rmf"} else text.split()
