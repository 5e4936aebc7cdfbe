"""Reads the fields of a catalog's tables, keeping every problem with its line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from securemfg.errors import ConfigError, nearest
from securemfg.governance.document import Item, Problem
from securemfg.labels import Sensitivity, Stage

# An access action is a stage (a step asks for its own) or a verb that code asks for with `authorize`.
ACTIONS: Final = (*(str(stage) for stage in Stage), "read", "write", "delete", "export", "approve")
ANY_ACTION: Final = "*"
TLS_VALUES: Final = ("1.3", "1.2", "none")
_NAME_LENGTH: Final = 200
_PERIOD = re.compile(r"P(?=[\dT])(?:\d+Y)?(?:\d+M)?(?:\d+W)?(?:\d+D)?(?:T(?=\d)(?:\d+H)?(?:\d+M)?(?:\d+S)?)?")


class Table:
    """One mapping of the catalog. A reader takes a key, notes what is wrong, and returns what is right."""

    def __init__(self, item: Item, what: str, known: Iterable[str], problems: list[Problem]) -> None:
        self.line = item.line
        self.what = what
        self._problems = problems
        self._entries: Mapping[str, Item] = {}
        if not isinstance(item.value, Mapping):
            self.note(item.line, f"{what} must be a mapping of keys to values")
            return
        self._entries = item.value
        names = tuple(known)
        for key in self._entries:
            if key not in names:
                self.note(item.key_lines[key], f"unknown key {key!r} in {what}{nearest(key, names)}")

    def note(self, line: int, text: str) -> None:
        self._problems.append((line, text))

    def at(self, key: str) -> Item | None:
        return self._entries.get(key)

    def text(self, key: str) -> str | None:
        item = self.at(key)
        if item is None or item.value is None:
            return None
        if isinstance(item.value, bool):
            return str(item.value).lower()
        if not isinstance(item.value, str):
            self.note(item.line, f"{key!r} of {self.what} must be text")
            return None
        return item.value

    def name(self, key: str) -> str | None:
        """Required text that names something: not empty, one line, printable."""
        item = self.at(key)
        value = self.text(key)
        if item is None:
            self.note(self.line, f"{self.what} has no {key!r}")
        elif not value and not isinstance(item.value, tuple | Mapping):
            self.note(item.line, f"{key!r} of {self.what} is empty")
        elif value and (not value.isprintable() or value != value.strip() or len(value) > _NAME_LENGTH):
            self.note(
                item.line,
                f"{key!r} of {self.what} must be printable, without spaces around it, "
                f"at most {_NAME_LENGTH} characters",
            )
        return value or None

    def texts(self, key: str) -> tuple[str, ...]:
        """One text or a list of them."""
        item = self.at(key)
        return () if item is None or item.value is None else tuple(value for value, _ in self._texts(key, item))

    def _texts(self, key: str, item: Item) -> Iterator[tuple[str, int]]:
        for part in item.value if isinstance(item.value, tuple) else (item,):
            if isinstance(part.value, str) and part.value:
                yield part.value, part.line
            else:
                self.note(part.line, f"{key!r} of {self.what} must be text or a list of texts")

    def named(self, key: str, known: Iterable[str]) -> tuple[str, ...]:
        """As `texts`, each of them one of `known` assets."""
        item = self.at(key)
        if item is None or item.value is None:
            return ()
        names = tuple(known)
        found = []
        for value, line in self._texts(key, item):
            if value in names:
                found.append(value)
            else:
                self.note(line, f"unknown asset {value!r} in {key!r} of {self.what}{nearest(value, names)}")
        return tuple(found)

    def items(self, key: str, *, required: bool = False) -> tuple[Item, ...]:
        item = self.at(key)
        if item is None:
            if required:
                self.note(self.line, f"{self.what} has no {key!r}")
            return ()
        if item.value is None:
            return ()
        if not isinstance(item.value, tuple):
            self.note(item.line, f"{key!r} must be a list: start each entry with '- '")
            return ()
        return item.value

    def sensitivity(self, key: str) -> Sensitivity:
        """The label; the strictest one where it is missing or wrong (the catalog is refused then anyway)."""
        item = self.at(key)
        if item is None:
            self.note(self.line, f"{self.what} has no {key!r}; one of {', '.join(str(m) for m in Sensitivity)}")
        else:
            try:
                return Sensitivity.parse(str(item.value if isinstance(item.value, str) else item.plain()))
            except ConfigError as error:
                self.note(item.line, str(error))
        return max(Sensitivity)

    def retention(self, key: str) -> str | None:
        value = self.text(key)
        if value is not None and not _PERIOD.fullmatch(value):
            self._wrong(key, value, "an ISO 8601 period like 'P90D' or 'P1Y'")
        return value

    def tls(self, key: str) -> str | None:
        value = self.text(key)
        if value is not None and value not in TLS_VALUES:
            self._wrong(key, value, "'1.3', '1.2' or 'none'")
        return value

    def _wrong(self, key: str, value: str, wanted: str) -> None:
        item = self.at(key)
        self.note(item.line if item else self.line, f"{key!r} of {self.what} must be {wanted}, got {value!r}")

    def roles(self, key: str) -> Mapping[str, tuple[str, ...]] | None:
        """Role to actions. None where the key is absent: open to every role. `{}`: open to none."""
        item = self.at(key)
        if item is None:
            return None
        if not isinstance(item.value, Mapping):
            self.note(
                item.line,
                f"{key!r} of {self.what} must map each role to its actions; "
                "{} closes it to every role, leaving it out opens it",
            )
            return {}
        found = {}
        for role, actions in item.value.items():
            if role == ANY_ACTION:
                self.note(
                    item.key_lines[role],
                    f"{key!r} of {self.what}: name the roles, '*' stands for actions only",
                )
                continue
            listed = tuple(self._texts(key, actions)) if actions.value is not None else ()
            for action, line in listed:
                self._check_action(action, line)
            found[role] = tuple(action for action, _ in listed)
        return found

    def _check_action(self, action: str, line: int) -> None:
        """An action may be the user's own word, but not a slip of one of ours: that would deny in silence."""
        if action in ACTIONS or action == ANY_ACTION:
            return
        if close := difflib.get_close_matches(action.lower(), ACTIONS, n=1, cutoff=0.8):
            self.note(line, f"unknown action {action!r} of {self.what}; did you mean {close[0]!r}?")
