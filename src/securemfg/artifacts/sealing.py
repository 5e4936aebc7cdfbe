"""Sealed values: texts that are messages, each bound to one object, kind and name. For a store that keeps texts.

A sealed value is `securemfg:FORM:` and a message in base64url without padding (RFC 4648, section 5). Its context says
what it is: moved to another object, kind or name it does not open. Nothing here talks to a store or a key service.
"""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from securemfg.artifacts.location import KIND, PATH, ROOT
from securemfg.encryption.message import Context
from securemfg.encryption.records import FOLDER, MAX_RECORD
from securemfg.encryption.run_key import RunKey, run_key_ids
from securemfg.encryption.stream import decrypt_bytes, encrypt_bytes
from securemfg.errors import DecryptionError

VALUES: Final = (
    f"{FOLDER}/values"  # below an artifact root: values that are too long, and for which keys values are sealed
)
_USED: Final = re.compile(rf"/{re.escape(VALUES)}/([0-9a-f]{{32}})\.key$")
_TEXT: Final = re.compile(r"securemfg:([123]):([A-Za-z0-9_-]+)")
_START: Final = "securemfg:"


class Form(StrEnum):
    """What a sealed text holds."""

    ROOTED = "1"  # the value, for a run key whose record lies below the object's artifact root
    CARRIED = "2"  # the run key's record, then the value: the object has no artifact root
    STORED = "3"  # the path of an encrypted artifact that holds the value: it is too long for the store


@dataclass(frozen=True, slots=True)
class Subject:
    """What a value is of: bound to it, so that it opens nowhere else."""

    kind: str  # param, tag, ...
    id: str  # of the run, model, trace, ... that has it
    name: str  # its key there

    @property
    def binding(self) -> Context:
        return {KIND: self.kind, ROOT: self.id, PATH: self.name}

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sealed:
    """A sealed text, taken apart. Nothing in it was verified."""

    form: Form
    key_id: str
    message: bytes
    record: bytes = b""


def is_sealed(text: object) -> bool:
    """Whether a text looks like a sealed value. `unseal` says whether it is one."""
    return isinstance(text, str) and text.startswith(_START) and _TEXT.fullmatch(text) is not None


def used_path(key_id: str) -> str:
    """Where below an artifact root it is noted that values elsewhere are sealed for a run key."""
    return f"{VALUES}/{key_id}.key"


def used_key(address: str) -> str | None:
    """The id of the run key that the note at `address` is of: it is needed, though no artifact may name it."""
    match = _USED.search(address)
    return match[1] if match is not None else None


def seal(value: str, subject: Subject, key: RunKey, *, record: bytes = b"", stored: bool = False) -> str:
    """The sealed text of `value`: with `record` it carries the run key's record; `stored` says that it is a path.

    Raises EncryptionError.
    """
    message = encrypt_bytes(value.encode("utf-8", "surrogatepass"), key=key, context=subject.binding)
    form = Form.STORED if stored else Form.CARRIED if record else Form.ROOTED
    if record:
        message = struct.pack(">I", len(record)) + record + message
    return f"{_START}{form}:{base64.urlsafe_b64encode(message).rstrip(b'=').decode()}"


def take_apart(text: str) -> Sealed:
    """The parts of a sealed text. Raises DecryptionError when it is none."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise DecryptionError("it is no sealed value")
    form, encoded = Form(match[1]), match[2]
    try:
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except ValueError:
        raise DecryptionError("it is cut short") from None
    record = b""
    if form is Form.CARRIED:
        length = int.from_bytes(data[:4])
        if len(data) < 4 or length > MAX_RECORD or len(data) < 4 + length:
            raise DecryptionError("it is cut short")
        record, data = data[4 : 4 + length], data[4 + length :]
    ids = run_key_ids(data)
    if len(ids) != 1:
        raise DecryptionError("it is for no run key")
    return Sealed(form=form, key_id=ids[0], message=data, record=record)


def unseal(sealed: Sealed, subject: Subject, key: RunKey) -> str:
    """The value, or the path, of a sealed text that belongs to `subject`. Raises DecryptionError."""
    return decrypt_bytes(sealed.message, key=key, context=subject.binding).decode("utf-8", "surrogatepass")
