"""Stores as bulk work sees them: a local folder or an S3 prefix, file by file, with the versions that a bucket keeps.

An address is a whole one: an absolute path, or `s3://BUCKET/KEY`. Rights needed on S3: s3:ListBucket,
s3:GetObject, s3:PutObject; to rewrap and to erase also s3:ListBucketVersions, s3:DeleteObjectVersion and, for dates,
s3:GetObjectRetention.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol
from urllib.parse import unquote, urlsplit

from securemfg.artifacts.location import Root
from securemfg.artifacts.tombstones import tombstone, tombstone_path
from securemfg.encryption.fate import Fate
from securemfg.encryption.records import MAX_RECORD
from securemfg.encryption.target import replacing
from securemfg.errors import ConfigError, EncryptionError, KeyUnavailable

if TYPE_CHECKING:
    from securemfg.encryption.pipes import Readable

_CHUNK: Final = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """One file of a store."""

    address: str
    size: int  # bytes, as stored


class Store(Protocol):
    """What bulk work needs of a place."""

    uri: str

    def files(self) -> Iterator[Stored]:
        """Everything below `uri`, in order. Raises EncryptionError."""
        ...

    def place(self, address: str) -> Path | None:
        """The local file itself, where there is one."""
        ...

    def fetched(self, address: str) -> contextlib.AbstractContextManager[Path]:
        """A local file with the stored bytes: the file itself, or a copy that goes away."""
        ...

    def read(self, address: str, count: int) -> bytes:
        """At most `count` bytes from the start. Raises FileNotFoundError, EncryptionError."""
        ...

    def write(self, address: str, data: bytes) -> None:
        """Put a small file, whole or not at all, durably."""
        ...

    def upload(self, address: str, source: Readable) -> None:
        """Put what `source` gives, whole or not at all."""
        ...

    def drop_older(self, address: str) -> list[Fate]:
        """Destroy the versions before the newest; empty where there are none."""
        ...

    def destroy(self, address: str) -> list[Fate]:
        """Destroy a file in all versions, and say what became of each."""
        ...


def open_store(uri: str) -> LocalStore | S3Store:
    """The store at `uri`: a path, `file:...` or `s3://BUCKET[/PREFIX]`. Raises ConfigError."""
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        if not parts.netloc:
            raise ConfigError(f"{uri!r} names no bucket: write s3://BUCKET/PREFIX")
        return S3Store(uri)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme and not Path(uri).exists():
        raise ConfigError(
            f"bulk work goes over a local folder or s3://..., and {uri!r} is neither: name the store that is behind it"
        )
    return LocalStore(Path(uri))


class LocalStore:
    """A folder, or one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.uri = str(self._folder)

    def files(self) -> Iterator[Stored]:
        if not self._folder.exists():
            raise EncryptionError(f"{self._folder} does not exist")
        if self._folder.is_file():
            yield Stored(str(self._folder), self._folder.stat().st_size)
            return

        def failed(error: OSError) -> NoReturn:
            raise EncryptionError(f"{error.filename} cannot be listed: {error.strerror}") from error

        for folder, folders, files in os.walk(self._folder, onerror=failed):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if not os.path.islink(path) and os.path.isfile(path):  # a link leads out of the store
                    yield Stored(path, status.st_size)

    def place(self, address: str) -> Path | None:
        return Path(address)

    @contextlib.contextmanager
    def fetched(self, address: str) -> Iterator[Path]:
        yield Path(address)

    def read(self, address: str, count: int) -> bytes:
        try:
            with open(address, "rb") as file:
                return file.read(count)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EncryptionError(f"{address} cannot be read: {error.strerror}") from error

    def write(self, address: str, data: bytes) -> None:
        path = Path(address)
        try:
            try:
                mode = os.stat(path).st_mode & 0o777
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                mode = 0o666 & ~_umask()
            with replacing(path, mode=mode, durable=True, overwrite=True) as fd:
                os.write(fd, data)
        except OSError as error:
            raise EncryptionError(f"{address} cannot be written: {error.strerror}") from error

    def upload(self, address: str, source: Readable) -> None:
        path = Path(address)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                replacing(path, mode=0o666 & ~_umask(), durable=True, overwrite=True) as fd,
                os.fdopen(os.dup(fd), "wb") as file,
            ):
                while data := source.read(_CHUNK):
                    file.write(data)
        except OSError as error:
            raise EncryptionError(f"{address} cannot be written: {error.strerror}") from error

    def drop_older(self, address: str) -> list[Fate]:  # noqa: ARG002 - a folder keeps no versions
        return []

    def destroy(self, address: str) -> list[Fate]:
        try:
            os.unlink(address)
        except FileNotFoundError:
            return []
        except OSError as error:
            return [Fate.failed(address, f"cannot be removed: {error.strerror}")]
        return [
            Fate.done(address, "the file was removed"),
            Fate.not_provable(address, "its blocks on the disk, snapshots and backups of the folder"),
        ]


def _umask() -> int:
    """This process's umask, without the race of setting it to read it."""
    for line in (
        Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if os.path.exists("/proc/self/status")
        else ()
    ):
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


