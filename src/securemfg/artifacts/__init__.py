"""Encrypted MLflow artifacts: `activate()` and `deactivate()` around unchanged MLflow code."""

from __future__ import annotations

from securemfg import context

__all__ = ["activate", "active", "deactivate"]


def activate() -> None:
    """Encrypt every artifact that MLflow writes in this process, by the default workflow's settings.

    Counted and thread-safe. Works before or after `import mlflow`. Raises EncryptionError when MLflow would bypass us.
    """
    context.default_workflow().activate_artifacts()


def deactivate() -> None:
    """Undo one `activate`. Raises ConfigError when there was none."""
    from securemfg.artifacts.activation import deactivate as undo

    undo()


def active() -> bool:
    """Whether artifacts are being encrypted in this process."""
    import sys

    state = sys.modules.get("securemfg.artifacts.state")
    return state is not None and state.STATE.protection is not None
