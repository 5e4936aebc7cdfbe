"""Which stored models are authentic: signed as they are logged, checked before anything of them is loaded.

Encryption is not authorship (trust rule 4): whoever can read a model could encrypt another one in its place. The
digests compared here are of the very bytes that were encrypted or decrypted, handed in by whoever did it.
"""

from __future__ import annotations

import os
import posixpath
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from securemfg.artifacts.location import Location, Root, locate
from securemfg.artifacts.manifest import FILE, MAX_MANIFEST, Manifest, is_below, sign, verified
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.registration import logged_pin, pin_logged
from securemfg.context import Scalar
from securemfg.encryption.configured_signers import ConfiguredSigners
from securemfg.encryption.digests import FileDigest
from securemfg.encryption.signers import Signer
from securemfg.encryption.stream import Witness
from securemfg.errors import DecryptionError

MLMODEL: Final = "MLmodel"
# What MLflow rewrites one by one in a model that was logged before.
_REWRITTEN: Final = frozenset({MLMODEL, "conda.yaml", "requirements.txt", "python_env.yaml"})
Digests: TypeAlias = dict[str, FileDigest]  # path below the artifact root -> of the file as stored


class ManifestStore(Protocol):
    """Where artifacts lie: puts and gets the small files below an artifact root."""

    artifact_uri: str
    tracking_uri: str | None  # None: MLflow's current one

    def put_record(self, root: Root, path: str, data: bytes) -> None: ...

    def has_file(self, root: Root, path: str) -> bool: ...

    def get_small(self, root: Root, path: str, most: int) -> bytes:
        """Raises whatever the store raises when it is not there; SecureMfgError when it is longer than `most`."""
        ...


@dataclass(frozen=True, slots=True)
class Pin:
    """What a registered version's manifest must be."""

    version: str  # NAME/VERSION
    manifest: str | None  # sha256:...; None: it was registered without


class _Thread(threading.local):
    def __init__(self) -> None:
        self.pin: Pin | None = None
        self.collected: Digests | None = None


_thread = _Thread()


@contextmanager
def expecting(pin: Pin) -> Iterator[None]:
    """While a registered version is being loaded in this thread: the manifest that its model must have."""
    before, _thread.pin = _thread.pin, _thread.pin or pin  # of versions that lead to versions, the one asked for
    try:
        yield
    finally:
        _thread.pin = before


@contextmanager
def collecting() -> Iterator[Digests]:
    """Take the digests of single files that this thread downloads, and compare them with nothing."""
    before, _thread.collected = _thread.collected, {}
    try:
        yield _thread.collected
    finally:
        _thread.collected = before


def name_of(root: Root, folder: str) -> str:
    """How a manifest calls the model in `folder` of `root`: a copy elsewhere is another model."""
    return f"{root}/{folder}" if folder else str(root)


# -- out --------------------------------------------------------------------------------------------------------------


@contextmanager
def signing(store: ManifestStore, protection: Protection, path: str | None, base: Path) -> Iterator[Digests | None]:
    """Around a write of the file or folder `base` at `path`: takes the digests of what is written, then signs.

    Yields None when no model is written, or nobody signs here. A key that cannot be had fails the write before it.
    Raises KeyUnavailable; DecryptionError when files were added to a model whose manifest does not verify.
    """
    location = locate(store.artifact_uri, path)
    signatures = protection.signatures
    signer = signatures.signer() if signatures is not None and _writes_model(location, base) else None
    if location is None or signatures is None or signer is None:
        yield None
        return
    written: Digests = {}
    yield written
    root = location.root
    for folder in outer_models(root, written, alone=base.is_file()):
        with _signing:  # two threads that add to one model
            known = _known(store, signatures, root, folder)
            if known is None and root.kind == "run" and base.is_file():
                continue  # a single file makes no model
            put_signed(store, protection, root, folder, {**(known or {}), **_inside(written, folder)}, signer)


