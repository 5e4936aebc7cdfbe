"""A model's signed manifest: which files it has, by the digests of their ciphertext, and who says so.

The format is OpenSSF model-signing's 1.0 (https://github.com/sigstore/model-transparency): a Sigstore bundle with a
DSSE envelope around an in-toto statement of predicate type https://model_signing/signature/v1.0, files by SHA-256, the
records' folder among its signed `ignore_paths`. Nothing here asks a store or a service.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from securemfg.encryption.run_key import FOLDER
from securemfg.encryption.signers import Signer, VerifyingKey
from securemfg.errors import DecryptionError, EncryptionError

FILE: Final = f"{FOLDER}/manifest.sig"  # below the model's folder
MAX_MANIFEST: Final = 64 << 20  # bytes
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
_SERIALIZATION: Final = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [FOLDER]}
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SHOWN: Final = 5  # files in a message


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was signed. From `verified` only: nothing else is worth comparing with."""

    name: str  # the model's place: model/ID, or run/ID/FOLDER
    files: Mapping[str, str]  # path below the model's folder -> SHA-256 (hex) of the file as stored
    payload: bytes  # the signed statement
    signed_by: str  # the pinned key, as the settings name it

    @property
    def pin(self) -> str:
        """What a registered version is pinned to: the statement's digest. Signing it anew with another key keeps it."""
        return f"sha256:{hashlib.sha256(self.payload).hexdigest()}"

    def check(self, found: Mapping[str, str], below: str = "") -> None:
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


def sign(name: str, files: Mapping[str, str], signer: Signer) -> tuple[bytes, Manifest]:
    """The bundle over `files` (path -> SHA-256 in hex), and what it says. Raises EncryptionError, KeyUnavailable."""
    if not files:
        raise EncryptionError(f"{name} has no files: there is nothing to sign")
    for path in files:
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


def _statement(name: str, files: Mapping[str, str]) -> bytes:
    ordered = sorted(files.items(), key=lambda item: item[0].split("/"))  # as the specification's paths compare
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in ordered)).hexdigest()
    return orjson.dumps(
        {
            "_type": _STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": whole}}],
            "predicateType": _PREDICATE,
            "predicate": {
                "serialization": _SERIALIZATION,
                "resources": [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in ordered],
            },
        }
    )


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
    _require(serialization["method"], "files", "method")
    _require(serialization["hash_type"], "sha256", "hash type")
    files = _files(statement["predicate"]["resources"])
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in files.values())).hexdigest()
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


def _files(resources: Any) -> dict[str, str]:
    files: dict[str, str] = {}
    for resource in resources:
        path, digest = resource["name"], resource["digest"]
        _require(resource["algorithm"], "sha256", f"algorithm of {path!r}")
        if not isinstance(path, str) or not _plain(path) or path in files or not _DIGEST.fullmatch(digest):
            raise DecryptionError(f"the manifest has no proper entry for {path!r}")
        files[path] = digest
    return files


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


def _require(found: Any, expected: str, what: str) -> None:
    if found != expected:
        raise DecryptionError(f"the manifest's {what} is {str(found)[:80]!r}, not {expected!r}")
