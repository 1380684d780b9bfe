"""Fakes for tests of policies: a cluster that obeys at once, and pictures of state to compare.

``FakeCluster`` drives the real scheduler without engines, clock or chance. Its engines start what
they are sent, as long as they have room, and finish a request when the test says so.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, assert_never

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.policy import Policies
from saga.core.scheduler import Scheduler


@dataclass(slots=True)
class FakeEngine:
    """What one engine holds, by request id."""

    max_num_seqs: int
    draining: bool = False
    running: list[str] = field(default_factory=list)
    """Oldest first."""
    turns: list[tuple[bool, int, int, str]] = field(default_factory=list)
    """What waits, in the order in which it will start: by priority, preempted ones last."""

    @property
    def waiting(self) -> list[str]:
        return [turn[-1] for turn in self.turns]

    def drop(self, request: str) -> None:
        """The request leaves the engine; ValueError if it is not there."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            del self.turns[self.waiting.index(request)]
        else:
            raise ValueError(f"request {request!r} is not on the engine: {self}")


class FakeCluster:
    """A host that executes the scheduler's actions immediately and deterministically.

    ``policies`` is a bundle or the name of a preset. The cluster starts with ``engines`` engines,
    ``engine-0`` and so on. Without ``auto_start`` requests wait on their engine for ``start``. With
    ``check`` the laws are checked after every event. An action that no engine could obey raises
    ValueError.
    """

    def __init__(
        self,
        policies: Policies | str,
        *,
        engines: int = 1,
        kv_capacity_tokens: int = 100_000,
        max_num_seqs: int = 8,
        auto_start: bool = True,
        check: bool = True,
    ) -> None:
        if isinstance(policies, str):
            policies = load_preset(policies).policies
        self.scheduler = Scheduler(policies, check=check)
        self.engines: dict[str, FakeEngine] = {}
        self.actions: list[act.Action] = []
        """Everything the scheduler asked for so far."""
        self.now = 0
        self.wake: int | None = None
        """When the scheduler wants a tick."""
        self.auto_start = auto_start
        self._numbers = 0
        for number in range(engines):
            self.engine_up(
                f"engine-{number}",
                kv_capacity_tokens=kv_capacity_tokens,
                max_num_seqs=max_num_seqs,
            )

    # ---- what happens

    def tell(self, event: ev.Event) -> list[act.Action]:
        """Passes the event on and executes what follows, also from what engines answer at once.

        Returns all actions. An event that the scheduler refuses leaves the cluster as it was.
        """
        actions = self._handle(event)
        while self.auto_start and (request := self._next_start()) is not None:
            actions += self._handle(ev.RequestStarted(at=self.now, request=request))
        return actions

    def advance(self, us: int) -> list[act.Action]:
        """Lets time pass, with a tick whenever the scheduler asked for one."""
        end = self.now + us
        actions: list[act.Action] = []
        while self.wake is not None and self.wake <= end:
            at, self.wake = self.wake, None
            actions += self.tell(ev.Tick(at=at))
        self.now = end
        return actions

    def settle(self, *, max_ticks: int = 100) -> None:
        """Finishes what the engines hold, one request after another, until nothing is left.

        While they hold nothing, it waits for at most ``max_ticks`` ticks in a row.
        """
        ticks = 0
        while ticks < max_ticks:
            held = [
                request
                for engine in self.engines.values()
                for request in (*engine.running, *engine.waiting)
            ]
            if held:
                self.finish(held[0])
                ticks = 0
            elif self.wake is not None:
                self.advance(self.wake - self.now)
                ticks += 1
            else:
                return

    # ---- events in brief

    def engine_up(
        self, engine: str, *, kv_capacity_tokens: int = 100_000, max_num_seqs: int = 8
    ) -> list[act.Action]:
        return self.tell(
            ev.EngineUp(
                at=self.now,
                engine=engine,
                kv_capacity_tokens=kv_capacity_tokens,
                max_num_seqs=max_num_seqs,
            )
        )

    def ask(
        self,
        session: str,
        prompt_tokens: int = 1_000,
        *,
        workflow: str | None = None,
        tenant: str = "tenant",
        mean_steps: float | None = None,
    ) -> str:
        """A request of the session, which is opened first if need be; so is its workflow.

        A workflow is named like its session unless told. Returns the request's id.
        """
        state, workflow = self.scheduler.state, workflow or session
        if session not in state.sessions:
            if workflow not in state.workflows:
                self.tell(
                    ev.WorkflowSubmitted(
                        at=self.now, workflow=workflow, tenant=tenant, mean_steps=mean_steps
                    )
                )
            self.tell(ev.SessionOpened(at=self.now, session=session, workflow=workflow))
        self._numbers += 1
        request = f"{session}#{self._numbers}"
        self.tell(
            ev.RequestArrived(
                at=self.now, request=request, session=session, prompt_tokens=prompt_tokens
            )
        )
        return request

    def start(self, request: str, *, cached_tokens: int = 0) -> list[act.Action]:
        return self.tell(
            ev.RequestStarted(at=self.now, request=request, cached_tokens=cached_tokens)
        )

    def finish(
        self, request: str, output_tokens: int = 100, *, tool: str | None = None
    ) -> list[act.Action]:
        return self.tell(
            ev.RequestFinished(at=self.now, request=request, output_tokens=output_tokens, tool=tool)
        )

    # ---- how actions are executed

    def _handle(self, event: ev.Event) -> list[act.Action]:
        actions = self.scheduler.handle(event)
        self.now = max(self.now, event.at)
        self._happened(event)
        for action in actions:
            self._execute(action)
        self.actions += actions
        return actions

    def _happened(self, event: ev.Event) -> None:
        match event:
            case ev.EngineUp():
                engine = self.engines.setdefault(event.engine, FakeEngine(event.max_num_seqs))
                engine.draining = False
            case ev.EngineDown():
                del self.engines[event.engine]
            case ev.EngineDraining():
                self.engines[event.engine].draining = True
            case ev.RequestStarted():
                engine = self._holding(event.request)
                if event.request not in engine.running:
                    engine.drop(event.request)
                    engine.running.append(event.request)
            case ev.RequestFinished() | ev.RequestFailed():
                self._holding(event.request).drop(event.request)

    def _execute(self, action: act.Action) -> None:
        match action:
            case act.Dispatch():
                engine = self.engines.get(action.engine)
                if engine is None or engine.draining:
                    raise ValueError(f"{action}: the engine is not open")
                self._wait(engine, action.request, action.priority, preempted=False)
            case act.Preempt():
                engine = self.engines[action.engine]
                engine.running.remove(action.request)
                self._wait(engine, action.request, 0, preempted=True)
            case act.Cancel():
                self.engines[action.engine].drop(action.request)
            case act.WakeAt():
                self.wake = action.at if self.wake is None else min(self.wake, action.at)
            case (
                act.Reject()
                | act.Retain()
                | act.Release()
                | act.Offload()
                | act.Prefetch()
                | act.Move()
            ):
                pass  # fake engines have no KV; the test looks at ``actions``
            case _:
                assert_never(action)

    def _wait(self, engine: FakeEngine, request: str, priority: int, *, preempted: bool) -> None:
        self._numbers += 1
        insort(engine.turns, (preempted, priority, self._numbers, request))

    def _next_start(self) -> str | None:
        for engine in self.engines.values():
            if engine.turns and len(engine.running) < engine.max_num_seqs:
                return engine.turns[0][-1]
        return None

    def _holding(self, request: str) -> FakeEngine:
        for engine in self.engines.values():
            if request in engine.running or request in engine.waiting:
                return engine
        raise ValueError(f"no engine holds request {request!r}")


