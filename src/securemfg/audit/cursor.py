"""How far one writer's events have been shipped: a small file, replaced whole and durable after each answer."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from securemfg.audit.events import decode, dumps
from securemfg.audit.segments import segment_name
from securemfg.errors import AuditError

__all__ = ["Cursor"]

NAME: Final = "cursor"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """The next thing to ship of one writer."""

    segment: str = segment_name(0)
    offset: int = 0  # bytes into the segment
    notes: int = 0  # bytes into the checkpoints file
    shipped: int = 0  # events acknowledged
    lost: int = 0  # events the service will not take
    markers: tuple[str, ...] = ()  # messages about lost or late events, still to be sent

    @classmethod
    def load(cls, folder: Path) -> Cursor:
        """The writer's cursor; a fresh one when there is none. Raises AuditError when it is not readable."""
        path = folder / NAME
        try:
            values = decode(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise AuditError(f"the shipper's cursor {path} cannot be read: {error.strerror}") from error
        if values is None or not _sound(values):
            raise AuditError(f"the shipper's cursor {path} is damaged: remove it to ship this writer again")
        return cls(**{**values, "markers": tuple(values["markers"])})

    def save(self, folder: Path) -> None:
        """Replace the file, durably. Raises OSError."""
        path = folder / NAME
        fresh = folder / f".{NAME}.{os.getpid()}"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            data = dumps(asdict(self))
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(fd)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        finally:
            os.close(fd)
        fresh.replace(path)

    def advanced(self, **changes: Any) -> Cursor:
        return replace(self, **changes)


def _sound(values: dict[str, Any]) -> bool:
    """Whether these are a cursor's values: the file is read as data, and never names a path outside its folder."""
    numbers = ("offset", "notes", "shipped", "lost")
    return (
        values.keys() == {*numbers, "segment", "markers"}
        and all(type(values[name]) is int and values[name] >= 0 for name in numbers)
        and isinstance(values["segment"], str)
        and re.fullmatch(r"\d{12,}\.jsonl", values["segment"]) is not None
        and isinstance(values["markers"], list)
        and all(isinstance(marker, str) for marker in values["markers"])
    )
