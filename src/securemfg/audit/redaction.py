"""What may not enter an event is replaced before the event is hashed, and the field is named in `redactions`.

Three rules, cheapest first: the schema is an allow-list (`events`), a key that names a secret hides its value, and free
text (reason, strings of `detail`, the resource's id) is searched for the shapes of secrets. This is a net below chosen
fields, not a licence to log anything: a secret of no known shape under a harmless key passes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from securemfg._secret import MASK, Secret

__all__ = ["REDACTED", "plain", "scrub_mapping", "scrub_text", "sensitive_key", "serialisable"]

REDACTED: Final = "[redacted]"
MAX_TEXT: Final = 8192  # characters of one string; the rest is cut
MAX_ITEMS: Final = 64  # entries of one mapping or sequence
MAX_DEPTH: Final = 4

_SECRET_WORDS: Final = frozenset(
    {"password", "passwords", "passwd", "pwd", "passphrase", "secret", "secrets", "token", "authorization"}
    | {"authorisation", "cookie", "cookies", "apikey", "otp", "jwt", "bearer", "privatekey", "accesskey"}
    | {"secretkey", "sessionkey"}
)
_KEY_OWNERS: Final = frozenset(
    {"api", "private", "access", "secret", "signing", "encryption", "session", "data", "master", "shared", "ssh"}
)
# `token_count` and `secret_name` describe a secret without holding it.
_HARMLESS_ENDS: Final = frozenset(
    {"count", "counts", "total", "limit", "ttl", "type", "length", "seconds", "expires", "file", "path", "name"}
    | {"arn", "present", "method"}
)
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_SHAPES: Final = re.compile(
    r"""
      -----BEGIN\ [A-Z0-9 ]{0,32}PRIVATE\ KEY-----.*?(?:-----END\ [A-Z0-9 ]{0,32}PRIVATE\ KEY-----|\Z)
    | \b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b
    | \bhv[sbr]\.[A-Za-z0-9_-]{16,}
    | (?<![A-Za-z0-9._-])[sbr]\.[A-Za-z0-9]{24,}
    | \beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?
    | \bgh[pousr]_[A-Za-z0-9]{30,}
    | (?P<scheme>\b(?i:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}
    | (?P<userinfo>://)[^/\s@]{1,512}@
    | (?P<pair>(?i:pass(?:word|wd|phrase)|pwd|secret|token|authorization|(?:api|access|private|secret)[_-]?key)
        (?:[_-][A-Za-z_-]{1,32})?["']?\s*[=:]\s*["']?)(?:(?i:bearer|basic)\s+)?[^\s"',;&]{1,4096}
    | (?<![A-Za-z0-9/+=_.-])(?![0-9a-fA-F]{40})(?=[a-z0-9/+]{0,39}[A-Z])(?=[A-Z0-9/+]{0,39}[a-z])
        (?=[A-Za-z/+]{0,39}[0-9])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-])
    """,
    re.VERBOSE | re.DOTALL,
)
_EMAIL: Final = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")
_CACHE_SIZE: Final = 4096

_key_cache: dict[str, bool] = {}
_clean_cache: set[str] = set()  # short strings that were searched and found clean


def sensitive_key(key: str) -> bool:
    """Whether a key's name says that its value is a secret. Cached: keys repeat."""
    known = _key_cache.get(key)
    if known is None:
        words = [word.lower() for word in _WORDS.findall(key)]
        known = bool(words) and words[-1] not in _HARMLESS_ENDS and _names_a_secret(words)
        if len(_key_cache) < _CACHE_SIZE:
            _key_cache[key] = known
    return known


def _names_a_secret(words: list[str]) -> bool:
    if not _SECRET_WORDS.isdisjoint(words):
        return True
    return any(owner in _KEY_OWNERS and word in {"key", "keys"} for owner, word in itertools.pairwise(words))


def scrub_text(text: str, *, emails: bool = True) -> str:
    """`text` without the secrets it shows, and cut to MAX_TEXT characters. The same object when it was clean."""
    if text in _clean_cache or len(text) < 6:
        return text
    scrubbed = _search(text, emails=emails) if _suspicious(text) else text
    if emails and scrubbed == text and len(text) <= 64 and len(_clean_cache) < _CACHE_SIZE:
        _clean_cache.add(text)
    return scrubbed


def _search(text: str, *, emails: bool) -> str:
    long = len(text) > MAX_TEXT
    scrubbed = text[: 2 * MAX_TEXT] if long else text  # search beyond the cut, so that no half of a secret is left
    scrubbed = _SHAPES.sub(_hide, scrubbed)
    if emails and "@" in scrubbed:
        scrubbed = _EMAIL.sub(REDACTED, scrubbed)
    return scrubbed[:MAX_TEXT] + "[cut]" if long else scrubbed


def _suspicious(text: str) -> bool:
    """Whether the search is worth its 10 to 30 µs: no shape matches without one of these."""
    return (
        len(text) >= 40  # an AWS secret key has no mark but its length
        or "=" in text
        or ":" in text
        or "@" in text
        or "s." in text
        or "b." in text
        or "r." in text
        or "eyJ" in text
        or "IA" in text
        or "earer" in text.lower()
        or "asic" in text.lower()
        or "ACCA" in text
        or "gh" in text
    )


def _hide(match: re.Match[str]) -> str:
    if match["scheme"]:
        return match["scheme"] + REDACTED
    if match["userinfo"]:
        return f"://{REDACTED}@"
    if match["pair"]:
        return match["pair"] + REDACTED
    return REDACTED


def scrub_mapping(values: Mapping[str, Any], path: str, changed: list[str], depth: int = 0) -> dict[str, Any]:
    """A copy of `values` that can be serialised and shows no secret; the changed fields are added to `changed`."""
    clean: dict[str, Any] = {}
    for key, value in values.items():
        name = key if type(key) is str else str(key)
        if len(clean) >= MAX_ITEMS:
            changed.append(f"{path}.*")
            break
        kind = type(value)
        secret = _key_cache.get(name)  # looked up here: a call per key is what an event can save most on
        if (sensitive_key(name) if secret is None else secret) and value is not None and kind is not bool:
            clean[name] = MASK if kind is Secret else REDACTED
            changed.append(f"{path}.{name}")
        elif kind is str:
            clean[name] = scrubbed = value if value in _clean_cache else scrub_text(value)
            if scrubbed is not value and scrubbed != value:
                changed.append(f"{path}.{name}")
        elif kind is int or kind is bool or value is None or (kind is float and math.isfinite(value)):
            clean[name] = value
        else:
            clean[name] = plain(value, f"{path}.{name}", changed, depth)
    return clean


def plain(value: Any, path: str, changed: list[str], depth: int = 0) -> Any:
    """`value` as JSON can hold it: what cannot be held is replaced by a word for it and named in `changed`."""
    if isinstance(value, Secret):
        changed.append(path)
        return MASK
    if isinstance(value, Enum):
        return plain(value.value, path, changed, depth)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        changed.append(path)
        return str(float(value))  # nan, inf, -inf
    if isinstance(value, str | PurePath):
        text = str(value)
        scrubbed = scrub_text(text)
        if scrubbed != text:
            changed.append(path)
        return scrubbed
    if isinstance(value, date):  # and datetime
        return value.isoformat()
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            return scrub_mapping(value, path, changed, depth + 1)
        if isinstance(value, list | tuple | set | frozenset):
            items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
            if len(items) > MAX_ITEMS:
                changed.append(f"{path}.*")
            return [plain(item, path, changed, depth + 1) for item in list(items)[:MAX_ITEMS]]
    changed.append(path)
    return f"[{type(value).__name__}]"  # never str() or repr() of it: they may show anything


def serialisable(value: Any, path: str, changed: list[str]) -> Any:
    """The slow path, when the encoder refused: lone surrogates and integers above 64 bits, anywhere."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            changed.append(path)
            return value.encode("utf-8", "backslashreplace").decode()
        return value
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 64:
            return value
        changed.append(path)
        return f"{value:#x}"[:MAX_TEXT]
    if isinstance(value, Mapping):
        entries = {}
        for key, item in value.items():
            name = serialisable(key, f"{path}.*" if path else "*", changed)
            entries[name] = serialisable(item, f"{path}.{name}" if path else name, changed)
        return entries
    if isinstance(value, list | tuple):
        return [serialisable(item, path, changed) for item in value]
    changed.append(path)
    return f"[{type(value).__name__}]"
