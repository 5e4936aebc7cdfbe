"""A YAML document as plain values that remember their lines.

Built from parser events, not by a constructor: no tag can make an object, duplicate keys are seen, and
nesting and alias expansion are bounded before they cost anything (the C composer overflows its stack on deep
nesting). Scalars stay text, except `null`, `true` and `false`: a country code `NO` or a version `1.10` is
what was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

MAX_BYTES: Final = 5 << 20
MAX_DEPTH: Final = 40
MAX_VALUES: Final = 500_000  # with every alias counted as often as it is used

Problem: TypeAlias = tuple[int, str]  # (line, text)

_CONSTANTS: Final[Mapping[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_PLAIN_TAGS: Final = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")
)


class Unreadable(Exception):
    """The text is not one YAML document within the bounds. `problem` is (line, text)."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.problem: Problem = (line, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A value and the line it starts on. A mapping also knows the line of each of its keys."""

    value: str | bool | tuple[Item, ...] | Mapping[str, Item] | None
    line: int
    size: int = 1  # how many values it holds, itself included
    key_lines: Mapping[str, int] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without its lines: text, bool, None, lists and dicts."""
        if isinstance(self.value, tuple):
            return [item.plain() for item in self.value]
        if isinstance(self.value, Mapping):
            return {key: item.plain() for key, item in self.value.items()}
        return self.value


@dataclass(slots=True)
class _Open:
    """A list or a mapping whose end has not been read yet."""

    line: int
    mapping: bool
    anchor: str | None
    items: list[Item] = field(default_factory=list)
    entries: dict[str, Item] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)
    key: tuple[str, int] | None = None
    size: int = 1

    def add(self, item: Item, problems: list[Problem]) -> None:
        self.size += item.size
        if not self.mapping:
            self.items.append(item)
        elif self.key is None:
            self.key = (_key(item), item.line)
        else:
            name, line = self.key
            self.key = None
            if name in self.entries:
                problems.append((line, f"key {name!r} stands twice (first on line {self.key_lines[name]})"))
            else:
                self.entries[name] = item
                self.key_lines[name] = line

    def closed(self) -> Item:
        value = dict(self.entries) if self.mapping else tuple(self.items)
        return Item(value=value, line=self.line, size=self.size, key_lines=self.key_lines)


def read(text: str, problems: list[Problem]) -> Item:
    """The one document in `text`. Duplicate keys are added to `problems`; the first one counts.

    Raises Unreadable when it is not YAML, not one document, too deep, or too large once aliases are expanded.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _build(yaml.parse(text, Loader=loader), problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Unreadable(line, f"not valid YAML: {error.reason}") from error


def _build(events: Iterator[Any], problems: list[Problem]) -> Item:
    anchors: dict[str, Item] = {}
    stack: list[_Open] = []
    root: Item | None = None
    documents = total = 0
    for event in events:
        name = type(event).__name__
        line = event.start_mark.line + 1
        if name == "DocumentStartEvent":
            documents += 1
            if documents > 1:
                raise Unreadable(line, "a second document starts here; a catalog is one document")
            continue
        if name in {"MappingStartEvent", "SequenceStartEvent"}:
            _check_tag(event, line)
            if len(stack) >= MAX_DEPTH:
                raise Unreadable(line, f"nested deeper than {MAX_DEPTH} levels")
            stack.append(_Open(line=line, mapping=name == "MappingStartEvent", anchor=event.anchor))
            continue
        if name in {"MappingEndEvent", "SequenceEndEvent"}:
            opened = stack.pop()
            item, anchor = opened.closed(), opened.anchor
            total += 1
        elif name == "ScalarEvent":
            _check_tag(event, line)
            item, anchor = Item(value=_scalar(event), line=line), event.anchor
            total += 1
        elif name == "AliasEvent":
            if event.anchor not in anchors:
                raise Unreadable(line, f"alias '*{event.anchor}' refers to itself or to nothing above it")
            item, anchor = anchors[event.anchor], None
            total += item.size
        else:
            continue
        if total > MAX_VALUES:
            raise Unreadable(line, f"more than {MAX_VALUES} values once aliases are expanded")
        if anchor:
            anchors[anchor] = item
        if stack:
            stack[-1].add(item, problems)
        else:
            root = item
    if root is None:
        raise Unreadable(1, "the file is empty")
    return root


def _check_tag(event: Any, line: int) -> None:
    if event.tag is not None and event.tag != "!" and event.tag not in _PLAIN_TAGS:
        raise Unreadable(line, f"tag {event.tag!r} is not allowed in a catalog")


def _scalar(event: Any) -> str | bool | None:
    if event.style in {None, ""} and event.value in _CONSTANTS:  # quoted, it is text
        return _CONSTANTS[event.value]
    return str(event.value)


def _key(item: Item) -> str:
    if isinstance(item.value, str):
        return item.value
    if item.value is None or isinstance(item.value, bool):
        return str(item.value).lower()
    raise Unreadable(item.line, "a key must be text")
