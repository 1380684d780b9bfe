"""What one run leaves behind: the only input of every metric, simulated or live."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Outcome(StrEnum):
    """How a workflow ended; exclusive, and every submitted workflow has exactly one."""

    FINISHED = "finished"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    UNFINISHED = "unfinished"


@dataclass(slots=True, kw_only=True)
class WorkflowRecord:
    """One workflow of one run. Times are integer microseconds on the run's clock.

    For a finished workflow the root session's parts add up to its TCT:
    ``queue + prefill + regenerated + decode + tool + subagents = finished - submitted``.
    """

    id: str
    """Unique in the run, and the same workflow in the runs of a paired seed."""
    tenant: str
    tenant_class: str
    """Class of the tenant for SLO by class, such as ``heavy``."""
    agent_type: str
    outcome: Outcome
    measured: bool
    """False during warm-up: counted in the run, left out of every statistic on workflows."""
    submitted_us: int
    finished_us: int | None
    num_steps: int
    alone_us: int
    """TCT of the same workflow alone on one idle engine, tools included (step-time model)."""
    expected_us: int
    """TCT with all its KV kept, at the fluid model's batch size for load 0.8: the SLO's base."""
    share_us: int = 0
    """TCT alone, with no more of an engine than the tenant's share; 0: not known."""
    queue_us: int = 0
    prefill_us: int = 0
    regenerated_us: int = 0
    decode_us: int = 0
    tool_us: int = 0
    """Gaps of the root session (return time), without the wait for sub-agents."""
    subagents_us: int = 0
    """Time in which the root session waited for its sub-agents, or they outlived it."""
    longest_wait_us: int = 0
    """Longest time any of its requests waited from arrival to its first start, or to its end if it
    never started; the wait for admission is part of it."""

    @property
    def tct_us(self) -> int | None:
        return None if self.finished_us is None else self.finished_us - self.submitted_us

    @property
    def finished_tct_us(self) -> int:
        """TCT of a finished workflow, always positive.

        Raises ValueError when there is none: every statistic on ratios would be meaningless.
        """
        tct_us = self.tct_us
        if tct_us is None or tct_us <= 0:
            raise ValueError(
                f"workflow {self.id!r} is finished with a TCT of {tct_us} us; it must be positive"
            )
        return tct_us


@dataclass(slots=True, kw_only=True)
class EngineUsage:
    """Token-microseconds of KV memory on one engine in the measured window, by their use."""

    engine: str
    capacity_tokens: int
    window_us: int
    """Length of the measured window (engine up)."""
    active: int = 0
    """KV of running requests."""
    waiting: int = 0
    """Idle KV of sessions that will return (in a tool, or queued)."""
    dead: int = 0
    """Idle KV that nobody will ask for again."""
    later_hit: int = 0
    """The part of idle KV whose wait ended in a hit; at most ``waiting + dead``."""
    busy_us: int = 0


@dataclass(slots=True, kw_only=True)
class TokenCounts:
    """Where prompt tokens came from; ``prompt = hit + host_hit + regenerated + new``, always.

    Of the requests that started (output: finished) in the measured window.
    """

    prompt: int = 0
    hit: int = 0
    host_hit: int = 0
    """Reloaded from the engine's host-memory tier."""
    regenerated: int = 0
    new: int = 0
    output: int = 0
    preempted: int = 0
    """Prefilled again after a preemption or an engine loss; not part of ``prompt``."""
    prefetched: int = 0
    """Prefilled speculatively by a prefetch; not part of ``prompt``."""


class Reading(NamedTuple):
    """One tenant at one time: the fields of ``TenantSeries``."""

    service_us: int = 0
    committed_tokens: int = 0
    num_waiting: int = 0
    longest_wait_us: int = 0
    lead_us: float = 0.0
    entitlement: float = 0.0


