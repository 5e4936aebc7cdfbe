"""The MLflow artifact repository that encrypts what goes out and decrypts what comes in, around any other one.

`plugin` makes one for each URI while encrypted artifacts are on.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from securemfg import context
from securemfg.artifacts.authenticity import Digests, Reading, signing
from securemfg.artifacts.filling import fill, move_into
from securemfg.artifacts.keyring import KEYRING
from securemfg.artifacts.location import Location, Root, check_user_path, join, locate, readable_path
from securemfg.artifacts.marking import mark
from securemfg.artifacts.plugin import Factory, named
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.refusals import note, surfacing
from securemfg.artifacts.staging import (
    fresh_folder,
    is_staged,
    partial_done,
    partial_folder,
    room_for,
)
from securemfg.artifacts.state import STATE
from securemfg.artifacts.tombstones import tombstone, tombstone_path
from securemfg.encryption.message import looks_like_message
from securemfg.encryption.records import FOLDER, MAX_RECORD, RECORDS
from securemfg.encryption.run_key import RUN_PROVIDER, RunKey, plaintext_size
from securemfg.encryption.source import stored_digest
from securemfg.encryption.stream import Message, Witness, decrypt_file, encrypt_file, inspect_file
from securemfg.errors import DecryptionError, EncryptionError, KeyUnavailable, SecureMfgError
from securemfg.settings import PlaintextReads

R = TypeVar("R")


class _CarryingPool(ThreadPoolExecutor):
    """A pool whose work runs in the step it was submitted from, so that its events carry the step's tags."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        return super().submit(context.carry(fn), *args, **kwargs)


