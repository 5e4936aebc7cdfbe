"""Being told when a module is imported, so that a guard need not import what the program does not use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["Watch"]


class Watch(MetaPathFinder):
    """Calls `arrived(name)` for each of `names`: at `start` for those imported already, later for the rest.

    An exception from `arrived` fails the import, so what cannot be guarded cannot be used either.
    """

    def __init__(self, names: Collection[str], arrived: Callable[[str], None]) -> None:
        self._names = frozenset(names)
        self._arrived = arrived

    def start(self) -> None:
        sys.meta_path.insert(0, self)
        for name in sorted(self._names):
            if name in sys.modules:
                importlib.import_module(name)  # waits for another thread that is half-way through it
                self._arrived(name)

    def stop(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def tell(self, name: str) -> None:
        """A watched module has been executed; after `stop` nobody is told."""
        if self in sys.meta_path:
            self._arrived(name)


class _Loader(Loader):
    """The module's own loader, with a word to the watch afterwards. It leaves no trace in the module."""

    def __init__(self, loader: Loader, watch: Watch) -> None:
        self._loader = loader
        self._watch = watch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._watch.tell(module.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
