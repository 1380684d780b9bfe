"""Microsoft Agent Framework: a workflow."""

from __future__ import annotations

from typing import Any, Final

from saga.adapters.graphs.document import Draft

CHOOSES: Final = "SwitchCaseEdgeGroup"
WAITS: Final = "FanInEdgeGroup"


def recognises(workflow: Any) -> bool:
    return hasattr(workflow, "edge_groups") and hasattr(workflow, "start_executor_id")


def document(workflow: Any) -> dict[str, Any]:
    """What an executor does cannot be seen: each counts as a step of a model."""
    told = workflow.to_dict()
    draft = Draft()
    for name in told["executors"]:
        draft.node(name)
    for group in told["edge_groups"]:
        chosen = group["type"] == CHOOSES or group.get("selection_func_name") is not None
        join = "all" if group["type"] == WAITS else None
        for edge in group["edges"]:
            source, target = edge["source_id"], edge["target_id"]
            if source in told["executors"]:  # others are the framework's own
                conditional = chosen or edge.get("condition_name") is not None
                draft.edge(source, target, conditional=conditional, join=join)
    return draft.document([told["start_executor_id"]])
