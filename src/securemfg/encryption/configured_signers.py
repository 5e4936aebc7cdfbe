"""Who signs models and whose signatures count, as the settings say; opened when first needed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from securemfg.config import Config
from securemfg.context import Emit
from securemfg.encryption.keys import KeyServices
from securemfg.encryption.signers import Signer, VerifyingKey, create_signing_key, open_pinned, open_signer
from securemfg.errors import SecureMfgError
from securemfg.forking import forget_after_fork
from securemfg.home import make_home

EMBEDDED: Final = "keys/signer.key"  # below the home: the embedded default's own


class ConfiguredSigners:
    """The signer and the pinned keys of the settings. Thread-safe; each is opened once.

    `artifacts.signer` alone pins its own public key; `artifacts.signers` alone verifies and never signs. With neither,
    models are neither signed nor checked, except by the embedded default, which makes a key of its own.
    """

    def __init__(self, config: Config, emit: Emit, services: KeyServices | None = None) -> None:
        self._config = config
        self._emit = emit
        self._services = services
        self._signer: Signer | None = None
        self._pinned: tuple[VerifyingKey, ...] | None = None
        self.forget()
        forget_after_fork(self)

    def forget(self) -> None:
        """In a forked child: a lock of its own. The keys themselves are the same."""
        self._lock = threading.RLock()

    @property
    def required(self) -> bool:
        """Whether a model without a manifest is refused."""
        artifacts = self._config.settings.artifacts
        return self._config.embedded or artifacts.signer is not None or bool(artifacts.signers)

    @property
    def origin(self) -> str:
        """Where it was set whose signatures count."""
        return self._config.origin(
            "artifacts.signers" if self._config.settings.artifacts.signers else "artifacts.signer"
        )

    def signer(self) -> Signer | None:
        """What signs here, or None when nothing does. Raises ConfigError, KeyUnavailable."""
        text = self._config.settings.artifacts.signer
        if text is None and not self._config.embedded:
            return None
        with self._lock:
            if self._signer is None:
                if text is None:
                    path = self._config.home / EMBEDDED
                    self._make(path)
                    text = f"ed25519:{path}"
                self._signer = open_signer(
                    text,
                    folder=self._config.folder,
                    origin=self._config.origin("artifacts.signer"),
                    services=self._services,
                )
            return self._signer

    def pinned(self) -> Sequence[VerifyingKey]:
        """The keys whose signatures count. Raises ConfigError, KeyUnavailable."""
        with self._lock:
            if self._pinned is None:
                texts = self._config.settings.artifacts.signers
                signer = None if texts else self.signer()
                if signer is not None:
                    self._pinned = tuple(signer.verifying_keys())
                else:
                    self._pinned = tuple(key for text in texts for key in self._open(text))
            return self._pinned

    def _open(self, text: str) -> Sequence[VerifyingKey]:
        origin = self._config.origin("artifacts.signers")
        return open_pinned(text, folder=self._config.folder, origin=origin, services=self._services)

    def _make(self, path: Path) -> None:
        if path.exists():
            return
        make_home(self._config.home)
        try:
            made = create_signing_key(path)
        except SecureMfgError:
            if path.exists():  # another process was faster
                return
            raise
        hint = made.verifying_keys()[0].hint
        sys.stderr.write(
            f"securemfg: no settings found: made the signing key {path}; models are signed with it, and only those "
            "that it signed are loaded.\n"
        )
        self._emit("key.created", resource=hint[:16], kind="signing-key", detail={"path": str(path)})