class S3Store:
    """A bucket, from a prefix on. The client is made on first use, as MLflow makes its own."""

    def __init__(self, uri: str, client: Any = None) -> None:
        self.uri = uri.rstrip("/")
        self._bucket, self._prefix = _split(self.uri)
        self._made = client

    def __reduce__(self) -> tuple[object, ...]:
        return S3Store, (self.uri,)  # each process its own client

    @property
    def _client(self) -> Any:
        if self._made is None:
            import boto3
            from botocore.config import Config

            self._made = boto3.client(
                "s3",
                endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None,
                config=Config(
                    connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 5}
                ),
            )
        return self._made

    def files(self) -> Iterator[Stored]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors("list", self.uri):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for found in page.get("Contents", ()):
                    key = str(found["Key"])
                    if (key == self._prefix or not self._prefix or key.startswith(self._prefix.rstrip("/") + "/")) and (
                        not key.endswith("/")
                    ):
                        yield Stored(f"s3://{self._bucket}/{key}", int(found["Size"]))

    def place(self, address: str) -> Path | None:  # noqa: ARG002 - nothing of a bucket is local
        return None

    @contextlib.contextmanager
    def fetched(self, address: str) -> Iterator[Path]:
        with tempfile.NamedTemporaryFile(prefix="securemfg-") as file:  # what is stored, encrypted as it is
            with self._errors("read", address):
                self._client.download_fileobj(*_split(address), file)
            file.flush()
            yield Path(file.name)

    def body(self, address: str) -> Any:
        """The stored bytes as a stream."""
        bucket, key = _split(address)
        with self._errors("read", address):
            return self._client.get_object(Bucket=bucket, Key=key)["Body"]

    def read(self, address: str, count: int) -> bytes:
        bucket, key = _split(address)
        from botocore.exceptions import ClientError

        try:
            with self._errors("read", address):
                reply = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{count - 1}")
                data: bytes = reply["Body"].read()
                return data
        except EncryptionError as error:
            cause = error.__cause__
            code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
            if code in {"NoSuchKey", "404", "NotFound"}:
                raise FileNotFoundError(address) from error
            if code == "InvalidRange":  # nothing in it
                return b""
            raise

    def write(self, address: str, data: bytes) -> None:
        bucket, key = _split(address)
        with self._errors("write", address):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def upload(self, address: str, source: Readable) -> None:
        with self._errors("write", address):
            self._client.upload_fileobj(source, *_split(address))

    def drop_older(self, address: str) -> list[Fate]:
        return self._drop(address, latest=False)

    def destroy(self, address: str) -> list[Fate]:
        return [
            *self._drop(address, latest=True),
            Fate.not_provable(address, "replicas and backups of the bucket, and copies made by its readers"),
        ]

    def _drop(self, address: str, *, latest: bool) -> list[Fate]:
        """Delete an object's versions, delete markers too; the newest only with `latest`."""
        bucket, key = _split(address)
        fates: list[Fate] = []
        with self._errors("list the versions of", address):
            pages = self._client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key)
            found = [
                one
                for page in pages
                for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
                if one["Key"] == key
            ]
        for one in found:
            if one["IsLatest"] and not latest:
                continue
            version = str(one["VersionId"])
            name = address if version == "null" else f"{address}?versionId={version}"
            fates.append(self._drop_version(bucket, key, version, name))
        return fates

    def _drop_version(self, bucket: str, key: str, version: str, name: str) -> Fate:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.delete_object(Bucket=bucket, Key=key, VersionId=version)
        except ClientError as error:
            until = self._locked_until(bucket, key, version)
            if until is not None:
                return Fate.scheduled(name, until, "the bucket's object lock keeps it until then: erase again after it")
            return Fate.failed(name, f"S3 refused: {error.response['Error'].get('Message') or error}")
        except BotoCoreError as error:
            return Fate.failed(name, f"S3 cannot be reached: {error}")
        return Fate.done(name, "the version was deleted")

    def _locked_until(self, bucket: str, key: str, version: str) -> datetime | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            reply = self._client.head_object(Bucket=bucket, Key=key, VersionId=version)
        except (ClientError, BotoCoreError):
            return None
        until = reply.get("ObjectLockRetainUntilDate")
        return until if isinstance(until, datetime) else None

    @contextlib.contextmanager
    def _errors(self, verb: str, address: str) -> Iterator[None]:
        """Translates what boto3 raises, once."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            why = error.response["Error"]
            raise EncryptionError(
                f"cannot {verb} {address}: S3 answered {why.get('Code')} ({why.get('Message', '')})"
            ) from error
        except (BotoCoreError, Boto3Error) as error:
            raise EncryptionError(f"cannot {verb} {address}: {error}") from error


def _split(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key


class Records:
    """The records of a store's run keys, as the keyring wants them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put_record(self, root: Root, path: str, data: bytes) -> None:
        self._store.write(f"{root.uri}/{path}", data)

    def get_record(self, root: Root, path: str) -> bytes:
        address = f"{root.uri}/{path}"
        try:
            data = self._store.read(address, MAX_RECORD + 1)
        except FileNotFoundError:
            key_id = path.rpartition("/")[2].removesuffix(".esdk")
            erased = tombstone(key_id, lambda: self._store.read(f"{root.uri}/{tombstone_path(key_id)}", 4096))
            why = erased or "it was erased, or never copied along"
            raise KeyUnavailable(f"the run key's record {address} is not there: {why}") from None
        if len(data) > MAX_RECORD:
            raise KeyUnavailable(f"the run key's record {address} is longer than {MAX_RECORD} bytes")
        return data