def snapshot(root: object) -> list[Any]:
    """Everything that can be reached from ``root``, as plain values that compare.

    Objects are numbered in the order in which they are found, so that cycles and sharing compare
    too. Dictionaries and lists compare in order, code only by its name.
    """
    numbers: dict[int, int] = {}
    found: deque[object] = deque()
    keep: list[object] = []

    def refer(value: object) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        if isinstance(value, type) or callable(value):
            return getattr(value, "__qualname__", type(value).__qualname__)
        if id(value) not in numbers:
            numbers[id(value)] = len(numbers)
            found.append(value)
            keep.append(value)  # its id stays its own
        return ("object", numbers[id(value)])

    picture: list[Any] = [refer(root)]
    while found:
        value = found.popleft()
        picture.append((type(value).__qualname__, _parts(value, refer)))
    return picture


def _parts(value: object, refer: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [(refer(key), refer(item)) for key, item in value.items()]
    if isinstance(value, AbstractSet):
        return sorted(refer(item) for item in value)
    if isinstance(value, (list, tuple, deque)):
        return [refer(item) for item in value]
    names = [
        name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())
    ]  # a class has slots, or a dictionary, or both
    names += list(getattr(value, "__dict__", ()))
    return [(name, refer(getattr(value, name))) for name in names if hasattr(value, name)]
