"""LlamaIndex workflows: steps, and the events that lead from one to the next."""

from __future__ import annotations

from typing import Any

from saga.adapters.graphs.document import Draft


def recognises(workflow: Any) -> bool:
    return hasattr(workflow, "_get_steps_from_class")


def document(workflow: Any) -> dict[str, Any]:
    """An edge for each event between two steps. What a step does cannot be seen: each counts as one
    of a model; what waits for an answer from outside is human."""
    from workflows.representation import get_workflow_representation

    drawn = get_workflow_representation(workflow)
    kinds = {node.id: node.node_type for node in drawn.nodes}
    draft, start = Draft(), []
    for name, kind in kinds.items():
        if kind in ("step", "external"):
            draft.node(name, "human" if kind == "external" else "llm")
    for event in (name for name, kind in kinds.items() if kind == "event"):
        makers = [edge.source for edge in drawn.edges if edge.target == event]
        takers = [edge.target for edge in drawn.edges if edge.source == event]
        if not makers:
            start += takers
        for maker in makers:
            chosen = sum(edge.source == maker for edge in drawn.edges) > 1
            for taker in takers:
                draft.edge(maker, taker, conditional=chosen)
            if not takers:
                draft.ends_at(maker, conditional=chosen)
    return draft.document(start)