def put_signed(
    store: ManifestStore,
    protection: Protection,
    root: Root,
    folder: str,
    files: Mapping[str, FileDigest],
    signer: Signer,
) -> Manifest:
    """Sign `files` (paths below `folder`), store the manifest, and pin a logged model to it.

    Raises EncryptionError, KeyUnavailable.
    """
    bundle, manifest = sign(name_of(root, folder), files, signer)
    store.put_record(root, posixpath.join(folder, FILE), bundle)
    detail: dict[str, Scalar] = {"files": len(files), "manifest": manifest.pin, "signer": manifest.signed_by}
    if root.kind == "model" and not folder:
        pinned = pin_logged(root.id, manifest.pin, store.tracking_uri)
        manifest, detail = replace(manifest, pinned=pinned), {**detail, "pinned": pinned}
    protection.emit("model.signed", resource=manifest.name, kind="model", detail=detail)
    return manifest


def _writes_model(location: Location | None, base: Path) -> bool:
    if location is None or location.root.kind == "trace":
        return False
    if location.root.kind == "model":
        return True
    return base.name in _REWRITTEN if base.is_file() else any(MLMODEL in files for _, _, files in os.walk(base))


def outer_models(root: Root, files: Collection[str], *, alone: bool = False) -> list[str]:
    """The folders of the models among `files` of a root: a logged model is one, and a run can hold several."""
    if root.kind == "model":
        return [""]
    if alone:
        return [posixpath.dirname(path) for path in files]
    found = sorted(posixpath.dirname(path) for path in files if posixpath.basename(path) == MLMODEL)
    outer: list[str] = []
    for folder in found:  # a model inside a model is part of it
        if not any(is_below(folder, known) for known in outer):
            outer.append(folder)
    return outer


def _known(
    store: ManifestStore, signatures: ConfiguredSigners, root: Root, folder: str
) -> Mapping[str, FileDigest] | None:
    path = posixpath.join(folder, FILE)
    if not store.has_file(root, path):
        return None
    manifest = verified(store.get_small(root, path, MAX_MANIFEST), signatures.pinned(), origin=signatures.origin)
    _must_be(manifest, name_of(root, folder))
    return manifest.files


# -- in ---------------------------------------------------------------------------------------------------------------


