"""CrewAI: a flow, whose methods are steps; or a crew, whose tasks are."""

from __future__ import annotations

from typing import Any

from saga.adapters.graphs.document import Draft


def recognises(workflow: Any) -> bool:
    return hasattr(workflow, "flow_definition") or _is_crew(workflow)


def document(workflow: Any) -> dict[str, Any]:
    return _crew(workflow) if _is_crew(workflow) else _flow(workflow)


def _is_crew(workflow: Any) -> bool:
    return all(hasattr(workflow, name) for name in ("tasks", "agents", "kickoff"))


def _flow(flow: Any) -> dict[str, Any]:
    """Routers choose one of their edges. What a method does cannot be seen: it counts as a step of
    a model."""
    from crewai.flow.visualization.builder import build_flow_structure

    structure: dict[str, Any] = build_flow_structure(flow)
    draft = Draft()
    for name, node in structure["nodes"].items():
        draft.node(name, "router" if node.get("is_router") else "llm")
    for edge in structure["edges"]:
        joins = {"AND": "all", "OR": "any"}.get(str(edge.get("condition_type")))
        chosen = bool(edge.get("is_router_event"))
        draft.edge(edge["source"], edge["target"], conditional=chosen, join=joins)
    return draft.document(structure["start_methods"])


def _crew(crew: Any) -> dict[str, Any]:
    """Its tasks one after another; one that is given the results of others waits for them."""
    draft = Draft()
    names = {id(task): draft.node(_name(number, task)) for number, task in enumerate(crew.tasks, 1)}
    before = None
    for task in crew.tasks:
        name = names[id(task)]
        waits_for = task.context if isinstance(task.context, (list, tuple)) else ()
        for other in waits_for:
            draft.edge(names[id(other)], name, join="all")
        if before is not None:
            draft.edge(before, name, join="all" if waits_for else None)
        before = name
    return draft.document(list(names.values())[:1])


def _name(number: int, task: Any) -> str:
    """A task without a name is known by its agent: its description is a prompt."""
    role = task.agent.role.strip() if task.agent else "task"
    return task.name or f"{number}: {role}"
