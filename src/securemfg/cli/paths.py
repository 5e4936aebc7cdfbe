"""What the paths on a command line mean: files, folders, patterns, and where each result goes."""

# os.path answers where pathlib raises: a folder that may not be entered is not there for us
# ruff: noqa: PTH100, PTH112, PTH114

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path
from typing import Final

from securemfg.errors import ConfigError

SUFFIX: Final = ".esdk"
PIPE: Final = "-"
_OWN: Final = ".securemfg"  # keys, records and journals: never done as somebody's data
_MAGIC: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Found:
    """One file to work on, and its place below the folder or pattern that it was found by."""

    source: Path
    relative: Path
    named: bool  # by itself, not found


@dataclass(frozen=True, slots=True)
class Skipped:
    source: Path
    why: str


@dataclass(frozen=True, slots=True)
class Given:
    """What was given. `single`: one file, named by itself, so that its failure is the whole answer."""

    files: list[Found] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    single: bool = False


def find(arguments: Sequence[str], *, suffix: str = "") -> Given:
    """The files that `arguments` mean, each once. Of a folder's files and a pattern's those that end in `suffix`.

    Folders are searched with all below them; `.securemfg` folders and links that leave the tree are skipped. A name
    that exists is that file, whatever characters are in it. Raises ConfigError for a pattern that matches nothing.
    """
    given = Given(single=len(arguments) == 1 and not os.path.isdir(arguments[0]) and not _is_pattern(arguments[0]))
    for argument in arguments:
        path = Path(argument)
        if os.path.isdir(path):
            _take(given, _walk(path, path), suffix)
        elif _is_pattern(argument):
            _take_pattern(given, argument, suffix)
        else:
            given.files.append(Found(path, Path(path.name), named=True))
    first = {os.path.abspath(found.source): found for found in reversed(given.files)}
    given.files[:] = [found for found in given.files if first[os.path.abspath(found.source)] is found]
    return given


def _is_pattern(argument: str) -> bool:
    return _MAGIC.search(argument) is not None and not os.path.lexists(argument)


def _take(given: Given, entries: Iterator[Found | Skipped], suffix: str) -> None:
    for entry in entries:
        if isinstance(entry, Skipped):
            given.skipped.append(entry)
        elif entry.source.name.endswith(suffix):
            given.files.append(entry)


def _take_pattern(given: Given, pattern: str, suffix: str) -> None:
    path = Path(pattern).expanduser()
    magic = next(number for number, part in enumerate(path.parts) if _MAGIC.search(part))
    root = Path(*path.parts[:magic])
    before = len(given.files), len(given.skipped)
    for match in _match(root, path.parts[magic:]):
        if _leaves(match, root):
            given.skipped.append(Skipped(match, "a link that leaves the tree"))
        elif os.path.isdir(match):
            if "**" not in path.parts[magic:]:  # `**` has the files themselves
                _take(given, _walk(match, root), suffix)
        else:
            _take(given, iter([_entry(match, root)]), suffix)
    if (len(given.files), len(given.skipped)) == before:
        ending = f" that ends in {suffix}" if suffix else ""
        raise ConfigError(f"the pattern {pattern!r} matches no file{ending}: check it, or name the files")


def _match(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The paths below `folder` that match, in order. As a shell does: names with a dot only when the pattern has one.

    Links to folders are not followed by `**`: they can form circles.
    """
    part, rest = parts[0], parts[1:]
    if part == "**":
        if rest:
            yield from _match(folder, rest)
        for path in _listed(folder):
            if not path.name.startswith("."):
                if not rest:
                    yield path
                if os.path.isdir(path) and not os.path.islink(path):
                    yield from _match(path, parts)
        return
    if _MAGIC.search(part):
        same = re.compile(translate(part)).match
        paths = [p for p in _listed(folder) if same(p.name) and (part.startswith(".") or not p.name.startswith("."))]
    else:
        paths = [folder / part]
    for path in paths:
        if rest and os.path.isdir(path):
            yield from _match(path, rest)
        elif not rest and os.path.lexists(path):
            yield path


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (NotADirectoryError, FileNotFoundError):
        return []
    except OSError as error:
        raise ConfigError(f"folder {folder} cannot be read: {error.strerror}; nothing was done") from error


def _walk(folder: Path, root: Path) -> Iterator[Found | Skipped]:
    if _OWN in folder.absolute().parts:
        yield Skipped(folder, "securemfg's own folder")
        return
    for path in _listed(folder):
        if os.path.isdir(path) and not os.path.islink(path):
            yield from _walk(path, root)
        else:
            yield _entry(path, root)


def _entry(path: Path, root: Path) -> Found | Skipped:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Skipped(path, "a link to nothing" if os.path.islink(path) else f"cannot be read: {error.strerror}")
    if os.path.islink(path) and _leaves(path, root):
        return Skipped(path, "a link that leaves the tree")
    if stat.S_ISDIR(mode):
        return Skipped(path, "a link to a folder: its files are done where they lie")
    if not stat.S_ISREG(mode):
        return Skipped(path, "not a regular file")
    return Found(path, path.relative_to(root), named=False)


def _leaves(path: Path, root: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links
        return True


# -- targets ----------------------------------------------------------------------------------------------------------


def settle(
    given: Given, output: str | None, name: Callable[[Found], str], *, overwrite: bool
) -> list[tuple[Found, Path]]:
    """Where each file goes, settled before the first is touched.

    `name` gives a result's name. Without `output` it lies beside its source; below it, several lie as they lay below
    the folder they were found in. Raises ConfigError when two would become one, or one would replace a source.
    """
    pairs = [(found, _target(found, output, name(found), single=given.single)) for found in given.files]
    seen: dict[str, Path] = {}
    sources = {os.path.realpath(found.source): found.source for found in given.files}
    for found, target in pairs:
        other = seen.setdefault(os.path.abspath(target), found.source)
        if other is not found.source:
            raise ConfigError(
                f"{other} and {found.source} would both become {target}: do them apart, with a target each"
            )
        if overwrite and len(pairs) > 1 and (lost := sources.get(os.path.realpath(target))):
            raise ConfigError(f"{found.source} would become {target} and replace {lost}, a source: name -o FOLDER")
    return pairs


def make_folders(output: str, targets: Iterable[Path]) -> None:
    """The folder `output` and those of the targets below it. Raises ConfigError."""
    for folder in dict.fromkeys([Path(output), *(target.parent for target in targets)]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"-o {output} must be a folder for several files, and {folder} cannot be made: {error.strerror}"
            ) from error


def key_here(text: str) -> str:
    """A key's text as typed: its relative path is meant from the working folder, not from that of the settings."""
    scheme, separator, rest = text.partition(":")
    return f"{scheme}{separator}{Path(rest).expanduser().absolute()}" if rest and scheme in {"local", "rsa"} else text


def _target(found: Found, output: str | None, name: str, *, single: bool) -> Path:
    if output is None:
        return found.source.with_name(name)
    if not single:
        return Path(output) / found.relative.with_name(name)
    return Path(output) / name if os.path.isdir(output) else Path(output)
