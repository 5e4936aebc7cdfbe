"""A model's signed manifest: which files it has, by the digests of their ciphertext, and who says so.

The format is OpenSSF model-signing's 1.0 (https://github.com/sigstore/model-transparency): a Sigstore bundle with a
DSSE envelope around an in-toto statement of predicate type https://model_signing/signature/v1.0, files by SHA-256 in
shards of a frame's length, the records' folder among its signed `ignore_paths`. Nothing here asks a store or a service.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from securemfg.encryption.digests import SHARD, FileDigest
from securemfg.encryption.records import FOLDER
from securemfg.encryption.signers import Signer, VerifyingKey
from securemfg.errors import DecryptionError, EncryptionError

FILE: Final = f"{FOLDER}/manifest.sig"  # below the model's folder
MAX_MANIFEST: Final = 64 << 20  # bytes
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
_SERIALIZATION: Final = {
    "method": "shards",
    "hash_type": "sha256",
    "shard_size": SHARD,
    "allow_symlinks": False,
    "ignore_paths": [FOLDER],
}
_ALGORITHM: Final = f"sha256-sharded-{SHARD}"  # as model-signing names it
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SHOWN: Final = 5  # files in a message
_LONG: Final = 200  # characters of a file's name in a message


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was signed. From `verified` only: nothing else is worth comparing with."""

    name: str  # the model's place: model/ID, or run/ID/FOLDER
    files: Mapping[str, FileDigest]  # path below the model's folder -> of the file as stored
    payload: bytes  # the signed statement
    signed_by: str  # the pinned key, as the settings name it
    pinned: bool | None = None  # of a logged model, just signed: whether the tracking store has its pin

    @property
    def pin(self) -> str:
        """What a registered version is pinned to: the statement's digest. Signing it anew with another key keeps it."""
        return f"sha256:{hashlib.sha256(self.payload).hexdigest()}"

    def check(self, found: Mapping[str, FileDigest], below: str = "") -> None:
        """Refuse anything but exactly the files at or below `below`. Raises DecryptionError."""
        expected = {path: digest for path, digest in self.files.items() if is_below(path, below)}
        problems = [
            f"{what} {_some(names)}"
            for what, names in (
                ("it has files that nobody signed:", found.keys() - expected.keys()),
                ("signed files are missing:", expected.keys() - found.keys()),
                (
                    "files were changed or swapped:",
                    {p for p in found.keys() & expected.keys() if found[p] != expected[p]},
                ),
            )
            if names
        ]
        if problems:
            raise DecryptionError(f"{self.name} is not the model that was signed: {'; '.join(problems)}")


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it; everything lies in ''."""
    return not folder or path == folder or path.startswith(f"{folder}/")


def _some(names: set[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


# -- signing ----------------------------------------------------------------------------------------------------------


def sign(name: str, files: Mapping[str, FileDigest], signer: Signer) -> tuple[bytes, Manifest]:
    """The bundle over `files` (by path), and what it says. Raises EncryptionError, KeyUnavailable."""
    if not files:
        raise EncryptionError(f"{name} has no files: there is nothing to sign")
    for path, digest in files.items():
        if not digest.size:  # it has no shard, so the format cannot name it; a message is never empty
            raise EncryptionError(f"{path!r} is empty as stored, which a manifest cannot say: encrypt it first")
        if not _plain(path):
            raise EncryptionError(f"{path!r} cannot be in a manifest: a path is relative, without '..' and our folder")
    payload = _statement(name, files)
    signature, key = signer.sign(_pae(payload))
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": key.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    made = orjson.dumps(bundle)
    if len(made) > MAX_MANIFEST:  # refused now, not when it is needed
        raise EncryptionError(f"the manifest of {name} would be longer than {MAX_MANIFEST} bytes: fewer files")
    return made, Manifest(name=name, files=dict(files), payload=payload, signed_by=key.name)


def _statement(name: str, files: Mapping[str, FileDigest]) -> bytes:
    ordered = [
        (f"{path}:{start}:{end}", digest)
        for path, of in sorted(
            files.items(), key=lambda item: item[0].split("/")
        )  # as the specification's paths compare
        for (start, end), digest in zip(_shards(of.size), of.shards, strict=True)
    ]
    whole = _whole(digest for _, digest in ordered)
    return orjson.dumps(
        {
            "_type": _STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": whole}}],
            "predicateType": _PREDICATE,
            "predicate": {
                "serialization": _SERIALIZATION,
                "resources": [{"name": shard, "algorithm": _ALGORITHM, "digest": digest} for shard, digest in ordered],
            },
        }
    )


def _shards(size: int) -> Iterator[tuple[int, int]]:
    """Where the shards of a file of `size` bytes start and end."""
    return ((start, min(start + SHARD, size)) for start in range(0, size, SHARD))


def _whole(digests: Iterable[str]) -> str:
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (protocol 1.0.0): what is really signed."""
    return f"DSSEv1 {len(_PAYLOAD)} {_PAYLOAD} {len(payload)} ".encode() + payload