class EncryptedRepository(ArtifactRepository):  # type: ignore[misc]  # mlflow ships no types
    """Artifacts of `inner`, encrypted on the way out and verified on the way in."""

    def __init__(
        self,
        factory: Factory,
        artifact_uri: str,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
    ) -> None:
        super().__init__(artifact_uri, **named(tracking_uri, registry_uri))
        self.tracking_uri, self.registry_uri = tracking_uri, registry_uri  # MLflow 2 keeps neither
        self._factory = factory
        self._make: Factory = lambda uri: factory(uri, **named(tracking_uri, registry_uri))
        self._inner = self._make(artifact_uri)
        self._roots: dict[str, ArtifactRepository] = {artifact_uri.rstrip("/"): self._inner}
        self._downloads: dict[str, SecureMfgError | None] = {}  # folder being filled -> why it was refused
        self._readings: dict[str, Reading] = {}  # folder being filled -> what is compared before it is seen

    def _create_thread_pool(self) -> ThreadPoolExecutor:
        return _CarryingPool(max_workers=self.max_workers, thread_name_prefix="securemfg-artifacts")

    # -- out --------------------------------------------------------------------------------------------------------

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        protection = self._protection_for_writing()
        if protection is None:
            self._inner.log_artifact(local_file, artifact_path)
            return
        source = Path(local_file)
        self._check(artifact_path, source.name)
        if not source.is_file():
            raise EncryptionError(f"{source} is not a file: nothing was logged")
        path = posixpath.join(artifact_path or "", source.name)
        with self._refused_is_audited(protection, path), signing(self, protection, path, source) as signed:
            if isinstance(self._inner, LocalArtifactRepository):
                self._encrypt(protection, source, path, self._local(path, make=True), signed)
            else:
                with _on_its_way() as folder:
                    self._encrypt(protection, source, path, folder / source.name, signed)
                    self._inner.log_artifact(str(folder / source.name), artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        protection = self._protection_for_writing()
        if protection is None:
            self._inner.log_artifacts(local_dir, artifact_path)
            return
        self._check(artifact_path)
        base = Path(local_dir)
        if not base.is_dir():
            raise EncryptionError(f"{base} is not a folder: nothing was logged")
        with (
            self._refused_is_audited(protection, artifact_path or "."),
            signing(self, protection, artifact_path, base) as signed,
        ):
            if isinstance(self._inner, LocalArtifactRepository):
                self._encrypt_tree(protection, base, artifact_path, self._local(artifact_path or "", make=True), signed)
            else:
                for source, path in self._files(base, artifact_path):  # one at a time: no second copy of all of it
                    with _on_its_way() as folder:
                        self._encrypt(protection, source, path, folder / source.name, signed)
                        self._inner.log_artifact(str(folder / source.name), posixpath.dirname(path) or None)

    def _encrypt_tree(
        self, protection: Protection, base: Path, artifact_path: str | None, target: Path, signed: Digests | None
    ) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for folder, folders, _ in os.walk(base):
            for name in folders:
                check_user_path(name)
                (target / Path(folder).relative_to(base) / name).mkdir(exist_ok=True)
        for source, path in self._files(base, artifact_path):
            self._encrypt(protection, source, path, target / source.relative_to(base), signed)

    @staticmethod
    def _files(base: Path, artifact_path: str | None) -> Iterator[tuple[Path, str]]:
        """Every file below `base`, with its path as an artifact."""
        for folder, _, files in os.walk(base):
            for name in files:
                source = Path(folder, name)
                path = posixpath.join(artifact_path or "", *source.relative_to(base).parts)
                check_user_path(path)
                yield source, path

    def _encrypt(self, protection: Protection, source: Path, path: str, target: Path, signed: Digests | None) -> None:
        location = self._location(path)
        key = KEYRING.for_writing(location.root, self, protection)
        witness = partial(signed.__setitem__, location.path) if signed is not None else None
        message = encrypt_file(source, target, key=key, context=location.binding, durable=False, witness=witness)
        protection.written[0] += 1
        protection.written[1] += message.plaintext_length
        protection.emit(
            "artifact.encrypted",
            resource=location.path,
            kind="artifact",
            detail=detail_of(message, location, key.key_id),
        )

    # -- in ---------------------------------------------------------------------------------------------------------

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        protection = STATE.protection
        if protection is None:
            self._inner._download_file(remote_file_path, local_path)
            return
        remote_file_path = readable_path(remote_file_path) or ""
        filling = next((one for one in list(self._readings) if str(local_path).startswith(f"{one}/")), None)
        try:
            reading = self._readings[filling] if filling else Reading(self, protection, remote_file_path, alone=True)
            witness = reading.witness(remote_file_path)
            with self.fetched(remote_file_path) as stored:
                self._take_in(protection, stored, remote_file_path, Path(local_path), witness)
        except SecureMfgError as error:
            protection.emit(
                "artifact.refused",
                resource=remote_file_path,
                kind="artifact",
                outcome="denied",
                reason=str(error),
            )
            if filling in self._downloads:
                self._downloads[filling] = error
            else:
                note(error)
            raise

    def _take(self, path: str, folder: Path) -> None:
        self._download_file(path, self._create_download_destination(path, str(folder)))

    @contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """The file of an artifact as it is stored: where it lies, or in a folder for as long as it is needed."""
        if isinstance(self._inner, LocalArtifactRepository):
            yield self._local(path)
            return
        with _on_its_way() as folder:
            stored = folder / "stored"
            self._inner._download_file(path, str(stored))
            yield stored

    def _take_in(self, protection: Protection, stored: Path, path: str, target: Path, witness: Witness | None) -> None:
        with room_for(target, stored.stat().st_size if stored.is_file() else 0):
            self._decrypt(protection, stored, path, target, witness)

    def _decrypt(self, protection: Protection, stored: Path, path: str, target: Path, witness: Witness | None) -> None:
        location = locate(self.artifact_uri, path)
        if not stored.is_file():
            raise MlflowException(f"No such artifact: {path!r}")
        with stored.open("rb") as file:
            start = file.read(8)
        if not looks_like_message(start):
            self._plaintext(protection, stored, path, target, located=location is not None)
            if witness is not None:
                witness(stored_digest(target))
            return
        if location is None:
            raise DecryptionError(
                f"{join(self.artifact_uri, path)} is encrypted, but no run, model or trace id is in its address: "
                "open it by its runs:/ or models:/ URI"
            )
        keys = self.run_keys(protection, stored, path, location)
        message = decrypt_file(stored, target, key=keys, context=location.binding, durable=False, witness=witness)
        protection.emit(
            "artifact.decrypted",
            resource=location.path,
            kind="artifact",
            detail=detail_of(message, location, keys[0].key_id),
        )

    def run_keys(self, protection: Protection, stored: Path, path: str, location: Location) -> list[RunKey]:
        """The run keys that the message `stored` names. Raises DecryptionError, KeyUnavailable."""
        claimed = inspect_file(stored)
        ids = [name.split("/", 1)[1] for name in claimed.recipients if name.startswith(f"{RUN_PROVIDER}/")]
        if not ids:
            raise DecryptionError(f"artifact {path!r} was not written for a run key: recipients {claimed.recipients}")
        return [KEYRING.for_reading(key_id, location.root, self, protection) for key_id in ids]

    def _plaintext(self, protection: Protection, stored: Path, path: str, target: Path, *, located: bool) -> None:
        rule = protection.plaintext_reads
        if not located and _is_scratch(self._inner):
            pass  # MLflow loading what was verified into our staging, or what it has just put into its own folder
        elif rule is PlaintextReads.REFUSE:
            raise DecryptionError(
                f"artifact {path!r} of {self.artifact_uri} is not encrypted, and artifacts.plaintext_reads is 'refuse' "
                f"({protection.plaintext_origin}): someone planted it, or it is older than securemfg; nothing was "
                "loaded"
            )
        elif rule is PlaintextReads.AUDIT:
            protection.emit(
                "artifact.refused",
                resource=path,
                kind="artifact",
                outcome="failure",
                reason="plaintext was read (audit only)",
            )
        shutil.copyfile(stored, target)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        protection = STATE.protection
        if protection is None:
            return str(self._inner.download_artifacts(artifact_path, dst_path))
        artifact_path = readable_path(artifact_path) or ""
        reading = Reading(self, protection, artifact_path)
        if locate(self.artifact_uri, artifact_path) is None and (
            _is_scratch(self._inner) or self._is_users_own(artifact_path, dst_path)
        ):  # where it lies, as without us: MLflow looks for what it has put beside it
            return str(self._inner.download_artifacts(artifact_path, dst_path))
        if dst_path is not None and not os.path.isdir(dst_path):
            return str(super().download_artifacts(artifact_path, dst_path))  # says what is wrong with it
        dst_path = os.path.abspath(dst_path) if dst_path is not None else None
        folder = partial_folder(Path(dst_path)) if dst_path else fresh_folder(protection.staging)
        self._downloads[str(folder)] = None
        self._readings[str(folder)] = reading
        try:
            if isinstance(self._inner, LocalArtifactRepository) and self._local(artifact_path).is_dir():
                downloaded = fill(folder, artifact_path, self._inner.list_artifacts, self._take)
            else:
                downloaded = Path(super().download_artifacts(artifact_path, str(folder)))
            reading.check()
            if dst_path is None:
                return str(downloaded)
            move_into(folder, Path(dst_path))  # nothing is seen before all of it was verified
            return str(Path(dst_path) / downloaded.relative_to(folder))
        except MlflowException as error:
            shutil.rmtree(folder, ignore_errors=True)
            refused = self._downloads[str(folder)]
            if refused is not None:  # MLflow keeps only its text
                note(refused)
                raise refused from error
            raise
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, SecureMfgError):
                note(error)
            raise
        finally:
            partial_done(folder)
            del self._downloads[str(folder)]
            del self._readings[str(folder)]

    # MLflow says "not found" for whatever goes wrong with a trace: a refusal is said as one
    if hasattr(ArtifactRepository, "download_trace_data"):  # old MLflow has no traces
        download_trace_data = surfacing(ArtifactRepository.download_trace_data)

    # -- lists and deletes ------------------------------------------------------------------------------------------

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        path = readable_path(path)
        listed = [info for info in self._inner.list_artifacts(path) if posixpath.basename(info.path) != FOLDER]
        return listed if STATE.protection is None else [self._sized(info) for info in listed]

    def _sized(self, info: FileInfo) -> FileInfo:
        """`info` with the plaintext's size, worked out from the stored one: a message's overhead is known.

        A local file is looked at; of a remote one it is taken for granted that it is encrypted.
        """
        location = None if info.is_dir or info.file_size is None else locate(self.artifact_uri, info.path)
        if location is None:
            return info
        if isinstance(self._inner, LocalArtifactRepository):
            try:
                with self._local(info.path).open("rb") as file:
                    if not looks_like_message(file.read(8)):
                        return info
            except OSError:
                return info
        size = plaintext_size(info.file_size, location.binding)
        return info if size is None else FileInfo(info.path, info.is_dir, size)

    def _is_directory(self, artifact_path: str) -> bool:
        return bool(self._inner._is_directory(artifact_path))

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._inner.delete_artifacts(readable_path(artifact_path))

    def get_local_path(self, artifact_path: str) -> str | None:
        """None while active: the stored file is ciphertext, so it has to be downloaded."""
        return None if STATE.protection is not None else self._inner.get_local_path(artifact_path)

    # -- records of run keys ----------------------------------------------------------------------------------------

    def put_record(self, root: Root, path: str, data: bytes) -> None:
        folder, name = posixpath.split(path)
        with _on_its_way() as temporary:
            record = Path(temporary, name)
            record.write_bytes(data)
            self._at(root).log_artifact(str(record), folder)
        if path.startswith(RECORDS):  # once for each run key: the first thing that is written below a root
            mark(root, self.tracking_uri)

    def get_record(self, root: Root, path: str) -> bytes:
        inner = self._at(root)
        try:
            return self._small(inner, path)
        except SecureMfgError:
            raise
        except Exception as error:  # every store has errors of its own for this
            key_id = posixpath.basename(path).removesuffix(".esdk")
            erased = tombstone(key_id, lambda: self._small(inner, tombstone_path(key_id)))
            why = erased or f"it was erased, or the store is out of reach ({error})"
            raise KeyUnavailable(f"the run key's record {root.uri}/{path} cannot be had: {why}") from error

    def at(self, root: Root) -> EncryptedRepository:
        """The repository of a whole root, for one that was made for a folder of it."""
        made: EncryptedRepository = EncryptedRepository(self._factory, root.uri, self.tracking_uri, self.registry_uri)
        return made

    def has_file(self, root: Root, path: str) -> bool:
        """Whether there is a file at `path` below `root`, records and manifests too."""
        folder, name = posixpath.split(path)
        return name in {posixpath.basename(info.path) for info in self._at(root).list_artifacts(folder)}

    def get_small(self, root: Root, path: str, most: int) -> bytes:
        """A file of at most `most` bytes below `root`, records and manifests too. Raises what the store raises."""
        return self._small(self._at(root), path, most)

    def _small(self, inner: ArtifactRepository, path: str, most: int = MAX_RECORD) -> bytes:
        with _on_its_way() as temporary:
            local = Path(temporary, "record")
            if isinstance(inner, LocalArtifactRepository):
                local = Path(inner.artifact_dir, path)
            else:
                inner._download_file(path, str(local))
            if local.stat().st_size > most:
                raise KeyUnavailable(f"{inner.artifact_uri}/{path} is longer than {most} bytes: no file of ours")
            return local.read_bytes()

    def _is_users_own(self, artifact_path: str, dst_path: str | None) -> bool:
        """Whether MLflow copies a local file of the user's into what it is building: `extra_files`, pyfunc's artifacts.

        A copy says where it goes, and its source is no model: that would be loaded, and falls under the plaintext rule.
        """
        if dst_path is None or not isinstance(self._inner, LocalArtifactRepository):
            return False
        source = self._local(artifact_path)
        return source.exists() and not any((folder / "MLmodel").exists() for folder in (source, source.parent))

    # -- small parts ------------------------------------------------------------------------------------------------

    def _at(self, root: Root) -> ArtifactRepository:
        uri = root.uri.rstrip("/")
        if uri not in self._roots:
            self._roots[uri] = self._make(uri)
        return self._roots[uri]

    def _protection_for_writing(self) -> Protection | None:
        """The rules for a write, or None when it goes out as it is. Raises EncryptionError when we lost a scheme."""
        protection = STATE.protection
        if protection is None:  # a queue or a pool kept it: what was meant to be encrypted does not go out plain
            raise EncryptionError(
                "encryption was switched off while this was on its way: nothing was written; log it again"
            )
        if protection.sensitivity() < protection.encrypt_from:
            return None
        STATE.check_ownership()
        return protection

    def _location(self, path: str) -> Location:
        location = locate(self.artifact_uri, path)
        if location is None:
            raise EncryptionError(
                f"{join(self.artifact_uri, path)} belongs to no run, model or trace, so its key cannot be kept: "
                "log it to a run, or encrypt the file with securemfg.encryption.encrypt_file"
            )
        return location

    def _check(self, artifact_path: str | None, name: str = "") -> None:
        verify_artifact_path(artifact_path)
        check_user_path(artifact_path)
        check_user_path(name)

    def _local(self, path: str, *, make: bool = False) -> Path:
        """The file behind a path of a local store, inside it."""
        base = Path(self._inner.artifact_dir)
        target = Path(os.path.normpath(base / path))
        if target != base and base not in target.parents:
            raise MlflowException.invalid_parameter_value(f"Invalid artifact path: {path!r}")
        if make:
            (target.parent if path else target).mkdir(parents=True, exist_ok=True)
        return target

    @contextmanager
    def _refused_is_audited(self, protection: Protection, path: str) -> Iterator[None]:
        try:
            yield
        except SecureMfgError as error:
            protection.emit("artifact.refused", resource=path, kind="artifact", outcome="failure", reason=str(error))
            raise


def detail_of(message: Message, location: Location, key_id: str) -> dict[str, str | int]:
    return {
        "root": str(location.root),
        "bytes": message.plaintext_length,
        "frames": message.frames,
        "suite": f"0x{message.suite:04x}",
        "key": key_id,
    }


@contextmanager
def _on_its_way() -> Iterator[Path]:
    """A folder for ciphertext between here and a remote store: on disk, it may be large and need not be hidden."""
    with tempfile.TemporaryDirectory(prefix="securemfg-") as folder:
        yield Path(folder)


def _is_scratch(inner: ArtifactRepository) -> bool:
    """Whether a local repository is what this process staged, or a temporary folder of this user's: no store."""
    if not isinstance(inner, LocalArtifactRepository):
        return False
    here = Path(inner.artifact_dir).resolve()
    if is_staged(here):
        return True
    temporary = Path(tempfile.gettempdir()).resolve()
    return temporary in here.parents and here.exists() and here.stat().st_uid == os.geteuid()
