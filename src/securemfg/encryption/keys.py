"""Keys wrap data keys. `open_key` is the only place where a key's text is understood.

    local:PATH                 32 raw bytes in a file that only its owner may read
    aws-kms:ARN                a key of AWS KMS, by its key ARN
    vault-transit:MOUNT/NAME   a transit key of the Vault that the settings name
    rsa:PATH.pem               an RSA key: the public half wraps, for break-glass escrow; the private one opens

A key that wraps is a `Key`; one that also unwraps is an `OpeningKey`; one whose service makes data keys is a
`GeneratingKey`. Reading uses only the keys it is given:
a message's header selects among them and never supplies one (trust rule 1).
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from securemfg.encryption.fate import Fate
from securemfg.encryption.message import (
    IV_LENGTH,
    KEY_LENGTH,
    TAG_LENGTH,
    Context,
    EncryptedDataKey,
    Header,
    MessageKey,
    serialize_context,
)
from securemfg.encryption.target import replacing, sync_folder
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, KeyUnavailable, SecureMfgError, nearest

if TYPE_CHECKING:
    from securemfg.encryption.rsa_oaep import RsaKey
    from securemfg.encryption.vault_transit import Requests

LOCAL_PROVIDER: Final = "securemfg"
SCHEMES: Final = ("local", "aws-kms", "vault-transit", "rsa")
MAX_REMOTE: Final = 16  # unwraps per message that ask a service: recipients in a header are an attacker's choice
_MAX_PEM: Final = 1 << 16  # bytes
_RAW_AES_INFO: Final = struct.pack(">II", TAG_LENGTH * 8, IV_LENGTH)


@runtime_checkable
class Key(Protocol):
    """Wraps data keys for one recipient."""

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:
        """`data_key` (32 bytes), wrapped and bound to `context`. Raises KeyUnavailable."""


@runtime_checkable
class OpeningKey(Key, Protocol):
    """A Key that also unwraps what was wrapped for it."""

    def matches(self, edk: EncryptedDataKey) -> bool:
        """Whether `edk` says that it is for this key. Asks no service."""

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        """The data key. Raises KeyUnavailable, or DecryptionError when it does not verify."""


@runtime_checkable
class GeneratingKey(Key, Protocol):
    """A Key whose service makes the data key and wraps it in one call."""

    def generate(self, context: Context) -> tuple[bytes, EncryptedDataKey]:
        """A new data key (32 bytes) and its wrapping. Raises KeyUnavailable."""


@runtime_checkable
class DestroyableKey(Protocol):
    """A Key that can be destroyed from here, as far as anyone can."""

    def destroy(self, *, days: int) -> list[Fate]:
        """Destroy it, after `days` where its service waits; what became of each copy. Raises KeyUnavailable."""


@dataclass(frozen=True, kw_only=True)
class KeyServices:
    """What keys of a service need, handed in: a KMS client per region, a logged-in Vault."""

    kms: Callable[[str], Any] | None = None  # None: boto3 with its own credentials
    vault: Callable[[], Requests] | None = None


class RawAesKey:
    """An AES-256-GCM wrapping key, in the format of the specification's raw AES keyring."""

    def __init__(self, namespace: str, name: str, key: bytes) -> None:
        if len(key) != KEY_LENGTH:
            raise KeyUnavailable(f"key {namespace}/{name} has {len(key)} bytes, not {KEY_LENGTH}")
        self.namespace = namespace
        self.name = name
        self.recipient = f"{namespace}/{name}"
        self._info = name.encode() + _RAW_AES_INFO
        self._aead = AESGCM(key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.namespace}/{self.name})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a key cannot be pickled or copied: hand over its key text and open it there")

    def wrap(self, data_key: bytes, context: Context) -> EncryptedDataKey:
        iv = os.urandom(IV_LENGTH)
        wrapped = self._aead.encrypt(iv, data_key, serialize_context(context))
        return EncryptedDataKey(self.namespace, self._info + iv, wrapped)

    def matches(self, edk: EncryptedDataKey) -> bool:
        return (
            edk.provider == self.namespace
            and len(edk.info) == len(self._info) + IV_LENGTH
            and edk.info.startswith(self._info)
        )

    def unwrap(self, edk: EncryptedDataKey, context: Context) -> bytes:
        try:
            return self._aead.decrypt(edk.info[-IV_LENGTH:], edk.ciphertext, serialize_context(context))
        except (InvalidTag, ValueError):
            raise DecryptionError(
                f"key {self.namespace}/{self.name} does not open it: changed, or another key"
            ) from None