TOGETHER: tuple[Callable[[Iterable[Any]], Any], ...] = (sum, sum, sum, max, max, sum)
"""What tenants are together, by field."""


@dataclass(slots=True, kw_only=True)
class TenantSeries:
    """One tenant at the times of its ``TimeSeries``."""

    service_us: array[int] = field(default_factory=lambda: array("q"))
    """GPU time so far, at the engines' usual times per token, of finished requests."""
    committed_tokens: array[int] = field(default_factory=lambda: array("q"))
    """KV that its unfinished sessions occupy or are expected to."""
    num_waiting: array[int] = field(default_factory=lambda: array("q"))
    """Requests that have arrived and not started."""
    longest_wait_us: array[int] = field(default_factory=lambda: array("q"))
    """How long the first of these has waited by then."""
    lead_us: array[float] = field(default_factory=lambda: array("d"))
    """How far it is ahead in the queue for admission: what it was charged over its share."""
    entitlement: array[float] = field(default_factory=lambda: array("d"))
    """Its part of the weights of the tenants that have unfinished workflows; 0 without any."""

    @property
    def columns(self) -> tuple[array[Any], ...]:
        """In the order of the fields, which is that of ``Reading``."""
        return tuple(getattr(self, name) for name in Reading._fields)

    def take_in(self, other: TenantSeries) -> None:
        """Becomes what both are together, at the same times."""
        for column, more, together in zip(self.columns, other.columns, TOGETHER, strict=True):
            column[:] = array(column.typecode, map(together, zip(column, more, strict=True)))


@dataclass(slots=True, kw_only=True)
class TimeSeries:
    """What the tenants had, time after time; ``report.sampler`` says how many samples of each."""

    at_us: array[int] = field(default_factory=lambda: array("q"))
    tenants: dict[str, TenantSeries] = field(default_factory=dict)

    def enter(self, tenant: str) -> None:
        """A tenant that had nothing so far."""
        series = self.tenants[tenant] = TenantSeries()
        for column in series.columns:
            column.extend([0] * len(self.at_us))

    def add(self, at: int, readings: Mapping[str, Reading]) -> None:
        """A sample, of every tenant."""
        self.at_us.append(at)
        for name, series in self.tenants.items():
            for column, value in zip(series.columns, readings[name], strict=True):
                column.append(value)

    def keep(self, samples: slice) -> None:
        """Forgets all others."""
        columns = [column for series in self.tenants.values() for column in series.columns]
        for column in (self.at_us, *columns):
            column[:] = column[samples]


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """One preset on one workload with one seed."""

    preset: str
    seed: int
    workflows: list[WorkflowRecord]
    engines: list[EngineUsage]
    tokens: TokenCounts
    ttft_us: dict[str, array[int]] = field(default_factory=dict)
    """By tenant class: arrival to first token, one per finished request of a measured workflow."""
    start_us: int = 0
    """Start of the measured window (end of warm-up)."""
    end_us: int = 0
    """End of the measured window: throughput counts the workflows that finish inside it."""
    finished_in_window: int = 0
    """Workflows, measured or not, that finished inside the window."""
    evicted_tokens: int = 0
    num_evictions: int = 0
    num_steals: int = 0
    num_pauses: int = 0
    """Times that a session back from its tool had to wait for memory."""
    num_moves: int = 0
    num_preemptions: int = 0
    """This and the evictions are of the measured window; steals, moves, prefetches of the run."""
    num_prefetches: int = 0
    regenerated_gpu_us: int = 0
    """Engine time spent on regenerated tokens in the measured window."""
    deviation: float | None = None
    """The largest deviation of a tenant's service from its share, in any queue, over the proved
    bound; None without fair queues."""
    series: TimeSeries = field(default_factory=TimeSeries)
    num_events: int = 0
    num_excluded: int = 0
    """Workflows left out because a session is longer than an engine's KV."""
    wall_s: float = 0.0
    peak_rss_mib: float = 0.0
