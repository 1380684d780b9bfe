"""Hooks into whatever of these the application imports, before or after."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Final

from saga.adapters.imports import Watch
from saga.adapters.silence import Undo, silent

HOOKS: Final[Mapping[str, str]] = {
    "httpx": "saga.adapters.outgoing",
    "httpx2": "saga.adapters.outgoing",
    "langgraph.pregel": "saga.adapters.frameworks.langgraph",
    "agents": "saga.adapters.frameworks.openai_agents",
    "crewai": "saga.adapters.frameworks.crewai",
    "google.adk.plugins.plugin_manager": "saga.adapters.frameworks.adk",
    "strands": "saga.adapters.frameworks.strands",
    "autogen_agentchat.agents": "saga.adapters.frameworks.autogen",
}
"""By the module that is waited for: one with ``install(module)``, which gives an undo."""


class _Installed:
    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self._watch = Watch({name: partial(self._install, hook) for name, hook in HOOKS.items()})
        self._watch.begin()

    def _install(self, hook: str, module: ModuleType) -> None:
        self._undos.append(import_module(hook).install(module))

    def end(self) -> None:
        self._watch.end()
        for undo in reversed(self._undos):
            silent(undo)()


_lock: Final = threading.Lock()
_installed: _Installed | None = None


@silent
def install() -> None:
    """Says whose step each request to a model is, from now on. A second call changes nothing."""
    global _installed
    with _lock:
        if _installed is None:
            _installed = _Installed()


@silent
def uninstall() -> None:
    """All is as it was before ``install``."""
    global _installed
    with _lock:
        if _installed is not None:
            _installed.end()
            _installed = None
