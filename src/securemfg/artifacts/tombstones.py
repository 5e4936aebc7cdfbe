"""What is left where a run key's record was destroyed: when, by whom and why. It says so; it proves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from securemfg.encryption.records import RECORDS

_MAX: Final = 4096  # bytes
_SHOWN: Final = 200  # characters of a field: whoever writes to the store chooses them


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """The end of one run key."""

    key_id: str
    at: str  # RFC 3339, UTC
    by: str
    reason: str

    @classmethod
    def now(cls, key_id: str, *, at: datetime, by: str, reason: str) -> Tombstone:
        return cls(key_id=key_id, at=at.isoformat(timespec="seconds"), by=by, reason=reason)

    def plain(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode()[:_MAX]

    def __str__(self) -> str:
        return f"it was erased on {_safe(self.at)} by {_safe(self.by)}: {_safe(self.reason)}"


def tombstone_path(key_id: str) -> str:
    return f"{RECORDS}/{key_id}.erased"


def tombstone(key_id: str, read: Callable[[], bytes]) -> Tombstone | None:
    """The tombstone that `read` gives, or None where there is none."""
    try:
        data = read()
        fields = json.loads(data[:_MAX])
        return Tombstone(key_id=key_id, **{name: str(fields[name]) for name in ("at", "by", "reason")})
    except Exception:  # noqa: BLE001 - every store has errors of its own for "not there", and the text is anyone's
        return None


def _safe(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_SHOWN])
