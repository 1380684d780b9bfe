"""Teams of agents that keep their messages: which one the code that runs is part of."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from saga.adapters.identity import Identity
from saga.adapters.silence import silent


class Groups:
    """A team is a workflow, and so is an agent that works alone; each agent is a session."""

    def __init__(self, name: str) -> None:
        self._inside: ContextVar[str | None] = ContextVar(name, default=None)
        self._ids: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def around(self, stream: Any) -> Any:
        """The method in which a team does its work, with all that it begins being the team's. A
        team in a team works for that."""

        @functools.wraps(stream)
        async def hooked(team: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            outer = self._inside.get()
            self._inside.set(outer or silent(self._id)(team))
            try:
                async for message in stream(team, *args, **kwargs):
                    yield message
            finally:
                self._inside.set(outer)

        return hooked

    def identity(self, agent: Any) -> Identity:
        workflow = self._inside.get() or self._id(agent)
        name = str(agent.name)
        return Identity(workflow=workflow, session=f"{workflow}/{name}", agent=name, step=name)

    def _id(self, of: Any) -> str:
        name = getattr(of, "name", None) or type(of).__name__
        return self._ids.setdefault(of, f"{name}-{uuid4().hex}")