# -- verifying --------------------------------------------------------------------------------------------------------


def verified(bundle: bytes, keys: Sequence[VerifyingKey], *, origin: str) -> Manifest:
    """The manifest in `bundle`, if one of `keys` signed it. What the bundle says of keys only chooses among them.

    Raises DecryptionError.
    """
    try:
        return _verified(bundle, keys, origin)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # orjson's and binascii's among them
        raise DecryptionError(f"the manifest is damaged or none: {type(error).__name__}: {str(error)[:200]}") from error


def _verified(bundle: bytes, keys: Sequence[VerifyingKey], origin: str) -> Manifest:
    if len(bundle) > MAX_MANIFEST:
        raise DecryptionError(f"the manifest is longer than {MAX_MANIFEST} bytes")
    document = orjson.loads(bundle)
    envelope = document["dsseEnvelope"]
    _require(document["mediaType"], _BUNDLE, "media type")
    _require(envelope["payloadType"], _PAYLOAD, "payload type")
    (signature,) = envelope["signatures"]
    payload = _decoded(envelope["payload"])
    material = document["verificationMaterial"]
    public = material.get("publicKey") if isinstance(material, dict) else None
    hint = str(public.get("hint") or "") if isinstance(public, dict) else ""
    key = _signed_by(_decoded(signature["sig"]), payload, keys, hint, origin)
    # from here on it is what a trusted signer wrote
    statement = orjson.loads(payload)
    _require(statement["_type"], _STATEMENT, "statement type")
    _require(statement["predicateType"], _PREDICATE, "predicate type")
    (subject,) = statement["subject"]
    serialization = statement["predicate"]["serialization"]
    _require(serialization["method"], "shards", "method")
    _require(serialization["hash_type"], "sha256", "hash type")
    _require(serialization["shard_size"], SHARD, "shard size")
    files = _files(statement["predicate"]["resources"])
    whole = _whole(digest for of in files.values() for digest in of.shards)
    _require(subject["digest"]["sha256"], whole, "subject's digest")
    return Manifest(name=str(subject["name"]), files=files, payload=payload, signed_by=key.name)


def _signed_by(signature: bytes, payload: bytes, keys: Sequence[VerifyingKey], hint: str, origin: str) -> VerifyingKey:
    message = _pae(payload)
    for key in keys:
        if hint in {"", key.hint} and key.verifies(signature, message):
            return key
    pinned = ", ".join(f"{key.name} ({key.hint[:16]})" for key in keys) or "none"
    if hint in {key.hint for key in keys}:
        raise DecryptionError(f"the manifest was changed: its signature does not verify with {hint[:16]}")
    said = hint[:16] if _DIGEST.fullmatch(hint) else "a key that it does not name"
    raise DecryptionError(
        f"the manifest was signed by {said}, which artifacts.signers ({origin}) does not pin: {pinned}"
    )


def _files(resources: Any) -> dict[str, FileDigest]:
    """Every file of the statement: its shards stand one after another, from its first byte to its last."""
    files: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for resource in resources:
        shard, digest = resource["name"], resource["digest"]
        _require(resource["algorithm"], _ALGORITHM, f"algorithm of {shard!r}")
        path, start, end = shard.rsplit(":", 2)
        known = sizes.get(path, 0)
        follows = start == str(known) and known % SHARD == 0 and end.isascii() and end.isdigit()
        if not follows or not known < int(end) <= known + SHARD or not _plain(path) or not _DIGEST.fullmatch(digest):
            raise DecryptionError(f"the manifest has no proper entry for {shard[:_LONG]!r}")
        files.setdefault(path, []).append(digest)
        sizes[path] = int(end)
    return {path: FileDigest(sizes[path], tuple(digests)) for path, digests in files.items()}


def _plain(path: str) -> bool:
    return (
        bool(path)
        and path == posixpath.normpath(path)
        and path[0] != "/"
        and not {"..", ".", FOLDER} & set(path.split("/"))
    )


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DecryptionError(f"the manifest is damaged: {error}") from error


def _require(found: Any, expected: str | int, what: str) -> None:
    if found != expected:
        raise DecryptionError(f"the manifest's {what} is {str(found)[:80]!r}, not {expected!r}")
