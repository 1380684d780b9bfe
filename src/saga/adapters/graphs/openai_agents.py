"""OpenAI Agents SDK: an agent, those it hands over to, and their tools."""

from __future__ import annotations

from typing import Any

from saga.adapters.graphs.document import Draft


def recognises(agent: Any) -> bool:
    return all(hasattr(agent, name) for name in ("name", "instructions", "tools", "handoffs"))


def document(agent: Any) -> dict[str, Any]:
    """Each agent may answer, call one of its tools and go on, or hand over."""
    draft = Draft()
    waiting, seen = [agent], set()
    while waiting:
        one = waiting.pop(0)
        if one.name in seen:
            continue
        seen.add(one.name)
        draft.node(one.name)
        for tool in one.tools:
            name = getattr(tool, "name", type(tool).__name__)
            place = draft.node(f"{one.name}.{name}", "tool", tool=name)
            draft.edge(one.name, place, conditional=True)
            draft.edge(place, one.name)
        for server in getattr(one, "mcp_servers", ()):
            place = draft.node(f"{one.name}.{server.name}", "tool", tool=server.name)
            draft.edge(one.name, place, conditional=True)
            draft.edge(place, one.name)
        for handoff in one.handoffs:
            other = _agent_of(handoff)
            draft.edge(one.name, getattr(handoff, "agent_name", None) or other.name,
                       conditional=True)  # fmt: skip
            if other is not None:
                waiting.append(other)
        draft.ends_at(one.name, conditional=True)
    return draft.document([agent.name])


def _agent_of(handoff: Any) -> Any:
    """The agent behind a handoff; None if it cannot be seen."""
    if recognises(handoff):
        return handoff
    known = getattr(handoff, "_agent_ref", None)
    return known() if callable(known) else None
