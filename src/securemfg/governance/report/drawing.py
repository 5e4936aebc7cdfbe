"""Lays out the data-flow picture: assets on the left, the steps that used them on the right. Geometry only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from securemfg.governance.checks.reading import assets, at, text
from securemfg.governance.findings import Evidence
from securemfg.governance.report.words import shown

_MOST: Final = 30  # boxes per side: beyond, a picture no longer helps
_BOX_WIDTH: Final = 300
_BOX_HEIGHT: Final = 46
_GAP: Final = 14
_RIGHT: Final = 600
WIDTH: Final = _RIGHT + _BOX_WIDTH
_LABEL: Final = 36  # characters that fit a box


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    x: int
    y: int
    width: int
    height: int
    title: str
    note: str
    full: str  # the whole text, shown on pointing
    kind: str  # a sensitivity, `undeclared` or `step`


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    path: str  # SVG path data
    x: int  # its tip
    y: int
    denied: bool
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """Boxes and edges, with what did not fit."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    left_out: int
    summary: str  # for readers who do not see the picture


def draw(evidence: Evidence) -> Drawing | None:
    """The picture of what steps used, or None when there is neither an asset nor a step."""
    used: dict[tuple[str, str], dict[str, bool]] = {}  # (step, stage) -> asset -> whether it was denied
    for event in evidence.having("step.started", "access.denied"):
        step = (text(event, "step") or "unnamed step", text(event, "stage"))
        denied = event.get("action") == "access.denied" or at(event, "decision", "allowed") is False
        for asset in assets(event):
            seen = used.setdefault(step, {})
            seen[asset] = denied or seen.get(asset, False)
        used.setdefault(step, {})
    declared = {a.name: str(a.sensitivity) for a in evidence.catalog.assets.values()} if evidence.catalog else {}
    names = list(dict.fromkeys([*declared, *(asset for found in used.values() for asset in found)]))
    if not names and not used:
        return None
    steps = list(used)[:_MOST]
    kept = names[:_MOST]
    rows = max(len(kept), len(steps))
    height = rows * (_BOX_HEIGHT + _GAP) + _GAP
    left = {name: _asset_box(name, declared.get(name), _top(i, len(kept), height)) for i, name in enumerate(kept)}
    right = {step: _step_box(step, _top(i, len(steps), height)) for i, step in enumerate(steps)}
    edges = [
        _edge(left[asset], right[step], denied=denied)
        for step in steps
        for asset, denied in used[step].items()
        if asset in left
    ]
    denials = sum(edge.denied for edge in edges)
    return Drawing(
        width=WIDTH,
        height=height,
        boxes=(*left.values(), *right.values()),
        edges=tuple(sorted(edges, key=lambda edge: edge.denied)),  # denied ones on top
        left_out=len(names) - len(kept) + len(used) - len(steps),
        summary=f"{len(names)} data assets, {len(used)} steps, {len(edges)} uses, {denials} of them denied",
    )


def _top(index: int, count: int, height: int) -> int:
    """The upper edge of a box, the shorter column centred."""
    free = height - (count * (_BOX_HEIGHT + _GAP) + _GAP)
    return free // 2 + _GAP + index * (_BOX_HEIGHT + _GAP)


def _box(x: int, y: int, title: str, note: str, kind: str) -> Box:
    whole = shown(title)
    return Box(
        x=x,
        y=y,
        width=_BOX_WIDTH,
        height=_BOX_HEIGHT,
        title=shown(title, _LABEL),
        note=shown(note, _LABEL),
        full=f"{whole} ({note})" if note else whole,
        kind=kind,
    )


def _asset_box(name: str, sensitivity: str | None, y: int) -> Box:
    return _box(0, y, name, sensitivity or "not in the catalog", sensitivity or "undeclared")


def _step_box(step: tuple[str, str], y: int) -> Box:
    return _box(_RIGHT, y, step[0], shown(step[1]), "step")


def _edge(source: Box, target: Box, *, denied: bool) -> Edge:
    start, end = source.y + source.height // 2, target.y + target.height // 2
    x1, x2 = source.x + source.width, target.x
    middle = (x1 + x2) // 2
    return Edge(
        path=f"M{x1},{start} C{middle},{start} {middle},{end} {x2 - 8},{end}",
        x=x2,
        y=end,
        denied=denied,
        title=f"{source.full} {'denied to' if denied else 'used by'} {target.full}",
    )
