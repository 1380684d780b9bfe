"""AutoGen AgentChat: no line of the application.

A team is a workflow, as is an agent that is run alone. Each agent is a session: it keeps its
messages over all its turns.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any
from uuid import uuid4

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import BaseGroupChat
from autogen_core.tools import BaseTool

from saga.adapters.groups import Groups
from saga.adapters.identity import current_step
from saga.adapters.runs import Runs
from saga.adapters.silence import Undo, silent


class Hooks:
    """Around the methods in which agents and tools do their work."""

    def __init__(self, runs: Runs[str] | None = None) -> None:
        self._runs: Runs[str] = runs or Runs()
        self.groups = Groups("saga_autogen_team")

    def agent(self, on_messages_stream: Any) -> Any:
        @functools.wraps(on_messages_stream)
        async def hooked(agent: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            key = uuid4().hex
            self._begin(key, agent)
            try:
                async for message in on_messages_stream(agent, *args, **kwargs):
                    yield message
            finally:
                self._end(key)

        return hooked

    def tool(self, run_json: Any) -> Any:
        @functools.wraps(run_json)
        async def hooked(tool: Any, *args: Any, **kwargs: Any) -> Any:
            key = uuid4().hex
            self._begin_tool(key, tool)
            try:
                return await run_json(tool, *args, **kwargs)
            finally:
                self._end_tool(key)

        return hooked

    @silent
    def _begin(self, key: str, agent: Any) -> None:
        identity = self.groups.identity(agent)
        self._runs.begin(key, identity.session, identity)

    @silent
    def _end(self, key: str) -> None:
        self._runs.end(key)

    @silent
    def _begin_tool(self, key: str, tool: Any) -> None:
        step = current_step()
        if step is not None and step.identity.session is not None:
            self._runs.begin_tool(key, step.identity.session, str(tool.name))

    @silent
    def _end_tool(self, key: str) -> None:
        self._runs.end_tool(key)


def install(module: ModuleType) -> Undo:
    hooks = Hooks()
    places = (
        (BaseGroupChat, "run_stream", hooks.groups.around),
        (AssistantAgent, "on_messages_stream", hooks.agent),
        (BaseTool, "run_json", hooks.tool),
    )
    originals = [(kind, name, kind.__dict__[name]) for kind, name, _ in places]
    for kind, name, hook in places:
        setattr(kind, name, hook(kind.__dict__[name]))

    def undo() -> None:
        for kind, name, original in originals:
            setattr(kind, name, original)

    return undo
