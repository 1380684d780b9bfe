"""What happened lately: sessions as they went, workflows that finished, tokens.

The view watches events as they pass and keeps only the latest of everything. What is the case now
is not its business: ``ui.snapshot`` reads that from the gateway.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from saga.core import actions as act
from saga.core import events as ev
from saga.core.model import ClusterState, Session, SessionState
from saga.gateway.sessions import LiveSession

MAX_FOLLOWED = 200
"""Sessions whose states are remembered: those that changed last."""
MAX_SPANS = 96
"""States remembered of each, the latest."""
MAX_NOTE = 160
MAX_REQUESTS = 16_384
"""Requests under way whose session is remembered; of further ones the end is not seen."""
MAX_FINISHED = 1_000
MAX_ANSWERS = 4_096
NUM_LANES = 40
WINDOW_US = 120_000_000
"""A session in a tool for longer than this is not shown; one that waits or runs always is."""
RECENT_US = 60_000_000
"""What rates are taken over."""

MAX_MARKS = 8_192
"""Changes of sessions that nobody has asked for yet; of further ones the oldest are forgotten."""

Span = tuple[int, SessionState, str | None, str]
"""Since when, the state, the engine that runs it or has its KV, and a note: why it waits or runs
there, or the tool."""


class _Mark(NamedTuple):
    """A session is in a state from then on. DONE without a session: all of the workflow are."""

    at: int
    session: str | None
    workflow: str
    agent_type: str
    parent: str | None
    state: SessionState
    engine: str | None
    note: str


@dataclass(slots=True, eq=False)
class _Lane:
    """One session as it went; all ids are scoped by the tenant."""

    session: str
    workflow: str
    agent_type: str
    parent: str | None
    opened: int
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=MAX_SPANS))


@dataclass(slots=True, eq=False)
class _Work:
    """A workflow that is not over."""

    begun: int
    answered: int | None = None
    """When its last answer so far was complete."""


class _Answer(NamedTuple):
    at: int
    tenant: str
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int


class LiveView:
    """Is told every event and what followed, and puts it together only when somebody asks, since
    the first happens thousands of times a second. Bounded memory. ``sessions`` knows how many
    prompt tokens engines counted."""

    def __init__(
        self,
        state: ClusterState,
        sessions: Mapping[str, LiveSession],
        *,
        completed: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._completed = completed
        self._state = state
        self._sessions = sessions
        self._marks: deque[_Mark] = deque(maxlen=MAX_MARKS)
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        """As of the marks that were read. The one that changed last is last."""
        self._works: dict[str, _Work] = {}
        self._session_of: dict[str, str] = {}
        """By request under way. A request that ends with its session leaves without a word."""
        self._finished: deque[tuple[str, int]] = deque(maxlen=MAX_FINISHED)
        """Tenant and TCT of workflows that had an answer."""
        self._answers: deque[_Answer] = deque(maxlen=MAX_ANSWERS)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ev.RequestArrived: self._arrived,
            ev.RequestFinished: self._answered,
            ev.RequestFailed: self._failed,
            ev.RequestCancelled: self._cancelled,
            ev.SessionClosed: self._closed,
            ev.WorkflowDone: self._done,
            ev.EngineDown: self._engine_lost,
        }

    def note(self, event: ev.Event, actions: Iterable[act.Action]) -> None:
        """``event`` was handled; the state is as it is after it."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        for action in actions:
            if type(action) is act.Dispatch:
                session = self._state.requests[action.request].session
                self._mark(event.at, session, action.reason, action.engine)
            elif type(action) is act.Reject:
                self._ended(event.at, action.request, action.reason)

    # ---- what happened

    def _arrived(self, event: ev.RequestArrived) -> None:
        session = self._state.sessions[event.session]
        if session.workflow.id not in self._works:
            self._works[session.workflow.id] = _Work(event.at)
        self._session_of[event.request] = event.session
        if len(self._session_of) > MAX_REQUESTS:
            del self._session_of[next(iter(self._session_of))]
        request = session.requests.get(event.request)
        if request is not None:
            self._mark(event.at, session, request.reason)

    def _answered(self, event: ev.RequestFinished) -> None:
        session = self._ended(event.at, event.request, event.tool or "")
        if session is None:
            return
        work, live = self._works.get(session.workflow.id), self._sessions.get(session.id)
        if work is not None:
            work.answered = event.at
        prompt = live.prompt_tokens if live is not None else 0
        tenant = _tenant(session.id)
        self._answers.append(
            _Answer(event.at, tenant, prompt, event.cached_tokens, event.output_tokens)
        )

    def _failed(self, event: ev.RequestFailed) -> None:
        if not event.retry:
            self._ended(event.at, event.request, event.reason)
            return
        request = self._state.requests.get(event.request)
        if request is not None:
            self._mark(event.at, request.session, event.reason)

    def _cancelled(self, event: ev.RequestCancelled) -> None:
        self._ended(event.at, event.request, "its request was cancelled")

    def _closed(self, event: ev.SessionClosed) -> None:
        self._marks.append(
            _Mark(event.at, event.session, "", "", None, SessionState.DONE, None, "")
        )

    def _done(self, event: ev.WorkflowDone) -> None:
        work = self._works.pop(event.workflow, None)
        if work is None:
            return
        self._marks.append(
            _Mark(event.at, None, event.workflow, "", None, SessionState.DONE, None, "")
        )
        if work.answered is not None:
            self._finished.append((_tenant(event.workflow), work.answered - work.begun))
            self._completed((work.answered - work.begun) / 1e6)

    def _engine_lost(self, event: ev.EngineDown) -> None:
        self._catch_up()
        for lane in list(self._lanes.values()):
            session = self._state.sessions.get(lane.session)
            if session is not None and lane.spans[-1][2] == event.engine:
                self._mark(event.at, session, f"engine {event.engine} was lost")

    def _ended(self, at: int, request: str, note: str) -> Session | None:
        """A request is over; its session, if that is known."""
        name = self._session_of.pop(request, None)
        session = self._state.sessions.get(name) if name is not None else None
        if session is not None:
            self._mark(at, session, note)
        return session

    def _mark(self, at: int, session: Session, note: str, sent_to: str | None = None) -> None:
        """The session is in its state from now on, if it was not before."""
        engine = sent_to
        if engine is None:
            if session.state is SessionState.REASONING:
                return  # another of its requests goes on
            engine = session.home.id if session.home is not None else None
        workflow = session.workflow
        self._marks.append(
            _Mark(at, session.id, workflow.id, workflow.agent_type, session.parent, session.state,
                  engine, note[:MAX_NOTE])
        )  # fmt: skip

    # ---- lanes

    def _catch_up(self) -> None:
        while self._marks:
            mark = self._marks.popleft()
            if mark.session is None:
                for lane in list(self._lanes.values()):
                    if lane.workflow == mark.workflow:
                        self._end_lane(mark.at, lane)
            elif mark.state is SessionState.DONE:
                known = self._lanes.get(mark.session)
                if known is not None:
                    self._end_lane(mark.at, known)
            else:
                self._enter(mark, mark.session)

    def _enter(self, mark: _Mark, session: str) -> None:
        lane = self._lanes.get(session)
        if lane is None or lane.spans[-1][1] is SessionState.DONE:
            lane = self._follow(mark, session)
        if lane.spans and lane.spans[-1][1] is mark.state and lane.spans[-1][2] == mark.engine:
            return
        lane.spans.append((mark.at, mark.state, mark.engine, mark.note))
        self._lanes.move_to_end(session)

    def _follow(self, mark: _Mark, session: str) -> _Lane:
        lane = _Lane(session, mark.workflow, mark.agent_type, mark.parent, mark.at)
        before = self._lanes.get(session)
        if before is not None:  # it was closed and came back after all
            lane.spans = before.spans
        self._lanes[session] = lane
        if len(self._lanes) > MAX_FOLLOWED:
            self._lanes.popitem(last=False)
        return lane

    def _end_lane(self, at: int, lane: _Lane) -> None:
        if lane.spans[-1][1] is not SessionState.DONE:
            lane.spans.append((at, SessionState.DONE, None, ""))
            self._lanes.move_to_end(lane.session)

    # ---- what is told; ``owner`` None: everybody's

    def lanes(self, owner: str | None, now: int) -> list[dict[str, Any]]:
        """The sessions that did something lately, those under way first."""
        self._catch_up()
        chosen = [
            lane
            for lane in self._lanes.values()
            if is_of(owner, _tenant(lane.session)) and _is_lively(lane, now)
        ]
        return [_told_lane(lane) for lane in sorted(chosen, key=_rank)[:NUM_LANES]]

    def completion(self, owner: str | None) -> dict[str, Any]:
        """TCT of the last workflows that finished, in seconds."""
        times = [us / 1e6 for tenant, us in self._finished if is_of(owner, tenant)]
        if not times:
            return {"workflows": 0, "mean_s": None, "p50_s": None, "p95_s": None}
        two = times if len(times) > 1 else times * 2  # fewer have no quantiles before Python 3.13
        cuts = statistics.quantiles(two, n=20, method="inclusive")
        return {
            "workflows": len(times),
            "mean_s": statistics.fmean(times),
            "p50_s": cuts[9],
            "p95_s": cuts[18],
        }

    def rates(self, owner: str | None, now: int) -> dict[str, Any]:
        """Tokens of the last minute's answers, as engines counted them."""
        full = len(self._answers) == MAX_ANSWERS
        begin = max(now - RECENT_US, self._answers[0].at if full else 0)
        recent = [a for a in self._answers if a.at >= begin and is_of(owner, a.tenant)]
        told = [a for a in recent if a.cached_tokens is not None and a.prompt_tokens]
        looked_up = sum(a.prompt_tokens for a in told)
        seconds = max(1e-6, (now - begin) / 1e6)
        return {
            "seconds": seconds,
            "answers": len(recent),
            "prompt_tokens_per_s": sum(a.prompt_tokens for a in recent) / seconds,
            "output_tokens_per_s": sum(a.output_tokens for a in recent) / seconds,
            "hit_rate": sum(a.cached_tokens or 0 for a in told) / looked_up if looked_up else None,
        }


