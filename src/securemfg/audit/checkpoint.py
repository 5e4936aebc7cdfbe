"""Signed checkpoints of a writer's journal: C2SP tlog-checkpoint in a C2SP signed-note, Ed25519 (RFC 8032).

    securemfg/<writer>               origin
    1000                             size: number of events
    q0JY...=                         RFC 6962 root over the events' hashes, base64
    head <hex>                       SHA-256 of the last event
    prev <hex>                       SHA-256 of the previous note, zeros in the first
    time 2026-11-23T08:15:00.000000000Z

    — securemfg/<host> <base64 of 4-byte key id and 64-byte signature>

The private key is 32 raw bytes beside its verifier key (`.pub`, "name+id+key" of the signed-note spec). Whoever
can write the journal as the same user can read this key: a note kept elsewhere is what makes an anchor.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from securemfg.audit.segments import make_private, sync_folder
from securemfg.errors import AuditError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Checkpoint", "Signer", "Verifier", "notes", "parse"]

KEY_NAME: Final = "journal.ed25519"
_ORIGIN: Final = "securemfg/"
_SIGNATURE: Final = re.compile(r"— (\S+) ([A-Za-z0-9+/]+={0,2})")
_ED25519: Final = b"\x01"  # the signed-note spec's algorithm byte


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a note says. It proves nothing until its signature has been checked."""

    writer: str
    size: int  # events
    root: bytes  # 32 bytes
    head: str  # hex
    previous: str  # hex
    time: str  # RFC 3339
    note: str  # the whole note, signatures included

    @property
    def digest(self) -> str:
        """What the next note's `prev` says."""
        return sha256(self.note.encode()).hexdigest()


def text(*, writer: str, size: int, root: bytes, head: str, previous: str, time: str) -> str:
    """A note's text, the part that is signed."""
    encoded = base64.b64encode(root).decode()
    return f"{_ORIGIN}{writer}\n{size}\n{encoded}\nhead {head}\nprev {previous}\ntime {time}\n"


def parse(note: str) -> Checkpoint:
    """Read one note. Raises ValueError saying what is wrong with it."""
    signed, separator, signatures = note.partition("\n\n")
    if not separator or not signatures.endswith("\n"):
        raise ValueError("it has no signature part")
    rows = signed.split("\n")
    if len(rows) < 3 or not rows[0].startswith(_ORIGIN):
        raise ValueError(f"its first line is not {_ORIGIN}<writer>")
    if not rows[1].isascii() or not rows[1].isdigit() or (rows[1] != "0" and rows[1].startswith("0")):
        raise ValueError("its size is not a number")
    try:
        root = base64.b64decode(rows[2], validate=True)
    except binascii.Error:
        root = b""
    if len(root) != 32:
        raise ValueError("its root is not 32 bytes")
    extra = dict(row.partition(" ")[::2] for row in rows[3:])
    if not {"head", "prev", "time"} <= extra.keys():
        raise ValueError("it lacks head, prev or time")
    return Checkpoint(
        writer=rows[0].removeprefix(_ORIGIN),
        size=int(rows[1]),
        root=root,
        head=extra["head"],
        previous=extra["prev"],
        time=extra["time"],
        note=note,
    )


def notes(content: str) -> Iterator[str]:
    """The complete notes of a `checkpoints` file: text, empty line, signatures, empty line. A torn last one is none."""
    parts = content.split("\n\n")
    for position in range(0, len(parts) - 2, 2):
        yield f"{parts[position]}\n\n{parts[position + 1]}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verifier:
    """A public key with its name, as text "name+keyid+base64" (signed-note's vkey)."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def parse(cls, vkey: str, origin: str = "argument") -> Verifier:
        """Read a verifier key. Raises AuditError naming `origin` when it is none."""
        parts = vkey.strip().split("+", 2)
        try:
            blob = base64.b64decode(parts[2], validate=True)
            found = cls(name=parts[0], public=blob[1:])
            if blob[:1] == _ED25519 and len(blob) == 33 and found.key_id.hex() == parts[1]:
                return found
        except (IndexError, binascii.Error):
            pass
        raise AuditError(f"not an Ed25519 verifier key ({origin}): it must be like 'name+0123abcd+base64'")

    def accepts(self, note: str) -> bool:
        """Whether this key signed `note`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        signed, _, signatures = note.partition("\n\n")
        for name, encoded in _SIGNATURE.findall(signatures):
            try:
                blob = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                continue
            if name == self.name and blob[:4] == self.key_id:
                try:
                    Ed25519PublicKey.from_public_bytes(self.public).verify(blob[4:], f"{signed}\n".encode())
                except (InvalidSignature, ValueError):
                    continue
                return True
        return False


class Signer:
    """The host's journal key, loaded (and made on first use) from a private file."""

    def __init__(self, private: Ed25519PrivateKey, verifier: Verifier) -> None:
        self._private = private
        self.verifier = verifier

    @classmethod
    def load(cls, folder: Path, host: str) -> Signer:
        """The key `folder/journal.ed25519`, made when absent. Raises AuditError when it is not private or not a key."""
        path = folder / KEY_NAME
        try:
            make_private(folder)
            raw = _read(path, folder) if os.path.lexists(path) else _create(path, folder)
            return cls._of(raw, path, host)
        except OSError as error:
            raise AuditError(
                f"the journal's signing key {path} cannot be used: {error.strerror}; check its owner and mode"
            ) from error

    @classmethod
    def _of(cls, raw: bytes, path: Path, host: str) -> Signer:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.from_private_bytes(raw)
        public = private.public_key().public_bytes_raw()
        beside = path.with_name(f"{KEY_NAME}.pub")
        with contextlib.suppress(FileNotFoundError):
            found = Verifier.parse(beside.read_text(encoding="ascii"), str(beside))
            if found.public != public:
                raise AuditError(f"{beside} does not belong to {path}: restore the pair, or remove both for a new key")
            return cls(private, found)  # keeps the name it was made with
        verifier = Verifier(name=_ORIGIN + host, public=public)
        fresh = path.with_name(f".{KEY_NAME}.pub.{os.urandom(8).hex()}")
        fresh.write_text(f"{verifier}\n", encoding="ascii")
        fresh.replace(beside)
        return cls(private, verifier)

    def sign(self, signed: str) -> str:
        """The note of `signed` (a text that ends in a newline)."""
        blob = self.verifier.key_id + self._private.sign(signed.encode())
        return f"{signed}\n— {self.verifier.name} {base64.b64encode(blob).decode()}\n"


def _read(path: Path, folder: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            raise AuditError(f"the journal's signing key {path} must be a file of this user with mode 0600")
        above = folder.stat()
        if above.st_uid not in {0, os.geteuid()} or (above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX):
            raise AuditError(
                f"others can replace the journal's signing key: {folder} must be writable by this user only"
            )
        raw = os.read(fd, 33)
    finally:
        os.close(fd)
    if len(raw) != 32:
        raise AuditError(f"the journal's signing key {path} must be 32 bytes: restore it, or remove it for a new one")
    return raw


def _create(path: Path, folder: Path) -> bytes:
    fresh = folder / f".{KEY_NAME}.{os.urandom(8).hex()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(fd, os.urandom(32))
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        if written == 32:
            with contextlib.suppress(FileExistsError):  # another process was first: its key holds
                os.link(fresh, path)
            sync_folder(folder)
    finally:
        fresh.unlink()
    return _read(path, folder)
