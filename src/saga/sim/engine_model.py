"""What the simulator asks of an engine, so that there can be several models of one.

``light_engine`` makes the engines of ``saga.sim.engine``; ``saga.engine.vllm.simulated`` has
ones that are scheduled by vLLM itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from saga.core.policy import Policies
from saga.sim.counts import Counts
from saga.sim.engine import EngineLimits, Job, Moment, SimEngine
from saga.sim.hardware import EngineSpec
from saga.sim.kv_cache import KVCache, Occupancy
from saga.sim.latency import StepTime
from saga.sim.lineage import Content, Span


class EngineModel(Protocol):
    """One engine in virtual time: call it, then ``wake`` it at ``next_event_us``.

    It tells its host about jobs (``Moment``) from ``wake`` only. Times are microseconds.
    """

    name: str
    up_since: int
    counts: Counts
    next_event_us: int | None
    retains: bool
    """Whether it can be asked to keep a session's KV."""
    prefetches: bool
    """Whether it can be asked to make a session's KV ready."""
    adopts: bool
    """Whether a session's KV can be moved to it."""

    @property
    def capacity_tokens(self) -> int: ...

    @property
    def num_jobs(self) -> int:
        """Requests that wait or run."""
        ...

    def wake(self, now: int) -> None:
        """Finishes what is over at ``now`` and starts what can start."""
        ...

    # ---- requests

    def submit(self, job: Job, now: int) -> None:
        """It joins the first step that starts after ``now``; one that cannot fit is refused."""
        ...

    def cancel(self, job_id: str, now: int) -> None: ...

    def preempt(self, job_id: str, now: int) -> None:
        """The running request goes back behind all that wait, at the end of the step."""
        ...

    def prefetch(self, job: Job, now: int) -> None: ...

    @property
    def batch(self) -> dict[str, int]:
        """Tokens that each request computes in the step under way, by its id."""
        ...

    # ---- idle KV

    def resident(self, path: Sequence[Span], tokens: int, now: int) -> int:
        """How many of the path's first ``tokens`` have their KV here, in whole blocks."""
        ...

    def retain(self, session: str, until: int, score: float, now: int) -> None: ...

    def release(self, session: str, now: int) -> None: ...

    def drop(self, session: str, now: int) -> None: ...

    def offload(self, session: str, path: Sequence[Span], tokens: int, now: int) -> None: ...

    def adopt(self, path: Sequence[Span], tokens: int, now: int) -> None: ...

    def liveness_changed(self, contents: Iterable[Content], now: int) -> None:
        """Who may still ask for these contents is now another."""
        ...

    def used_up(self) -> tuple[str, int] | None:
        """A session whose idle KV was evicted since this was last asked, and the blocks left."""
        ...

    # ---- the record

    def reset_counts(self, now: int) -> None:
        """The measured window begins."""
        ...

    def settle(self, now: int) -> Occupancy:
        """Occupancy of the window up to ``now``; all steps that are over are counted."""
        ...

    def check(self) -> None:
        """Raises if a law is broken."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """What an engine is made from."""

    name: str
    spec: EngineSpec
    limits: EngineLimits
    step_time: StepTime
    policies: Policies
    tell: Callable[[Moment, Job], None]
    up_since: int = 0


MakeEngine = Callable[[EngineSetup], EngineModel]
"""Raises ValueError if such an engine cannot do what the policies want."""


def light_engine(setup: EngineSetup) -> SimEngine:
    """The simulator's own engine, which does all that policies can want."""
    spec, policies = setup.spec, setup.policies
    stores = policies.offload is not None and policies.offload.store
    cache = KVCache(
        spec.num_blocks,
        policies.eviction,
        host_capacity=spec.host_capacity_tokens // spec.block_size if stores else 0,
        now=setup.up_since,
    )
    return SimEngine(
        setup.name,
        cache=cache,
        step_time=setup.step_time,
        limits=setup.limits,
        tell=setup.tell,
        reload_us=spec.reload_us,
        up_since=setup.up_since,
    )
