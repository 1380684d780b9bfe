"""What the hooks have in common: steps that begin and end, and tools that run between them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import replace
from typing import Final, Generic, TypeVar

from saga.adapters.announce import Announcer, announcer
from saga.adapters.identity import Identity, Step, begin_step, end_step

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
MAX_KEPT: Final = 10_000


class Kept(Generic[K, V]):
    """The last ``size`` values that were put; threads may share it."""

    def __init__(self, size: int = MAX_KEPT) -> None:
        self._values: OrderedDict[K, V] = OrderedDict()
        self._size = size
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._size:
                self._values.popitem(last=False)

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def pop(self, key: K) -> V | None:
        with self._lock:
            return self._values.pop(key, None)


class _Tool:
    """A tool call, the step that made it, and the tool call that this is part of."""

    __slots__ = ("name", "outer", "runs", "step")

    def __init__(self, name: str, step: Step, outer: _Tool | None) -> None:
        self.name = name
        self.step = step
        self.outer = outer
        self.runs = True


_inside: ContextVar[_Tool | None] = ContextVar("saga_tool", default=None)


class Runs(Generic[K]):
    """Requests and tool calls under way, by the name that a framework gives to each.

    ``place`` is where in the program a session works (a graph, a run of an agent): the tools that
    run there are called by the last step made there. What a tool asks a model is part of the
    workflow that called it, in whichever framework either is written.
    """

    def __init__(self, announcer: Announcer = announcer) -> None:
        self._announcer = announcer
        self._before: Kept[K, tuple[Step, Step | None]] = Kept()
        self._tools: Kept[K, _Tool] = Kept()
        self._last: Kept[Hashable, Step] = Kept()
        self._of_workflow: Kept[str | None, Step] = Kept()
        self._announced: Kept[str, str] = Kept()
        """The step last told, by session."""

    def begin(self, key: K, place: Hashable, identity: Identity) -> None:
        """Requests of this context are this step's until ``end``."""
        step, before = begin_step(_called(identity))
        self._before.put(key, (step, before))
        self._last.put(place, step)
        self._of_workflow.put(identity.workflow, step)

    def end(self, key: K) -> None:
        """The step has its answer, or failed."""
        known = self._before.pop(key)
        if known is None:
            return
        step, before = known
        end_step(before)
        name, answered = step.identity.step, step.answered
        if name and answered and self._announced.get(answered.session) != name:
            self._announced.put(answered.session, name)
            self._tell(step, "step.end", step=name)

    def begin_tool(self, key: K, place: Hashable, tool: str) -> None:
        step = self._last.get(place)
        if step is not None:
            called = _Tool(tool, step, _running())
            _inside.set(called)
            self._tools.put(key, called)
            self._tell(step, "tool.start", tool=tool)

    def end_tool(self, key: K) -> None:
        known = self._tools.pop(key)
        if known is not None:
            known.runs = False  # the variable may be another context's to set back
            self._tell(known.step, "tool.end", tool=known.name)

    def finish(self, workflow: str) -> None:
        """No more steps of it will come. One that is part of another workflow is not its end."""
        step = self._of_workflow.pop(workflow)
        if step is not None and step.identity.workflow == workflow:
            self._announcer.tell(step.answered, step.identity.workflow, "final")

    def session(self, place: Hashable) -> str | None:
        """Of the last step made here."""
        step = self._last.get(place)
        return None if step is None else step.identity.session

    def _tell(self, step: Step, kind: str, /, **what: str) -> None:
        answered = step.answered
        if answered is not None:
            workflow = step.identity.workflow
            self._announcer.tell(answered, workflow, kind, session=answered.session, **what)


def _running() -> _Tool | None:
    """The innermost tool that this code is part of."""
    tool = _inside.get()
    while tool is not None and not tool.runs:
        tool = tool.outer
    return tool


def _called(identity: Identity) -> Identity:
    """The identity, as a part of the workflow whose tool makes the request."""
    tool = _running()
    if tool is None or identity.parent is not None:
        return identity
    above = tool.step.identity
    if above.workflow is None or above.session in (None, identity.session):
        return identity
    return replace(identity, workflow=above.workflow, parent=above.session)
