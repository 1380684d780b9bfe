"""The scheduler's state: requests, sessions, workflows, tenants, engines. States are tables.

Everything here is plain data. ``Scheduler`` is the only writer; policies see the same objects
through the read-only Protocols of ``policy``.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum

from saga.core.errors import LifecycleError
from saga.core.graph import RemainingWork


class RequestState(StrEnum):
    QUEUED = "queued"
    """Held by the scheduler: for admission, for an engine, or for room on one."""
    DISPATCHED = "dispatched"
    """Sent to an engine and not yet in its batch."""
    RUNNING = "running"
    FINISHED = "finished"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    FAILED = "failed"


REQUEST_MOVES: dict[RequestState, frozenset[RequestState]] = {
    RequestState.QUEUED: frozenset(
        {RequestState.DISPATCHED, RequestState.REJECTED, RequestState.CANCELLED}
    ),
    RequestState.DISPATCHED: frozenset(
        {RequestState.RUNNING, RequestState.QUEUED, RequestState.CANCELLED, RequestState.FAILED}
    ),
    RequestState.RUNNING: frozenset(
        {
            RequestState.DISPATCHED,
            RequestState.QUEUED,
            RequestState.FINISHED,
            RequestState.CANCELLED,
            RequestState.FAILED,
        }
    ),
    RequestState.FINISHED: frozenset(),
    RequestState.REJECTED: frozenset(),
    RequestState.CANCELLED: frozenset(),
    RequestState.FAILED: frozenset(),
}
"""Legal moves. DISPATCHED -> QUEUED and RUNNING -> QUEUED: the engine was lost or gave it back;
RUNNING -> DISPATCHED: preempted."""


class SessionState(StrEnum):
    WAITING = "waiting"
    REASONING = "reasoning"
    ACTING = "acting"
    DONE = "done"


SESSION_MOVES: dict[SessionState, frozenset[SessionState]] = {
    SessionState.WAITING: frozenset(
        {SessionState.REASONING, SessionState.ACTING, SessionState.DONE}
    ),
    SessionState.REASONING: frozenset(
        {SessionState.ACTING, SessionState.WAITING, SessionState.DONE}
    ),
    SessionState.ACTING: frozenset({SessionState.WAITING, SessionState.DONE}),
    SessionState.DONE: frozenset(),
}
"""Legal moves. WAITING -> ACTING: its queued request was rejected or cancelled."""


@dataclass(slots=True, kw_only=True)
class Tenant:
    id: str
    weight: float = 1.0
    workflows: set[str] = field(default_factory=set)
    service: float = 0.0
    """Charged so far, at dispatch by forecast and corrected when a request ends: GPU time in
    microseconds, unless the fairness policy counts something else."""
    num_queued: int = 0
    committed_tokens: int = 0
    """Working set: contexts of its unfinished sessions, with expected growth."""
    urgency: float = 0.0
    """Sum over its workflows. This and its share are written by ``fairness`` only."""
    share: float = 1.0
    place_us: float = 0.0
    """What its workflows waited for admission lately, for each place from the front."""


@dataclass(slots=True, kw_only=True)
class Workflow:
    id: str
    tenant: Tenant
    agent_type: str
    submitted: int
    ranked_at: int
    """By what age it is ranked: since it was submitted, or last gave way to others."""
    deadline: int | None = None
    mean_steps: float | None = None
    priority: float = 1.0
    """How much sooner it should end than others of its tenant that are like it."""
    begun: int | None = None
    """When its first request arrived."""
    refusal: str = ""
    """Why its deadline cannot be met, as was found then; empty: it can, or nobody says so."""
    last_step: int = 0
    """When a step of it last ended."""
    sessions: dict[str, Session] = field(default_factory=dict)
    service_us: float = 0.0
    """GPU time attained."""
    kv_us: float = 0.0
    """KV memory-time held so far: the part of an engine's KV memory, times how long."""
    expected_us: float = 0.0
    """What it was charged when it was admitted."""
    charged_us: float | None = None
    """The same, or what it has taken if that is more; None: it was not charged."""
    share: float = 1.0
    """Its tenant's when it was charged."""
    gap_us: int = 0
    """Return times of the sessions summed up."""
    num_steps: int = 0
    remaining: RemainingWork = field(default_factory=RemainingWork)
    """What its agent type's graph expects from now on, as of its last step."""
    urgency: float = 0.0
    urgency_at: int = 0
    """When it was last asked for."""
    score: float = 0.0
    """What an ordering policy that scores keeps with it."""
    score_at: int = -1
    """When that was given; -1: never."""

    @property
    def cost_us(self) -> float:
        """The dominant of the two resources that it took."""
        return max(self.service_us, self.kv_us)


