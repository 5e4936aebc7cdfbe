"""Encrypted MLflow artifacts: `activate()` and `deactivate()` around unchanged MLflow code."""

from __future__ import annotations

from typing import BinaryIO

from securemfg import context

__all__ = ["activate", "active", "deactivate", "open_artifact"]


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


def open_artifact(uri: str) -> BinaryIO:
    """One file's plaintext, read-only and seekable, for pandas, pyarrow, safetensors, torch.load and the like.

    `uri` is any address of MLflow's: `runs:/ID/data.parquet`, `models:/press/3/model.safetensors`, a path. Frames are
    decrypted and verified as they are read, and nothing of them is staged; a file of a model whose signed manifest is
    asked for is checked whole first. Works while encrypted artifacts are on. Raises ConfigError, DecryptionError,
    KeyUnavailable.
    """
    from securemfg.artifacts.opening import open_artifact as opened

    return opened(uri)
