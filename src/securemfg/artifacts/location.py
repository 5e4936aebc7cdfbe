"""Where an artifact belongs: which run, logged model or trace, and its path below that root.

MLflow opens the same file under several URIs (the root, its parent, a folder below it), so the root is read from the
repository's own URI: the first `<id>/artifacts` on the way down, whose id is in the URI. What a user's path says
is never taken for an id.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Final

from securemfg.encryption.records import FOLDER
from securemfg.errors import EncryptionError

_ROOT: Final = re.compile(r"(?:^|/)((?:m-|tr-)?[0-9a-f]{32})/artifacts(?=/|$)")
_KINDS: Final = {"m-": "model", "tr": "trace"}

KIND: Final = "securemfg:kind"
ROOT: Final = "securemfg:root"
PATH: Final = "securemfg:path"


@dataclass(frozen=True, slots=True)
class Root:
    """An artifact root: a run's, a logged model's or a trace's."""

    uri: str
    kind: str  # run, model or trace
    id: str

    @property
    def binding(self) -> dict[str, str]:
        """What every message and record below this root is bound to."""
        return {KIND: self.kind, ROOT: self.id}

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


@dataclass(frozen=True, slots=True)
class Location:
    """One artifact: its root and its path below it."""

    root: Root
    path: str

    @property
    def binding(self) -> dict[str, str]:
        return {**self.root.binding, PATH: self.path}


def join(uri: str, path: str | None) -> str:
    return f"{uri.rstrip('/')}/{path.strip('/')}" if path else uri.rstrip("/")


def locate(uri: str, path: str | None = None) -> Location | None:
    """The place of `path` under a repository's `uri`, or None when no run, model or trace is on the way."""
    base = join(uri, None)
    whole = join(uri, posixpath.normpath(path) if path else None)
    match = _ROOT.search(whole)
    if match is None or match.end(1) > len(base):
        return None
    name = match[1]
    root = Root(whole[: match.end()], _KINDS.get(name[:2], "run"), name)
    return Location(root, whole[match.end() :].strip("/"))


def check_user_path(path: str | None) -> None:
    """Refuse our own folder as a user's path. Raises EncryptionError."""
    if path and FOLDER in path.split("/"):
        raise EncryptionError(f"artifact path {path!r} is reserved: '{FOLDER}' holds the run keys' records")


def readable_path(path: str | None) -> str | None:
    """`path` without detours, refusing what leads out of the root or into our own folder. Raises EncryptionError."""
    if not path:
        return path
    plain = posixpath.normpath(path)
    if plain.startswith(("/", "../")) or plain == "..":
        raise EncryptionError(f"artifact path {path!r} leads out of its root")
    check_user_path(plain)
    return "" if plain == "." else plain
