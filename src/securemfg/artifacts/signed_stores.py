"""Manifests of models that are stored already: checked by bulk work, and made for what was logged without a signer."""

from __future__ import annotations

import contextlib
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from securemfg.artifacts.authenticity import MLMODEL, Digests, collecting, name_of, outer_models, put_signed
from securemfg.artifacts.location import Location, Root, locate
from securemfg.artifacts.manifest import FILE, MAX_MANIFEST, Manifest, verified
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.staging import staging_folder
from securemfg.artifacts.stores import LocalStore, S3Store, open_store
from securemfg.encryption.digests import FileDigest
from securemfg.encryption.records import FOLDER
from securemfg.encryption.source import stored_digest
from securemfg.errors import ConfigError, DecryptionError


def is_manifest(address: str) -> bool:
    return address.endswith(f"/{FILE}")


def check_manifest(store: LocalStore | S3Store, location: Location, rules: Protection) -> Manifest:
    """Verify the manifest at `location`, and every file of its model against it. Raises DecryptionError.

    The stored files are read whole, once more than by a check of their own tags.
    """
    signatures = rules.signatures
    assert signatures is not None
    root, folder = location.root, location.path.removesuffix(FILE).strip("/")
    bundle = store.read(f"{root.uri}/{location.path}", MAX_MANIFEST + 1)
    manifest = verified(bundle, signatures.pinned(), origin=signatures.origin)
    if manifest.name != name_of(root, folder):
        raise DecryptionError(f"the manifest of {name_of(root, folder)} is that of {manifest.name}: moved or swapped")
    base = posixpath.join(root.uri, folder).rstrip("/")
    found: Digests = {}
    for stored in open_store(base).files():
        path = stored.address.removeprefix(base).strip("/")
        if FOLDER not in path.split("/"):
            with store.fetched(stored.address) as local:
                found[path] = stored_digest(local)
    manifest.check(found)
    return manifest


def must_be_signed(store: LocalStore | S3Store, location: Location, rules: Protection) -> None:
    """Raise DecryptionError when `location` is a model's MLmodel, manifests are asked for, and there is none."""
    signatures = rules.signatures
    if signatures is None or not signatures.required or posixpath.basename(location.path) != MLMODEL:
        return
    folder = posixpath.dirname(location.path)
    while True:
        with contextlib.suppress(FileNotFoundError):
            if store.read(posixpath.join(location.root.uri, folder, FILE), 1):
                return
        if not folder:
            raise DecryptionError(
                f"the model is not signed, and artifacts.signers ({signatures.origin}) asks for it: if you trust what "
                "is stored, 'securemfg artifacts sign' it"
            )
        folder = posixpath.dirname(folder)


# -- signing ----------------------------------------------------------------------------------------------------------


def models_below(uri: str) -> Iterator[tuple[Root, str]]:
    """The models in a local folder or below an s3:// prefix: each one's root, and its folder there."""
    found: dict[Root, list[str]] = {}
    for stored in open_store(uri).files():
        location = locate(stored.address)
        if location is not None and location.root.kind != "trace" and FOLDER not in location.path.split("/"):
            found.setdefault(location.root, []).append(location.path)
    for root, paths in found.items():
        if any(posixpath.basename(path) == MLMODEL for path in paths):
            yield from ((root, folder) for folder in outer_models(root, paths))


def sign_models(uri: str, protection: Protection) -> list[Manifest]:
    """Sign what is stored at `uri`: a local folder or s3:// prefix with models below, or an address of MLflow's.

    A `models:` address of a registered version pins that version. Encrypted artifacts must be on. Raises ConfigError
    when there is no model or no signer, DecryptionError for what does not verify.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    from securemfg.artifacts.registration import pin_version, stored_at

    if uri.split(":", 1)[0] in {"", "file", "s3"} or ("://" not in uri and ":/" not in uri):
        signed = [
            sign_stored(get_artifact_repository(root.uri), root, folder, protection)
            for root, folder in models_below(uri)
        ]
    else:
        places = [(repository, place) for repository, place in stored_at(uri) if repository.list_artifacts("")]
        signed = [
            sign_stored(repository.at(place.root), place.root, place.path, protection) for repository, place in places
        ]
        for manifest in signed:
            pin_version(uri, manifest.pin)
    if not signed:
        raise ConfigError(f"no model of a run or a logged model lies at {uri}: nothing was signed")
    return signed


def sign_stored(repository: Any, root: Root, folder: str, protection: Protection) -> Manifest:
    """Sign the model in `folder` of `root` as it is stored, each file decrypted and verified on the way.

    Whoever signs vouches for what is there now. Raises ConfigError without a signer, DecryptionError.
    """
    signer = protection.signatures.signer() if protection.signatures is not None else None
    if signer is None:
        raise ConfigError("nothing signs here: set artifacts.signer")
    with collecting() as found, tempfile.TemporaryDirectory(dir=staging_folder(protection.staging)) as staged:
        target = Path(staged, "file")
        for info in list(repository._iter_artifacts_recursive(folder or None)):
            if not info.is_dir:
                repository._download_file(info.path, str(target))
                target.unlink()
    if not any(posixpath.basename(path) == MLMODEL for path in found):
        raise ConfigError(f"{name_of(root, folder)} has no {MLMODEL} file: it is no model of MLflow's")
    files: Mapping[str, FileDigest] = {path.removeprefix(folder).strip("/"): digest for path, digest in found.items()}
    return put_signed(repository, protection, root, folder, files, signer)