class LocalKey(RawAesKey):
    """A key in a file: 32 raw bytes, 0600, owned by this user (trust rule 11).

    Whoever loses the file loses the data; whoever reads it reads the data.
    """

    def __init__(self, key: bytes, path: Path) -> None:
        name = hashlib.sha256(b"securemfg-key" + key).hexdigest()[:16]
        super().__init__(LOCAL_PROVIDER, name, key)
        self.path = path

    @classmethod
    def open(cls, path: Path, *, origin: str = "argument") -> LocalKey:
        """Read the key at `path`. Raises KeyUnavailable when it is missing, not private, or not a key."""
        return cls(read_private(path, KEY_LENGTH, origin=origin), path)

    def destroy(self, *, days: int) -> list[Fate]:  # noqa: ARG002 - a file goes at once
        try:
            self.path.unlink()
            sync_folder(self.path.parent)
        except OSError as error:
            return [Fate.failed(str(self.path), f"cannot be removed: {error.strerror}")]
        return [
            Fate.done(str(self.path), "the key file was removed"),
            Fate.not_provable(
                f"backups of {self.recipient}",
                "copies made by 'keys backup' or by others, snapshots, the disk's blocks",
            ),
        ]


def read_private(path: Path, length: int, *, origin: str) -> bytes:
    """The `length` bytes of a secret file. Raises KeyUnavailable unless only its owner can read or replace it."""

    def refused(why: str, remedy: str) -> KeyUnavailable:
        return KeyUnavailable(f"key file {path} {why}: {remedy} (key from {origin})")

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise refused("is missing", "make one with 'securemfg keys generate' or restore its backup") from None
    except OSError as error:
        link = "is a symbolic link or " if error.errno == errno.ELOOP else ""
        raise refused(f"{link}cannot be read ({error.strerror})", "name the file itself and check its owner") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise refused("is not a regular file", "name a file of raw key bytes")
        if status.st_uid != os.geteuid():
            raise refused(f"belongs to uid {status.st_uid}", "it must belong to the user who runs this")
        if status.st_mode & 0o077:
            raise refused(f"can be read by others (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 600 {path}")
        data = os.read(fd, length + 1)
    finally:
        os.close(fd)
    # as named and as it really lies: whoever may replace a folder on either way may replace the key
    for folder in dict.fromkeys((*path.absolute().parents, *path.parent.resolve().parents, path.parent.resolve())):
        kept = folder.stat()
        sticky = kept.st_mode & stat.S_ISVTX
        if kept.st_uid not in {0, os.geteuid()}:
            raise refused(f"lies in {folder}, which belongs to uid {kept.st_uid}", "move it to a folder of your own")
        if kept.st_mode & 0o022 and not sticky:
            raise refused(f"lies in {folder}, which others may write", f"chmod go-w {folder}, or move the key")
    if len(data) != length:
        found = f"more than {length}" if len(data) > length else str(len(data))
        raise refused(f"holds {found} bytes, not {length}", "it is damaged or no key: restore its backup")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Write a secret file once: 0600, durable, never over another. Raises EncryptionError when `path` exists."""
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    try:
        for folder in reversed((path.parent, *path.parent.parents)):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)  # each one: parents=True would use the umask above the last
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EncryptionError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike rename, it never replaces a key that someone else just made
    except FileExistsError:
        raise EncryptionError(f"{path} exists already: a key is never overwritten; name another file") from None
    except OSError as error:
        raise EncryptionError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_local_key(path: Path) -> LocalKey:
    """Make a new random key at `path`, which must not exist. Losing the file loses the data: back it up."""
    write_private(path, os.urandom(KEY_LENGTH))
    try:
        return LocalKey.open(path)
    except KeyUnavailable:  # its folder is not private: a key that nobody can use must not stand in the way
        path.unlink(missing_ok=True)
        raise


def create_rsa_pair(private: Path, public: Path, *, bits: int) -> RsaKey:
    """Make a new RSA key of `bits`: its private half (PKCS #8, no password, 0600) and its public one, as PEM files.

    Both or none is there afterwards. Raises EncryptionError when one exists, KeyUnavailable for too few bits.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    from securemfg.encryption.rsa_oaep import RsaPrivateKey

    secret = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    key = RsaPrivateKey(secret, str(private))
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    opened = secret.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        with replacing(public, mode=0o644, durable=True, overwrite=False) as fd:
            write_private(private, secret.private_bytes(pem, form, serialization.NoEncryption()))
            try:
                _open_rsa(private, str(private))
                os.write(fd, opened)
            except BaseException:  # as above: a key that nobody can use must not stand in the way
                private.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise EncryptionError(f"{public} cannot be written: {error.strerror}") from error
    return key


def copy_local_key(source: Path, target: Path, *, origin: str) -> LocalKey:
    """Copy a local key, for a backup or its way back; into a folder it goes by its name. Returns the copy, read back.

    Raises KeyUnavailable for a bad source, EncryptionError when `target` exists or does not read back.
    """
    key = LocalKey.open(source, origin=origin)
    place = target / f"{key.name}.key" if target.is_dir() else target
    write_private(place, read_private(source, KEY_LENGTH, origin=origin))
    copy = LocalKey.open(place, origin="the copy")
    if copy.name != key.name:
        raise EncryptionError(f"the copy in {place} does not read back as key {key.name}: do not rely on it")
    return copy


def open_key(
    text: str, *, folder: Path | None = None, origin: str = "argument", services: KeyServices | None = None
) -> Key:
    """The key that `text` names; a relative path is taken from `folder`. `origin` is for messages.

    No service is asked before the key is used. Raises ConfigError for text that is no key, KeyUnavailable when the key
    cannot be used.
    """
    scheme, separator, rest = text.partition(":")
    if not separator or not rest:
        raise ConfigError(f"a key must be like 'local:PATH', got {text!r} ({origin})")
    services = services or KeyServices()
    if scheme == "local":
        return LocalKey.open(_place(rest, folder), origin=origin)
    if scheme == "aws-kms":
        from securemfg.encryption.aws_kms import AwsKmsKey, kms_client

        return AwsKmsKey(rest, origin=origin, client=services.kms or kms_client)
    if scheme == "vault-transit":
        from securemfg.encryption.vault_transit import VaultTransitKey

        if services.vault is None:
            raise ConfigError(
                f"key {text!r} ({origin}) needs a Vault: use it through a workflow whose settings have vault.address"
            )
        return VaultTransitKey(rest, vault=services.vault, origin=origin)
    if scheme == "rsa":
        return _open_rsa(_place(rest, folder), origin)
    raise ConfigError(f"unknown kind of key {scheme!r} in {text!r} ({origin}){nearest(scheme, SCHEMES)}")


def _place(text: str, folder: Path | None) -> Path:
    path = Path(text).expanduser()
    return path if path.is_absolute() or folder is None else folder / path


def _open_rsa(path: Path, origin: str) -> Key:
    from securemfg.encryption.rsa_oaep import open_rsa

    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_PEM)
    except OSError as error:
        raise KeyUnavailable(f"key file {path} cannot be read: {error.strerror} (key from {origin})") from error
    if b"PRIVATE KEY" in pem:  # a secret: held to the same rules as a local key
        pem = read_private(path, len(pem), origin=origin)
    return open_rsa(pem, path, origin)


