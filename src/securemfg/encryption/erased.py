"""Which of the settings' keys were destroyed here, when and why, so that a read that needs one says so.

One line for each in a file of the home. It explains a refusal; it is not what refuses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from securemfg.encryption.fate import Fate, State
from securemfg.encryption.message import Context, EncryptedDataKey
from securemfg.errors import EncryptionError, KeyUnavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class Erased:
    """The end of one key."""

    text: str  # as the settings name it
    recipient: str  # as messages name it
    name: str  # in the settings
    at: str  # RFC 3339, UTC
    by: str
    reason: str
    fate: str  # done, scheduled until, not provable, failed

    def __str__(self) -> str:
        return f"key {self.text} was erased on {self.at} by {self.by} ({self.fate}): {self.reason}"


class ErasedKey:
    """Stands where a destroyed key was: it recognises what was for it, and says why nothing opens it."""

    def __init__(self, end: Erased) -> None:
        self.end = end
        self.recipient = end.recipient

    def __repr__(self) -> str:
        return f"ErasedKey({self.recipient})"

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:  # noqa: ARG002
        self._refuse()

    def matches(self, edk: EncryptedDataKey) -> bool:
        return f"{edk.provider}/{edk.name}" == self.recipient

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise KeyUnavailable(str(self.end))


class ErasedKeys:
    """The keys that were destroyed, in a file of the home."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, text: str) -> Erased | None:
        """The last end of the key that the settings call `text`."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            end = _parsed(line)
            if end is not None and end.text == text:
                return end
        return None

    def note(self, end: Erased) -> None:
        """Raises EncryptionError when it cannot be kept."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, json.dumps(asdict(end), ensure_ascii=False).encode() + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise EncryptionError(f"{self.path} cannot be written: {error.strerror}") from error


def shown(fates: list[Fate]) -> str:
    """What became of the key itself, in a word or two: its first fate."""
    first = fates[0]
    return f"scheduled until {first.until:%Y-%m-%d}" if first.state is State.SCHEDULED else str(first.state)


def _parsed(line: str) -> Erased | None:
    try:
        entry = json.loads(line)
        return Erased(**{name: str(entry[name]) for name in Erased.__slots__}) if isinstance(entry, Mapping) else None
    except (ValueError, KeyError):
        return None
