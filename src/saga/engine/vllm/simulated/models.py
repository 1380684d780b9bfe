"""The engine models that are vLLM, by name, and what each of them cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from saga.core.policy import Policies
from saga.engine.vllm.simulated.engine import VllmEngine
from saga.engine.vllm.simulated.plugin import PluginEngine
from saga.policies.prefix_lru import PrefixLru
from saga.sim.engine_model import EngineSetup, MakeEngine
from saga.sim.hardware import EngineSpec


def vllm_engine(setup: EngineSetup) -> VllmEngine:
    """vLLM as it comes. Raises ValueError for policies that it cannot carry out."""
    _refuse(beyond_stock(setup.policies, setup.spec))
    return VllmEngine(setup)


def plugin_engine(setup: EngineSetup) -> PluginEngine:
    """vLLM with SAGA's plugin, which is not asked to prefetch or to take KV of other engines.

    Raises ValueError for policies that it cannot carry out.
    """
    _refuse(beyond_plugin(setup.policies, setup.spec))
    return PluginEngine(setup)


def beyond_stock(policies: Policies, spec: EngineSpec) -> list[str]:
    """What the policies want of engines that vLLM does not do by itself."""
    wanted = {
        "eviction of other KV than the least recently used": policies.eviction != PrefixLru(),
        "retention": policies.retention is not None,
        "prefetch": policies.prefetch is not None,
        "KV in host memory": spec.host_capacity_tokens > 0,
    }
    return [what for what, is_wanted in wanted.items() if is_wanted]


def beyond_plugin(policies: Policies, spec: EngineSpec) -> list[str]:
    """What the policies want that cannot be played with the plugin either."""
    wanted = {
        "eviction by what only a simulator knows": policies.eviction.clairvoyant,
        "KV in host memory": spec.host_capacity_tokens > 0,
    }
    return [what for what, is_wanted in wanted.items() if is_wanted]


MODELS: Final[dict[str, tuple[MakeEngine, Callable[[Policies, EngineSpec], list[str]]]]] = {
    "vllm": (vllm_engine, beyond_stock),
    "vllm-plugin": (plugin_engine, beyond_plugin),
}
"""How an engine is made, and for what it is refused."""


def _refuse(wanted: list[str]) -> None:
    if wanted:
        raise ValueError(f"vLLM has no {' and '.join(wanted)} here")
