"""Canary words, and the search for them in everything that a process may have left behind.

A word is `CANARY-<kind>-<token>`: the kind says which value it was put into, the token which pass of a test wrote it.
The search reads bytes as they are and in the forms in which a value may hide: zip members, compressed streams, the
pixels of a picture, base64, hexadecimal, percent-encoding, UTF-16 and UTF-32, at any depth up to `DEPTH`.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import io
import lzma
import re
import sqlite3
import urllib.parse
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

DEPTH: Final = 4  # forms inside forms: a picture in a zip, base64 in JSON in base64
_LARGEST: Final = 64 << 20  # bytes that one compressed stream may unfold to

_SHORTEST: Final = 18  # bytes of the shortest word: what is shorter needs no second look
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_-]{24,}")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{36,}")
_ESCAPED: Final = re.compile(rb"\\(?:u00|x)([0-9a-fA-F]{2})")
_COMPRESSED: Final = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|BZh[1-9]1AY|\xfd7zXZ\0")
_PICTURES: Final = (b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8\xff", b"GIF8")
_SQLITE: Final = b"SQLite format 3\0"


def word(kind: str, token: str) -> str:
    """The canary of one kind of value: letters, digits and hyphens, so that MLflow takes it as a name too."""
    return f"CANARY-{kind}-{token}"


def number(kind: str, token: str) -> float:
    """A canary for a value that is a number: eleven digits that no other pass uses, exact as a double."""
    return float(10**10 + zlib.crc32(f"{kind}-{token}".encode()))


def forms(data: bytes, depth: int = DEPTH) -> Iterator[bytes]:
    """`data`, and everything that can be read out of it."""
    yield data
    if depth == 0 or len(data) < _SHORTEST:
        return
    for inner in _decoded(data):
        if inner and inner != data:
            yield from forms(inner, depth - 1)


def _decoded(data: bytes) -> Iterator[bytes]:
    if b"\0" in data:
        yield data.replace(b"\0", b"")  # UTF-16 and UTF-32, either way round
    if b"%" in data:
        yield urllib.parse.unquote_to_bytes(data)
    if b"\\" in data:
        yield _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), data)
    if b"PK\x03\x04" in data:
        with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                with suppress(zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError):
                    yield archive.read(name)
    if data.startswith(_PICTURES):
        yield _pixels(data)
    for match in _COMPRESSED.finditer(data):
        yield _unfolded(data[match.start() :])
    text = (
        data.replace(b"\\n", b"").replace(b"\n", b"").replace(b"\r", b"") if b"\n" in data or b"\\n" in data else data
    )
    for source in {data, text}:
        for run in _BASE64.findall(source):
            plain = run.replace(b"-", b"+").replace(b"_", b"/")
            for start in range(4):  # the run may begin anywhere in a group of four
                part = plain[start:] if len(plain[start:]) % 4 != 1 else plain[start:-1]
                yield binascii.a2b_base64(part + b"=" * (-len(part) % 4))
        for run in _HEX.findall(source):
            for start in range(2):
                yield bytes.fromhex(run[start : len(run) - (len(run) - start) % 2].decode())


def _pixels(data: bytes) -> bytes:
    try:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            said = repr(picture.info).encode()
            return picture.tobytes() + said
    except (ImportError, OSError, ValueError, SyntaxError):
        return b""


def _unfolded(data: bytes) -> bytes:
    """The longest readable beginning of a compressed stream."""
    with suppress(zlib.error):
        return zlib.decompressobj(wbits=47).decompress(data, _LARGEST)
    with suppress(OSError, ValueError):
        return bz2.BZ2Decompressor().decompress(data, _LARGEST)
    with suppress(lzma.LZMAError):
        return lzma.LZMADecompressor().decompress(data, _LARGEST)
    return b""


class Hunt:
    """One search for the canaries of several passes: `found[token][kind]` are the places where each was."""

    def __init__(self, passes: Mapping[str, Mapping[str, str]]) -> None:
        """`passes`: for each token, the canaries of it that are no words."""
        tokens = b"|".join(re.escape(token.encode()) for token in passes)
        self._words = re.compile(rb"CANARY-([a-z0-9-]+?)-(" + tokens + rb")", re.IGNORECASE)
        self._texts = [(token, kind, text.encode()) for token in passes for kind, text in passes[token].items()]
        self._known: dict[bytes, set[tuple[str, str]]] = {}  # a database repeats itself
        self.found: dict[str, defaultdict[str, set[str]]] = {token: defaultdict(set) for token in passes}

    def look(self, place: str, data: bytes) -> None:
        hits = self._known.get(data)
        if hits is None:
            hits = self._known[data] = set(self._hits(data))
        for token, kind in hits:
            self.found[token][kind].add(place)

    def _hits(self, data: bytes) -> Iterator[tuple[str, str]]:
        for form in forms(data):
            for match in self._words.finditer(form):
                yield match[2].decode().lower(), match[1].decode().lower()
            yield from ((token, kind) for token, kind, text in self._texts if text in form)

    def look_at_all(self, place: str, blobs: Mapping[str, bytes]) -> None:
        """Each blob and its name. What is only a name is reported as one."""
        for name, data in blobs.items():
            self.look(f"{place}: name", name.encode())
            self.look(f"{place}: {name}", data)

    def look_below(self, place: str, folder: Path, *, but: Path | None = None) -> None:
        """Every file, link and name below `folder`, without `but`; a SQLite database also by its columns."""
        for path in sorted(folder.rglob("*")):
            if but is not None and (path == but or but in path.parents):
                continue
            self.look(f"{place}: name", str(path.relative_to(folder)).encode())
            if path.is_symlink():
                self.look(f"{place}: link", str(path.readlink()).encode())
            elif path.is_file():
                with suppress(FileNotFoundError, PermissionError):  # another process's, just removed
                    self.look_at_file(place, path)

    def look_at_file(self, place: str, path: Path) -> None:
        data = path.read_bytes()
        if data.startswith(_SQLITE):
            self.look_at_database(place, path)
        self.look(f"{place}: {path.name}", data)

    def look_at_database(self, place: str, path: Path) -> None:
        """Every value of every column of every table, and what SQLite keeps of the schema."""
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.text_factory = bytes
            names = [row[0].decode() for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            for table in [*names, "sqlite_master"]:
                rows = connection.execute(f'SELECT * FROM "{table}"')
                columns = [column[0] for column in rows.description]
                for row in rows:
                    for column, value in zip(columns, row, strict=True):
                        if value is not None:
                            self.look(f"{place}: {table}.{column}", as_bytes(value))


def as_bytes(value: object) -> bytes:
    """A column's value as the search reads it; a number by its digits."""
    if isinstance(value, bytes):
        return value
    return f"{value:.0f}".encode() if isinstance(value, float) and value.is_integer() else str(value).encode()


def hidden(text: str) -> dict[str, bytes]:
    """`text` in every form that the search must see through: the search is tested with these."""
    import gzip

    raw = text.encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("inner.txt", b"x" * 100 + raw)
    odd = b"ab" + raw
    return {
        "plain": raw,
        "lower case": raw.lower(),
        "base64": base64.b64encode(raw),
        "base64, shifted": base64.b64encode(odd),
        "base64 for URLs in JSON": b'{"v":"' + base64.urlsafe_b64encode(b"\xff\xfe" + raw) + b'"}',
        "base64 in lines": base64.encodebytes(b"y" * 70 + raw),
        "hexadecimal": b"a" + raw.hex().encode(),
        "UTF-16": text.encode("utf-16-le"),
        "UTF-16, big end first": text.encode("utf-16-be"),
        "UTF-32": text.encode("utf-32-le"),
        "percent": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "escaped": "".join(f"\\u{byte:04x}" for byte in raw).encode(),
        "zip": b"head" + archive.getvalue(),
        "gzip": b"head" + gzip.compress(raw),
        "zlib": zlib.compress(raw),
        "bzip2": bz2.compress(raw),
        "xz": lzma.compress(raw),
        "a zip in base64": base64.b64encode(archive.getvalue()),
    }