class Reading:
    """One download: collects the digests of what it reads, and compares them before any of it is seen.

    Of a folder every file is compared, and none may be missing or too many; of a single file of a model, that one.
    """

    def __init__(self, store: ManifestStore, protection: Protection, path: str, *, alone: bool = False) -> None:
        self._store = store
        self._protection = protection
        self._path = path.strip("/")
        self._location = locate(store.artifact_uri, path)
        self._alone = alone  # a single file that nobody looks at afterwards
        self._pin = _thread.pin
        self._collected = _thread.collected
        self._found: Digests = {}
        signatures = protection.signatures
        self._signatures = signatures if signatures is not None and signatures.required else None
        if self._signatures is not None and self._pin is not None and self._location is None:
            self._refuse(
                DecryptionError(f"version {self._pin.version} lies outside any run or model: {store.artifact_uri}")
            )

    def witness(self, path: str) -> Witness | None:
        """Who is told the digest of the file at `path`, or None when it is part of no model."""
        location = locate(self._store.artifact_uri, path)
        if location is None:
            return None
        if self._collected is not None:
            return partial(self._collected.__setitem__, location.path)
        if self._signatures is None or not self._matters(location.root, path.strip("/")):
            return None
        if self._alone:
            return lambda digest: self._check({location.path: digest}, emit=False)  # a refused file is audited there
        return partial(self._found.__setitem__, location.path)

    def _matters(self, root: Root, path: str) -> bool:
        if root.kind != "run" or self._pin is not None:
            return root.kind != "trace"
        return path != self._path or posixpath.basename(path) == MLMODEL

    def check(self) -> None:
        """Refuse what was downloaded unless all of it is authentic. Raises DecryptionError."""
        self._check(self._found, emit=True)

    def _check(self, found: Digests, *, emit: bool) -> None:
        if self._signatures is None or self._location is None or self._location.root.kind == "trace":
            return
        if not found and self._pin is None:
            return  # nothing was there, and nothing is loaded
        try:
            for folder in self._models(self._location, found):
                self._compare(self._signatures, self._location, folder, found)
        except DecryptionError as error:
            self._refuse(error, emit=emit)

    def _models(self, location: Location, found: Digests) -> list[str]:
        folders = outer_models(location.root, found)
        return folders or ([location.path] if self._pin is not None else [])

    def _compare(self, signatures: ConfiguredSigners, location: Location, folder: str, found: Digests) -> None:
        root = location.root
        folder, bundle = self._nearest(root, folder)
        manifest = verified(bundle, signatures.pinned(), origin=signatures.origin)
        _must_be(manifest, name_of(root, folder))
        if self._pin is not None and self._pin.manifest is None:
            raise DecryptionError(
                f"version {self._pin.version} is not pinned to a manifest: it was registered without securemfg; if you "
                f"trust what is stored, 'securemfg artifacts sign models:/{self._pin.version}'"
            )
        who, expected = self._expected(root, folder)
        if expected is not None and expected != manifest.pin:
            raise DecryptionError(
                f"{who} is pinned to {expected}, and {manifest.name} has the manifest {manifest.pin}: another model, "
                "or an older or newer one, was put in its place"
            )
        inside = _inside(found, folder)
        manifest.check(inside, _relative(location.path, folder) if is_below(location.path, folder) else "")
        if not self._alone:
            detail: dict[str, Scalar] = {"files": len(inside), "manifest": manifest.pin, "signer": manifest.signed_by}
            self._protection.emit("model.verified", resource=manifest.name, kind="model", detail=detail)

    def _expected(self, root: Root, folder: str) -> tuple[str, str | None]:
        """Who is pinned, and to which manifest: the registered version that is asked for, else the logged model."""
        if self._pin is not None:
            return f"version {self._pin.version}", self._pin.manifest
        logged = root.kind == "model" and not folder
        return str(root), logged_pin(root.id, self._store.tracking_uri) if logged else None

    def _nearest(self, root: Root, folder: str) -> tuple[str, bytes]:
        """The manifest that speaks for `folder`, and where it lies. Raises DecryptionError when there is none."""
        here, failures = folder, []
        while True:
            try:
                return here, self._store.get_small(root, posixpath.join(here, FILE), MAX_MANIFEST)
            except Exception as error:  # noqa: BLE001 - every store has errors of its own for "not there"
                failures.append(str(error))
            if not here:
                break
            here = posixpath.dirname(here)
        where = self._signatures.origin if self._signatures is not None else ""
        raise DecryptionError(
            f"{name_of(root, folder)} is not signed, and artifacts.signers ({where}) asks for it: log it where "
            f"artifacts.signer is set, or, if you trust what is stored, 'securemfg artifacts sign' it "
            f"({failures[0][:200]})"
        )

    def _refuse(self, error: DecryptionError, *, emit: bool = True) -> None:
        """Raise `error`; in mode observe only audit it."""
        enforcing = self._protection.enforcing
        if emit or not enforcing:
            location = self._location
            self._protection.emit(
                "artifact.refused",
                resource=str(location.root) if location is not None else self._store.artifact_uri,
                kind="model",
                outcome="denied" if enforcing else "failure",
                reason=str(error) if enforcing else f"{error} (audit only)",
            )
        if enforcing:
            raise error


def _relative(path: str, folder: str) -> str:
    return path.removeprefix(folder).strip("/")


def _inside(digests: Digests, folder: str) -> Digests:
    """Those at or below `folder`, by their paths from there."""
    return {_relative(path, folder): digest for path, digest in digests.items() if is_below(path, folder)}


def _must_be(manifest: Manifest, name: str) -> None:
    if manifest.name != name:
        raise DecryptionError(f"the manifest of {name} is that of {manifest.name}: it was moved or swapped")


_signing = threading.Lock()


def _after_fork() -> None:
    global _signing
    _signing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
