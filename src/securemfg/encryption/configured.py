"""The keys that the settings name, opened when they are first needed."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from securemfg.config import Config
from securemfg.context import Emit
from securemfg.encryption.erased import Erased, ErasedKey, ErasedKeys
from securemfg.encryption.keys import Key, KeyServices, create_local_key, open_key
from securemfg.errors import KeyUnavailable, SecureMfgError
from securemfg.forking import forget_after_fork
from securemfg.home import make_home


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedKey:
    """One key of the settings: under which name, and whether it can be used here."""

    name: str  # `default`, or an asset's
    text: str
    origin: str
    key: Key | None
    problem: str | None


class ConfiguredKeys:
    """Which keys to encrypt for, and which to read with. Thread-safe; opens each key once."""

    def __init__(self, config: Config, emit: Emit, services: KeyServices | None = None) -> None:
        self._config = config
        self._services = services
        self._emit = emit
        self.erased = ErasedKeys(config.home / "erased-keys.jsonl")
        self._lock = threading.RLock()
        self._opened: dict[str | tuple[str, ...], tuple[Key, ...]] = {}
        forget_after_fork(self)

    def for_assets(self, assets: Sequence[str]) -> dict[str, tuple[Key, ...]]:
        """One group of keys per asset with keys of its own, else the default group, each by its name in the settings.
        Something of every group is needed to read; within a group any key will do. Raises KeyUnavailable, ConfigError.
        """
        named = self._config.settings.keys
        own = [asset for asset in assets if asset in named]
        names = own if own and len(own) == len(assets) else [*own, "default"]
        texts = {name: self._text(name) for name in names}
        first = {text: name for name, text in reversed(texts.items())}  # the same keys are not needed twice
        return {name: self._open(text) for name, text in texts.items() if first[text] == name}

    def group(self, name: str) -> tuple[str, tuple[Key, ...]]:
        """The keys that the settings have for `name` today: the default ones when the name is theirs no longer."""
        kept = name if name in self._config.settings.keys else "default"
        return kept, self._open(self._text(kept))

    def _text(self, name: str) -> str | tuple[str, ...]:
        return self._config.default_key if name == "default" else self._config.settings.keys[name]

    def for_reading(self) -> tuple[Key, ...]:
        """Every key that the settings name and that can be used here; for a destroyed one, what says so.

        Raises KeyUnavailable when there is none.
        """
        keys: list[Key] = []
        failures: list[SecureMfgError] = []
        for text in dict.fromkeys([self._config.default_key, *self._config.settings.keys.values()]):
            try:
                keys += self._open(text)
            except SecureMfgError as error:
                failures.append(error)
                keys += self._ends(text)
        if not keys:
            raise failures[0]
        return tuple(keys)

    def named(self) -> Iterator[NamedKey]:
        """Every key that the settings name, opened or with the reason why not. Makes none."""
        config = self._config
        for name, texts in {"default": config.default_key, **config.settings.keys}.items():
            origin = config.origin(f"keys.{name}")
            for text in (texts,) if isinstance(texts, str) else texts:
                key, problem = None, None
                try:
                    key = self.open(text, origin=origin)
                except SecureMfgError as error:
                    problem = str(error)
                yield NamedKey(name=name, text=text, origin=origin, key=key, problem=problem)

    def open(self, text: str, *, origin: str) -> Key:
        """The key of a text given here and now, with the settings' services. Raises ConfigError, KeyUnavailable."""
        end = self.erased.find(text)
        if end is not None and not self._made_anew(text, end):
            raise KeyUnavailable(f"{end} (key from {origin}; noted in {self.erased.path})")
        return open_key(text, folder=self._config.folder, origin=origin, services=self._services)

    def _made_anew(self, text: str, end: Erased) -> bool:
        """Whether another local key lies today where the destroyed one lay."""
        if not text.startswith("local:"):
            return False
        try:
            return getattr(open_key(text, folder=self._config.folder), "recipient", None) != end.recipient
        except SecureMfgError:
            return False

    def _open(self, text: str | tuple[str, ...]) -> tuple[Key, ...]:
        with self._lock:
            opened = self._opened.get(text)
            if opened is None:
                self._make_embedded_key()
                texts = (text,) if isinstance(text, str) else text
                origin = self._origin(text)
                opened = tuple(self.open(one, origin=origin) for one in texts)
                self._opened[text] = opened
            return opened

    def _ends(self, text: str | tuple[str, ...]) -> Iterator[Key]:
        """The destroyed keys among those of `text`, and those beside them that still work."""
        for one in (text,) if isinstance(text, str) else text:
            end = self.erased.find(one)
            if end is not None:
                yield ErasedKey(end)
            elif not isinstance(text, str):
                with contextlib.suppress(SecureMfgError):
                    yield self.open(one, origin=self._origin(text))

    def _origin(self, text: str | tuple[str, ...]) -> str:
        names = (name for name, value in self._config.settings.keys.items() if value == text)
        return next((self._config.origin(f"keys.{name}") for name in names), "built-in")

    def _make_embedded_key(self) -> None:
        """The embedded default makes its key; with settings, only `init` and `keys generate` do (trust rule 11)."""
        if not self._config.embedded:
            return
        path = self._config.home / "keys" / "default.key"
        if path.exists():
            return
        make_home(self._config.home)
        try:
            key = create_local_key(path)
        except SecureMfgError:
            if path.exists():  # another process was faster
                return
            raise
        sys.stderr.write(
            f"securemfg: no settings found: using the embedded default in {self._config.home}. Made key {key.name}: "
            f"whoever loses {path} loses the data; back it up with 'securemfg keys backup'.\n"
        )
        self._emit("key.created", resource=key.name, kind="local-key", detail={"path": str(path)})

    def forget_opened(self) -> None:
        """Open every key anew when it is next needed: one was destroyed."""
        with self._lock:
            self._opened.clear()

    def forget(self) -> None:
        """In a forked child: a lock of its own. The keys themselves are the same."""
        self._lock = threading.RLock()
