"""One artifact as a file: decrypted and verified as it is read, so that no plaintext of it lies anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from securemfg.artifacts.authenticity import Reading
from securemfg.artifacts.location import Location
from securemfg.artifacts.protection import Protection
from securemfg.artifacts.registration import stored_at
from securemfg.artifacts.repository import EncryptedRepository, detail_of
from securemfg.artifacts.state import STATE
from securemfg.encryption.message import looks_like_message
from securemfg.encryption.ranges import MessageFile, buffered
from securemfg.errors import ConfigError, SecureMfgError


def open_artifact(uri: str) -> BinaryIO:
    """See `securemfg.artifacts.open_artifact`."""
    protection = STATE.protection
    if protection is None:
        raise ConfigError(
            f"encrypted artifacts are off, so {uri} cannot be opened: do it inside a step, or after "
            "securemfg.artifacts.activate()"
        )
    if not uri.startswith("models:"):  # a registered version's pin is of the whole model
        for repository, location in stored_at(uri):
            file = _streamed(repository.at(location.root), location, protection)
            if file is not None:
                return file
    return _staged(uri)


def _streamed(repository: EncryptedRepository, location: Location, protection: Protection) -> BinaryIO | None:
    """None for what cannot be read in parts: plaintext, and files of a model whose manifest is asked for."""
    if Reading(repository, protection, location.path, alone=True).witness(location.path) is not None:
        return None
    try:
        with repository.fetched(location.path) as stored:
            if not stored.is_file():
                return None
            with stored.open("rb") as start:
                if not looks_like_message(start.read(8)):
                    return None
            keys = repository.run_keys(protection, stored, location.path, location)
            message = MessageFile(stored, key=keys, context=location.binding)
    except SecureMfgError as error:
        protection.emit(
            "artifact.refused", resource=location.path, kind="artifact", outcome="denied", reason=str(error)
        )
        raise
    except Exception:  # noqa: BLE001 - every store has errors of its own: MLflow says below what is wrong
        return None
    protection.emit(
        "artifact.decrypted",
        resource=location.path,
        kind="artifact",
        detail={**detail_of(message.message, location, keys[0].key_id), "streamed": True},
    )
    return buffered(message)


def _staged(uri: str) -> BinaryIO:
    """What has to be checked whole first: in the staging folder, without a name there as soon as it is open."""
    from mlflow.artifacts import download_artifacts

    path = Path(download_artifacts(artifact_uri=uri))
    if path.is_dir():
        raise ConfigError(f"{uri} is a folder: name one file in it")
    file = path.open("rb")
    path.unlink()
    return file