def open_keys(keys: Key | str | Sequence[Key | str], *, folder: Path | None = None) -> tuple[Key, ...]:
    """One or several keys or key texts, opened."""
    several = (keys,) if isinstance(keys, str) or not isinstance(keys, Sequence) else keys
    opened = tuple(open_key(key, folder=folder) if isinstance(key, str) else key for key in several)
    if not opened:
        raise KeyUnavailable("no key was given: name at least one")
    return opened


def unlock(header: Header, keys: Sequence[Key]) -> MessageKey:
    """The message's keys, by the first of `keys` that opens one of its encrypted data keys.

    A key that fails does not stop the next. Raises DecryptionError naming every recipient and what was tried.
    """
    tried: list[str] = []
    asked = 0
    for edk in header.encrypted_data_keys:
        opening = [cast("OpeningKey", key) for key in keys if hasattr(key, "unwrap")]  # isinstance costs 10 us each
        matching = [key for key in opening if key.matches(edk)]
        if not matching:
            tried.append(f"{edk.shown}: none of the keys at hand")
        for key in matching:
            if getattr(key, "remote", False):
                asked += 1
                if asked > MAX_REMOTE:
                    tried.append(f"{edk.shown}: not asked, after {MAX_REMOTE} others of services")
                    continue
            try:
                return MessageKey.open(header, key.unwrap(edk, header.context))
            except SecureMfgError as error:  # of any kind: a Vault's settings or certificate must not stop a local key
                tried.append(f"{edk.shown}: {error}")
    names = ", ".join(repr(key) for key in keys)
    raise DecryptionError(
        f"no key at hand opens this message. Its recipients: {'; '.join(tried)}. Keys at hand: {names}"
    )
