"""Graphs of agent frameworks as ``saga.graph.v1``, which the gateway and the reports read.

No framework is imported: objects are recognised by what they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

from saga.adapters.graphs import (
    adk,
    agent_framework,
    autogen,
    crewai,
    langgraph,
    llama_index,
    openai_agents,
    strands,
)

FRAMEWORKS: Final[Sequence[ModuleType]] = (
    langgraph,
    openai_agents,
    crewai,
    strands,
    autogen,
    agent_framework,
    llama_index,
    adk,
)
"""The first one that recognises an object reads it."""


def graph_of(workflow: Any) -> dict[str, Any]:
    """The graph of a framework's workflow, to be sent with ``PUT /v1/saga/graphs/{name}``.

    TypeError for what no framework here calls a workflow; ValueError if it is empty.
    """
    for framework in FRAMEWORKS:
        if framework.recognises(workflow):
            graph: dict[str, Any] = framework.document(workflow)
            return graph
    known = ", ".join(framework.__name__.rpartition(".")[2] for framework in FRAMEWORKS)
    kind = type(workflow)
    raise TypeError(
        f"{kind.__module__}.{kind.__qualname__} has no graph that can be read; known are: {known}"
    )
