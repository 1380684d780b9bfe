"""AutoGen AgentChat: no line of the application.

A team is a workflow, as is an agent that is run alone. Each agent is a session: it keeps its
messages over all its turns.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final
from uuid import uuid4
from weakref import WeakKeyDictionary

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import BaseGroupChat
from autogen_core.tools import BaseTool

from saga.adapters.identity import Identity, current_step
from saga.adapters.runs import Runs
from saga.adapters.silence import Undo, silent

_team: Final[ContextVar[str | None]] = ContextVar("saga_autogen_team", default=None)


class Hooks:
    """Around the methods in which agents and tools do their work."""

    def __init__(self, runs: Runs[str] | None = None) -> None:
        self._runs: Runs[str] = runs or Runs()
        self._ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        """Of teams and of agents that are run alone."""

    def team(self, run_stream: Any) -> Any:
        @functools.wraps(run_stream)
        async def hooked(team: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            # The runtime's tasks begin inside of this, and so know the team. A team in a team works
            # for that.
            outer = _team.get()
            _team.set(outer or self._id(team))
            try:
                async for message in run_stream(team, *args, **kwargs):
                    yield message
            finally:
                _team.set(outer)

        return hooked

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
        workflow = _team.get() or self._id(agent)
        session = f"{workflow}/{agent.name}"
        identity = Identity(workflow=workflow, session=session, agent=agent.name, step=agent.name)
        self._runs.begin(key, session, identity)

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

    def _id(self, of: Any) -> str:
        return self._ids.setdefault(of, f"{of.name}-{uuid4().hex}")


def install(module: ModuleType) -> Undo:
    hooks = Hooks()
    places = (
        (BaseGroupChat, "run_stream", hooks.team),
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
