"""Google ADK: a ``Workflow`` with its graph, or an agent with those below it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from saga.adapters.graphs.document import Draft

START: Final = "__START__"


def recognises(workflow: Any) -> bool:
    edges = getattr(_graph(workflow), "edges", None)
    if isinstance(edges, list):
        return all(hasattr(edge, "from_node") and hasattr(edge, "route") for edge in edges)
    return hasattr(workflow, "sub_agents")


def document(workflow: Any) -> dict[str, Any]:
    graph = _graph(workflow)
    return _agents(workflow) if graph is None else _nodes(graph)


def _graph(workflow: Any) -> Any:
    return getattr(workflow, "graph", None)


def _nodes(graph: Any) -> dict[str, Any]:
    """Nodes that ask no model cannot be told from those that do."""
    draft, start = Draft(), []
    for edge in graph.edges:
        if edge.from_node.name == START:
            start.append(edge.to_node.name)
            draft.node(edge.to_node.name, _kind(edge.to_node))
            continue
        for node in (edge.from_node, edge.to_node):
            draft.node(node.name, _kind(node))
        chosen = edge.route is not None
        draft.edge(edge.from_node.name, edge.to_node.name, conditional=chosen)
    return draft.document(start)


def _kind(node: Any) -> str:
    kind = type(node).__name__
    return "tool" if "ToolNode" in kind else "join" if "JoinNode" in kind else "llm"


def _agents(root: Any) -> dict[str, Any]:
    """A sequence runs in its order and a loop again from its start; parallel agents begin
    together; any other agent may hand over to those below it, and they back."""
    draft = Draft()
    starts, _ = _add(draft, root)
    return draft.document(starts)


def _add(draft: Draft, agent: Any) -> tuple[list[str], list[str]]:
    """Where an agent begins, and where it may end."""
    kind, below = type(agent).__name__, agent.sub_agents
    if kind in ("SequentialAgent", "LoopAgent") and below:
        parts = [_add(draft, one) for one in below]
        for (_, ends), (starts, _) in pairwise(parts):
            _connect(draft, ends, starts)
        if kind == "LoopAgent":
            _connect(draft, parts[-1][1], parts[0][0], conditional=True)
            for end in parts[-1][1]:
                draft.ends_at(end, conditional=True)
        return parts[0][0], parts[-1][1]
    if kind == "ParallelAgent" and below:
        parts = [_add(draft, one) for one in below]
        return ([name for starts, _ in parts for name in starts],
                [name for _, ends in parts for name in ends])  # fmt: skip
    name = draft.node(agent.name)
    for tool in getattr(agent, "tools", ()):
        called = getattr(tool, "name", None) or getattr(tool, "__name__", type(tool).__name__)
        place = draft.node(f"{agent.name}.{called}", "tool", tool=called)
        draft.edge(name, place, conditional=True)
        draft.edge(place, name)
    for one in below:
        starts, ends = _add(draft, one)
        _connect(draft, [name], starts, conditional=True)
        _connect(draft, ends, [name], conditional=True)
    draft.ends_at(name, conditional=True)
    return [name], [name]


def _connect(
    draft: Draft, sources: list[str], targets: list[str], *, conditional: bool = False
) -> None:
    for source in sources:
        for target in targets:
            draft.edge(source, target, conditional=conditional)
