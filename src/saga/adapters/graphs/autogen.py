"""AutoGen: a ``DiGraph``, or a team that follows one."""

from __future__ import annotations

from typing import Any

from saga.adapters.graphs.document import Draft


def recognises(workflow: Any) -> bool:
    return hasattr(_graph(workflow), "default_start_node")


def document(workflow: Any) -> dict[str, Any]:
    """A node with several edges into it waits for all of them unless it says ``any``."""
    graph = _graph(workflow)
    draft = Draft()
    for name in graph.nodes:
        draft.node(name)
    for name, node in graph.nodes.items():
        for edge in node.edges:
            conditional = edge.condition is not None or edge.condition_function is not None
            join = graph.nodes[edge.target].activation
            draft.edge(name, edge.target, conditional=conditional, join=join)
    return draft.document(sorted(graph.get_start_nodes()))


def _graph(workflow: Any) -> Any:
    return workflow if hasattr(workflow, "nodes") else getattr(workflow, "_graph", None)
