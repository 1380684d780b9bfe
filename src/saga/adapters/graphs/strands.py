"""Strands: a graph of agents."""

from __future__ import annotations

from typing import Any

from saga.adapters.graphs.document import Draft


def recognises(graph: Any) -> bool:
    return all(hasattr(graph, name) for name in ("nodes", "edges", "entry_points"))


def document(graph: Any) -> dict[str, Any]:
    draft = Draft()
    for name in graph.nodes:
        draft.node(name)
    pairs = [(edge.from_node.node_id, edge.to_node.node_id, edge) for edge in graph.edges]
    for source, target, edge in sorted(pairs, key=lambda pair: pair[:2]):
        draft.edge(source, target, conditional=edge.condition is not None)
    return draft.document(sorted(node.node_id for node in graph.entry_points))
