"""Calls made when a module has been imported, so that a hook brings in nothing itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from saga.adapters.silence import silent

Imported = Callable[[ModuleType], Any]


class Watch(MetaPathFinder):
    """Calls each of ``watched`` once, after the module of its name has run."""

    def __init__(self, watched: dict[str, Imported]) -> None:
        self._waiting = dict(watched)

    def begin(self) -> None:
        """Modules that are there already count as imported now."""
        sys.meta_path.insert(0, self)
        for name in list(self._waiting):
            if (module := sys.modules.get(name)) is not None:
                self.imported(name, module)

    def end(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find and find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def imported(self, name: str, module: ModuleType) -> None:
        call = self._waiting.pop(name, None)
        if call is not None:
            silent(call)(module)


class _Loader(Loader):
    """A module's own loader, which takes over as soon as the module is run, and then tells."""

    def __init__(self, loader: Any, watch: Watch) -> None:
        self._loader = loader
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._watch.imported(module.__name__, module)
