"""Changing attributes of other people's classes so that the change can be taken back exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Patch", "apply", "revert"]

_ABSENT: Final = object()


@dataclass(slots=True)
class Patch:
    """One attribute of one class: `make` gets what it was (None when the class has none itself)."""

    owner: Any
    name: str
    make: Callable[[Any], Any]
    before: Any = _ABSENT
    ours: Any = None


def apply(patches: Sequence[Patch]) -> None:
    """Put every patch in place."""
    for patch in patches:
        patch.before = vars(patch.owner).get(patch.name, _ABSENT)
        patch.ours = patch.make(None if patch.before is _ABSENT else patch.before)
        setattr(patch.owner, patch.name, patch.ours)


def revert(patches: Sequence[Patch]) -> None:
    """Take every patch back, last first.

    Where somebody has since put his own over ours, ours stays below it: with no policy active it only passes
    on.
    """
    for patch in reversed(patches):
        if vars(patch.owner).get(patch.name, _ABSENT) is not patch.ours:
            continue
        if patch.before is _ABSENT:
            delattr(patch.owner, patch.name)
        else:
            setattr(patch.owner, patch.name, patch.before)