def _told_lane(lane: _Lane) -> dict[str, Any]:
    return {
        "session": _bare(lane.session),
        "workflow": _bare(lane.workflow),
        "tenant": _tenant(lane.session),
        "agent_type": _bare(lane.agent_type),
        "parent": _bare(lane.parent) if lane.parent is not None else None,
        "opened_us": lane.opened,
        "spans": list(lane.spans),
    }


def _rank(lane: _Lane) -> tuple[int, int]:
    """The newest of those that have run, then the first of those that only waited, then the newest
    that are over: an order in which few change places from one picture to the next."""
    state = lane.spans[-1][1]
    if state is SessionState.DONE:
        return 2, -lane.opened
    if state is SessionState.WAITING and len(lane.spans) == 1:
        return 1, lane.opened
    return 0, -lane.opened


def _is_lively(lane: _Lane, now: int) -> bool:
    since, state, _, _ = lane.spans[-1]
    at_work = state in (SessionState.WAITING, SessionState.REASONING)
    return at_work or since >= now - WINDOW_US


def is_of(owner: str | None, tenant: str) -> bool:
    """Whether ``owner`` may see what is the tenant's; None may see everything."""
    return owner is None or owner == tenant


def _tenant(name: str) -> str:
    return name.partition("/")[0]


def _bare(name: str) -> str:
    return name.partition("/")[2]
