"""Hooks that are taken out again, and those that an application tries to replace."""

from __future__ import annotations

from typing import Any

import pytest

agents = pytest.importorskip("agents")
langgraph = pytest.importorskip("langgraph.pregel")

from langchain_core.tracers import context  # noqa: E402

from saga.adapters.frameworks import langgraph as langgraph_hook  # noqa: E402
from saga.adapters.frameworks import openai_agents as agents_hook  # noqa: E402


def processors() -> list[Any]:
    provider: Any = agents.tracing.get_trace_provider()
    return [type(one).__name__ for one in provider._multi_processor._processors]


def test_an_application_may_set_its_own_processors() -> None:
    before = processors()
    undo = agents_hook.install(agents)
    assert processors() == [*before, "Processor"]
    agents.set_trace_processors([])
    assert processors() == ["Processor"]
    undo()
    assert processors() == []


def test_langgraph_is_as_it_was() -> None:
    before = list(context._configure_hooks)
    undo = langgraph_hook.install(langgraph)
    assert len(context._configure_hooks) == len(before) + 1
    undo()
    assert context._configure_hooks == before
