"""What clients announce of a workflow between its requests."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from saga.gateway.locations import MAX_ID, identifier
from saga.gateway.sessions import LiveWorkflow, Sessions, scoped

MAX_EVENTS = 64
Text = Annotated[str, Meta(min_length=1, max_length=MAX_ID)]


class Announced(Struct, forbid_unknown_fields=True):
    """One event; without a session it is of the whole workflow, which only ``final`` can be."""

    type: Literal["step.start", "step.end", "tool.start", "tool.end", "final"]
    session: Text | None = None
    step: Text | None = None
    tool: Text | None = None


class Announcements(Struct, forbid_unknown_fields=True):
    events: Annotated[list[Announced], Meta(min_length=1, max_length=MAX_EVENTS)]


def announce(sessions: Sessions, workflow: LiveWorkflow, told: Announcements) -> int:
    """Tells what can be told; how many events say nothing: of sessions that are not this
    workflow's or over by now, or without what they are about."""
    return sum(not _one(sessions, workflow, event) for event in told.events)


def _one(sessions: Sessions, workflow: LiveWorkflow, event: Announced) -> bool:
    if event.session is None:
        return event.type == "final" and sessions.end(workflow)
    session = workflow.sessions.get(scoped(workflow.tenant, event.session))
    if session is None:
        return False
    match event.type:
        case "step.start" | "step.end":
            session.step = identifier(event.step) or session.step
            return session.step is not None
        case "tool.start":
            tool = identifier(event.tool)
            return tool is not None and sessions.tool_started(session, tool)
        case "tool.end":
            sessions.tool_finished(session)
        case "final":
            sessions.end_session(session)
    return True
