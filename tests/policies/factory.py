"""Small clusters that are as the test says, to be worked out on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saga.core.graph import GraphStore
from saga.core.loads import MEASURES, Measure
from saga.core.model import Engine, Request, Session, Tenant, Workflow
from saga.core.policy import EngineView, TenantView
from saga.core.return_times import ReturnTimes

SECOND = 1_000_000
"""Microseconds in a second."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A view whose every part is given. Ties between engines go to the first."""

    engines: Sequence[Engine] = ()
    now: int = 0
    num_epochs: int = 0
    num_arrived: int = 0
    queues: Mapping[str, Sequence[Request]] = field(default_factory=dict)
    """By engine, oldest first."""
    sessions: Sequence[Session] = ()
    virtual_time: float = 0.0
    entitled: float = 0.0
    """KV tokens that are any tenant's share."""
    return_times: ReturnTimes = field(default_factory=ReturnTimes)
    graphs: GraphStore = field(default_factory=GraphStore)

    def entitled_tokens(self, tenant: TenantView) -> float:
        return self.entitled

    def load(self, measure: Measure, engine: EngineView) -> float:
        return MEASURES[measure](next(own for own in self.engines if own is engine))

    def least_loaded(self, measure: Measure, salt: str) -> Engine:
        return min(self.engines, key=MEASURES[measure])

    def oldest_queued(self, engine: EngineView) -> Request | None:
        return next(iter(self.queues.get(engine.id, ())), None)


def engine(
    name: str = "engine-0", *, capacity: int = 10_000, seats: int = 10, **now: Any
) -> Engine:
    """Ten seats, so that by the paper's measure a running request weighs 0.05 like a queued one,
    and 10 % of memory does too."""
    sessions = {str(number): session(str(number)) for number in range(now.pop("num_sessions", 0))}
    return Engine(
        id=name,
        sessions=sessions,
        kv_capacity_tokens=capacity,
        max_num_seqs=seats,
        prefill_us_per_token=2.0,
        decode_us_per_token=20.0,
        **now,
    )


def workflow(name: str = "workflow", *, tenant: Tenant | None = None, **now: Any) -> Workflow:
    return Workflow(
        id=name,
        tenant=tenant or Tenant(id="tenant"),
        **{"agent_type": "agent", "submitted": 0, "ranked_at": 0, **now},
    )


def session(name: str = "session", *, of: Workflow | None = None, **now: Any) -> Session:
    return Session(id=name, workflow=of or workflow(name), **now)


def request(
    name: str = "request", *, of: Session | None = None, arrived: int = 0, prompt: int = 1_000
) -> Request:
    return Request(
        id=name,
        session=of or session(name),
        arrived=arrived,
        prompt_tokens=prompt,
        new_tokens=prompt,
        expected_output_tokens=100,
    )


def waiting(count: int, name: str = "request") -> list[Request]:
    """Requests in a queue, oldest first."""
    return [request(f"{name}-{number}", arrived=number) for number in range(count)]


def seen(tool: str | None, *returns_us: int) -> ReturnTimes:
    """Return times of one tool, as they were observed."""
    times = ReturnTimes()
    for value in returns_us:
        times.observe(tool, value)
    return times
