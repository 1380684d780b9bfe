"""CrewAI: no line of the application.

A crew is a workflow until it is done; each task that an agent works on is a session, since its
messages begin anew. Its own hooks are used: handlers of its event bus run in other threads.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any, Final

from crewai import hooks
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.crew_events import CrewKickoffCompletedEvent, CrewKickoffFailedEvent

from saga.adapters.identity import Identity
from saga.adapters.runs import Runs
from saga.adapters.silence import Undo, silent

OVER: Final = (CrewKickoffCompletedEvent, CrewKickoffFailedEvent)
Key = tuple[int, str, str]
"""Thread, session and tool: one thing at a time is done by each."""


class Hooks:
    def __init__(self, runs: Runs[Key] | None = None) -> None:
        self._runs: Runs[Key] = runs or Runs()

    @silent
    def before_request(self, context: Any) -> None:
        identity = _identity(context)
        if identity is not None and identity.session is not None:
            self._runs.begin(_key(identity, ""), identity.session, identity)

    @silent
    def after_request(self, context: Any) -> None:
        identity = _identity(context)
        if identity is not None:
            self._runs.end(_key(identity, ""))

    @silent
    def before_tool(self, context: Any) -> None:
        identity = _identity(context)
        if identity is not None and identity.session is not None:
            tool = str(context.tool_name)
            self._runs.begin_tool(_key(identity, tool), identity.session, tool)

    @silent
    def after_tool(self, context: Any) -> None:
        identity = _identity(context)
        if identity is not None:
            self._runs.end_tool(_key(identity, str(context.tool_name)))

    @silent
    def over(self, crew: Any, event: Any) -> None:
        self._runs.finish(str(crew.id))


def _identity(context: Any) -> Identity | None:
    """None for what belongs to no crew: the gateway finds the session of that itself."""
    crew, agent, task = context.crew, context.agent, context.task
    if crew is None or agent is None:
        return None
    workflow, role = str(crew.id), str(agent.role).strip()
    session = f"{workflow}/{role}"
    if task is not None:
        session = f"{session}/{task.id}"
    step = (task is not None and task.name) or role  # a task's description is its prompt
    return Identity(workflow=workflow, session=session, agent=role, step=step)


def _key(identity: Identity, tool: str) -> Key:
    return threading.get_ident(), str(identity.session), tool


def install(module: ModuleType) -> Undo:
    ours = Hooks()
    hooks.register_before_llm_call_hook(ours.before_request)
    hooks.register_after_llm_call_hook(ours.after_request)
    hooks.register_before_tool_call_hook(ours.before_tool)
    hooks.register_after_tool_call_hook(ours.after_tool)
    for kind in OVER:
        crewai_event_bus.register_handler(kind, ours.over)

    def undo() -> None:
        hooks.unregister_before_llm_call_hook(ours.before_request)
        hooks.unregister_after_llm_call_hook(ours.after_request)
        hooks.unregister_before_tool_call_hook(ours.before_tool)
        hooks.unregister_after_tool_call_hook(ours.after_tool)
        for kind in OVER:
            crewai_event_bus.off(kind, ours.over)

    return undo
