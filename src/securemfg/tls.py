"""TLS 1.3 for this process, by the default workflow's settings: `client()`, `enforce()`, `release()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from securemfg import context

if TYPE_CHECKING:
    import httpx

    from securemfg.workflow import Workflow

__all__ = ["async_client", "client", "enforce", "release"]


def _workflow() -> Workflow:
    workflow: Workflow = context.default_workflow()
    return workflow


def client(**options: Any) -> httpx.Client:
    """An httpx.Client that speaks TLS 1.3 only and always verifies; `options` are httpx's own (NIST SC-8).

    Its requests raise TlsRefused or PlaintextRefused, which say why and what to do.
    """
    return _workflow().http_client(**options)


def async_client(**options: Any) -> httpx.AsyncClient:
    """As `client`, for asyncio."""
    return _workflow().async_http_client(**options)


def enforce() -> None:
    """Hold every TLS connection and plain http of this process to the settings, until `release`. Counted.

    On inside every step. What it does not reach: docs/explanation/threat-model.md.
    """
    workflow = _workflow()
    workflow.tell_weakenings()
    workflow.enforce_tls()


def release() -> None:
    """Undo one `enforce`. With the last one every class is as it was."""
    _workflow().release_tls()
