"""LangGraph: a compiled graph, or one that can be compiled."""

from __future__ import annotations

from typing import Any, Final

from saga.adapters.graphs.document import Draft

START: Final = "__start__"
STOP: Final = "__end__"
TOOLS: Final = "ToolNode"


def recognises(graph: Any) -> bool:
    return hasattr(graph, "get_graph") or (hasattr(graph, "compile") and hasattr(graph, "add_node"))


def document(graph: Any) -> dict[str, Any]:
    """Sub-graphs are opened as far as LangGraph can see them. Nodes that are no ``ToolNode`` count
    as steps of a model: what a function does cannot be seen."""
    compiled = graph if hasattr(graph, "get_graph") else graph.compile()
    drawn = compiled.get_graph(xray=True)
    draft = Draft()
    for name, node in drawn.nodes.items():
        if name not in (START, STOP):
            draft.node(name, "tool" if type(node.data).__name__ == TOOLS else "llm")
    start = []
    for edge in drawn.edges:
        if edge.source == START:
            start.append(edge.target)
        elif edge.target == STOP:
            draft.ends_at(edge.source, conditional=edge.conditional)
        else:
            draft.edge(edge.source, edge.target, conditional=edge.conditional)
    return draft.document(name for name in start if name != STOP)