@dataclass(slots=True, kw_only=True)
class Session:
    id: str
    workflow: Workflow
    parent: str | None = None
    state: SessionState = SessionState.ACTING
    admitted: bool = False
    """Whether it may use memory; otherwise its requests wait."""
    admitted_at: int = 0
    """Since when."""
    home: Engine | None = None
    """The engine that last accepted one of its requests; its KV is there if anywhere."""
    assigned: Engine | None = None
    """Where its KV is or will be: whose working set it counts in."""
    committed_tokens: int = 0
    """What it counts there."""
    growth_tokens: int = 0
    """What its context is expected to grow by, counted there as well."""
    resident_tokens: int = 0
    """KV tokens on ``home``, as far as the scheduler was told."""
    resident_since: int = 0
    """Until when these were counted as memory-time."""
    context_tokens: int = 0
    """Prompt and output of its last step, or the prompt of the one under way."""
    num_steps: int = 0
    tool: str | None = None
    acting_since: int = 0
    returned: bool = False
    """Whether a request has come since its last step."""
    retained: bool = False
    """Whether the engine was asked to retain its KV and the session has not run since."""
    num_prefetches: int = 0
    """Prefetches asked for in the current gap."""
    requests: dict[str, Request] = field(default_factory=dict)
    """Its unfinished requests."""

    def move(self, state: SessionState) -> None:
        if state is self.state:
            return
        if state not in SESSION_MOVES[self.state]:
            raise LifecycleError(f"session {self.id!r}: {self.state} -> {state} is not a move")
        self.state = state


@dataclass(slots=True, kw_only=True)
class Request:
    id: str
    session: Session
    arrived: int
    prompt_tokens: int
    expected_output_tokens: int
    new_tokens: int = 0
    """Prompt tokens beyond what the session's last step left."""
    state: RequestState = RequestState.QUEUED
    place: int = 1
    """How far from the front it was, 1 at the front, when it began to wait for admission."""
    pinned: str | None = None
    """The only engine that can serve it."""
    avoid: set[str] = field(default_factory=set)
    """Engines that have failed to serve it."""
    engine: Engine | None = None
    """Whose queue it is in, or where it was sent."""
    dispatched: int | None = None
    started: int | None = None
    cached_tokens: int = 0
    charged: float = 0.0
    """What its tenant was charged at dispatch, replaced by the real one at the end."""
    share: float = 1.0
    """Its tenant's when it was charged."""
    gave_way_to: Request | None = None
    """Who gets the memory that its session had."""
    move_kv: bool = False
    """Whether its session's KV should follow it to ``engine``."""
    reason: str = ""
    """Why it waits or why it went where it is."""

    def move(self, state: RequestState) -> None:
        if state not in REQUEST_MOVES[self.state]:
            raise LifecycleError(f"request {self.id!r}: {self.state} -> {state} is not a move")
        self.state = state


@dataclass(slots=True, kw_only=True)
class Engine:
    id: str
    kv_capacity_tokens: int
    max_num_seqs: int
    prefill_us_per_token: float
    decode_us_per_token: float
    retains: bool = True
    prefetches: bool = True
    shared_kv: str | None = "cluster"
    draining: bool = False
    num_waiting: int = 0
    """Dispatched and not started, counted by the scheduler itself."""
    num_running: int = 0
    num_queued: int = 0
    """In the scheduler's queue for this engine."""
    committed_tokens: int = 0
    """Working set: context of every unfinished session assigned here."""
    growth_tokens: int = 0
    """What these are expected to grow by."""
    sessions: dict[str, Session] = field(default_factory=dict)
    """Unfinished sessions assigned here."""
    resident_tokens: int = 0
    """KV here of unfinished sessions, as far as the scheduler was told."""
    turns: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=1024))
    """When sessions gave way to waiting ones, and the GPU time of computing their context again."""
    idle_since: int | None = 0
    """Since when it has neither queued nor dispatched work; None while it has."""
    preempt_checked: int = -1
    """Epoch in which the fairness policy was last asked for a preemption here."""
    kv_used_fraction: float | None = None
    """The engine's own last word, if it reports."""
    reported: int = 0
    """When that was true."""
    requests: dict[str, Request] = field(default_factory=dict)
    """Dispatched or running here."""
    running: dict[str, Request] = field(default_factory=dict)
    """Those in its batch, the one that started first first."""

    @property
    def num_sessions(self) -> int:
        return len(self.sessions)

    @property
    def memory_pressure(self) -> float:
        """Share of the KV memory that unfinished sessions occupy, 0 to 1."""
        return min(1.0, self.resident_tokens / self.kv_capacity_tokens)

    def cost_us(self, uncached_tokens: int, output_tokens: int) -> float:
        """GPU time of a request on this engine."""
        return (
            uncached_tokens * self.prefill_us_per_token + output_tokens * self.decode_us_per_token
        )


@dataclass(slots=True, kw_only=True)
class ClusterState:
    now: int = 0
    engines: dict[str, Engine] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    """Those with unfinished workflows."""
    total_weight: float = 0.0
    """Of these."""
    workflows: dict[str, Workflow] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    num_arrived: int = 0
    num_ended: Counter[RequestState] = field(default_factory=Counter)
    """By final state."""
    num_epochs: int = 0
    num_steals: int = 0
    num_pauses: int = 0
    """Times that a session back from its tool had to wait for memory."""

    @property
    def open_engines(self) -> list[Engine]:
        """Engines that may be given work."""
        return [engine for engine in self.engines.values() if not engine.draining]
