"""Refusals that MLflow would swallow: remembered per thread while a resolver runs, and raised when it is done."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from securemfg.artifacts.protection import Protection
from securemfg.artifacts.reaper import remove
from securemfg.artifacts.staging import fresh_folder
from securemfg.artifacts.state import STATE
from securemfg.errors import EncryptionError, SecureMfgError


class _Thread(threading.local):
    def __init__(self) -> None:
        self.collecting: list[list[SecureMfgError]] = []


_thread = _Thread()


def note(error: SecureMfgError) -> None:
    """Remember a refusal for the resolver that is running in this thread, if any."""
    for collected in _thread.collecting:
        collected.append(error)


def no_bypass(resolver: Any, uri: str, protection: Protection) -> None:
    """Refuse a resolver that MLflow has given a repository of its own making, past the registry and past us.

    It does so for Unity Catalog's and Databricks' model registries. In mode observe it is audited only. Raises
    EncryptionError.
    """
    from securemfg.artifacts.repository import EncryptedRepository

    inner = getattr(resolver, "repo", None)
    if inner is None or isinstance(inner, EncryptedRepository):
        return
    kind = type(inner).__name__
    reason = f"{uri} leads to {kind}, which MLflow makes itself: nothing it carries is encrypted or verified here"
    protection.emit("artifact.refused", resource=uri, kind="artifact", outcome="denied", reason=reason)
    if protection.enforcing:
        raise EncryptionError(
            f'{reason}; use a registry and a store of your own, or say mode = "observe" to go on and have it audited'
        )


def raising(download: Callable[..., Any]) -> Callable[..., Any]:
    """A resolver's `download_artifacts` that stages what it loads, and raises what was refused on the way."""

    @functools.wraps(download)
    def downloaded(artifact_path: str, dst_path: str | None = None, **options: Any) -> Any:
        protection = STATE.protection
        staged = str(fresh_folder(protection.staging)) if protection is not None and dst_path is None else None
        dst_path = dst_path or staged
        collected: list[SecureMfgError] = []
        _thread.collecting.append(collected)
        try:
            result = download(artifact_path, dst_path, **options)
            if collected:
                raise collected[0]
        except BaseException as error:
            if staged is not None:
                remove(staged)
            if collected and isinstance(error, Exception) and not isinstance(error, SecureMfgError):
                raise collected[0] from error
            raise
        finally:
            _thread.collecting.remove(collected)
        return result

    return downloaded


def surfacing(read: Callable[..., Any]) -> Callable[..., Any]:
    """A method that raises what was refused while it ran, whatever it made of it."""

    @functools.wraps(read)
    def surfaced(*arguments: Any, **options: Any) -> Any:
        collected: list[SecureMfgError] = []
        _thread.collecting.append(collected)
        try:
            return read(*arguments, **options)
        except Exception as error:
            if collected and not isinstance(error, SecureMfgError):
                raise collected[0] from error
            raise
        finally:
            _thread.collecting.remove(collected)

    return surfaced
