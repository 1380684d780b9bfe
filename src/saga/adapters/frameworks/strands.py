"""Strands: no line of the application.

A graph or a swarm is a workflow, as is an agent that is run alone. Each agent is a session: it
keeps its messages over all its turns.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from strands.agent.agent import Agent
from strands.hooks import (
    AfterModelCallEvent,
    AfterToolCallEvent,
    BeforeModelCallEvent,
    BeforeToolCallEvent,
)
from strands.multiagent.graph import Graph
from strands.multiagent.swarm import Swarm

from saga.adapters.groups import Groups
from saga.adapters.runs import Runs
from saga.adapters.silence import Undo, silent


class Hooks:
    """What an agent tells of itself; each of its methods is called in the agent's own context."""

    def __init__(self, runs: Runs[str] | None = None) -> None:
        self._runs: Runs[str] = runs or Runs()
        self.groups = Groups("saga_strands_group")

    @silent
    def join(self, agent: Any) -> None:
        agent.hooks.add_callback(BeforeModelCallEvent, self.before_request)
        agent.hooks.add_callback(AfterModelCallEvent, self.after_request)
        agent.hooks.add_callback(BeforeToolCallEvent, self.before_tool)
        agent.hooks.add_callback(AfterToolCallEvent, self.after_tool)

    @silent
    def before_request(self, event: Any) -> None:
        identity = self.groups.identity(event.agent)
        self._runs.begin(self._key(event), identity.session, identity)

    @silent
    def after_request(self, event: Any) -> None:
        self._runs.end(self._key(event))

    @silent
    def before_tool(self, event: Any) -> None:
        session = self.groups.identity(event.agent).session
        self._runs.begin_tool(self._key(event), session, str(event.tool_use["name"]))

    @silent
    def after_tool(self, event: Any) -> None:
        self._runs.end_tool(self._key(event))

    def _key(self, event: Any) -> str:
        call = getattr(event, "tool_use", None) or {"toolUseId": ""}
        return f"{id(event.agent)} {call['toolUseId']}"


def install(module: ModuleType) -> Undo:
    hooks = Hooks()
    begin = Agent.__init__

    @functools.wraps(begin)
    def joined(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        hooks.join(self)

    streams = [(kind, kind.stream_async) for kind in (Graph, Swarm)]
    Agent.__init__ = joined
    for kind, stream in streams:
        kind.stream_async = hooks.groups.around(stream)

    def undo() -> None:
        Agent.__init__ = begin
        for kind, stream in streams:
            kind.stream_async = stream

    return undo
