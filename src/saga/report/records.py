"""What one run leaves behind: the only input of every metric, simulated or live."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum


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
    queue_us: int = 0
    prefill_us: int = 0
    regenerated_us: int = 0
    decode_us: int = 0
    tool_us: int = 0
    """Gaps of the root session (return time), without the wait for sub-agents."""
    subagents_us: int = 0
    """Time in which the root session waited for its sub-agents, or they outlived it."""
    longest_wait_us: int = 0
    """Longest time any of its requests waited from arrival to start."""

    @property
    def tct_us(self) -> int | None:
        return None if self.finished_us is None else self.finished_us - self.submitted_us


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


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """One preset on one workload with one seed."""

    preset: str
    seed: int
    workflows: list[WorkflowRecord]
    engines: list[EngineUsage]
    tokens: TokenCounts
    ttft_us: array[int] = field(default_factory=lambda: array("q"))
    """Arrival to first token, one per finished request of a measured workflow."""
    start_us: int = 0
    """Start of the measured window (end of warm-up)."""
    end_us: int = 0
    """End of the measured window: throughput counts the workflows that finish inside it."""
    finished_in_window: int = 0
    """Workflows, measured or not, that finished inside the window."""
    evicted_tokens: int = 0
    num_evictions: int = 0
    num_steals: int = 0
    num_moves: int = 0
    num_preemptions: int = 0
    """This and the evictions are of the measured window; steals, moves, prefetches of the run."""
    num_prefetches: int = 0
    regenerated_gpu_us: int = 0
    """Engine time spent on regenerated tokens in the measured window."""
    num_events: int = 0
    num_excluded: int = 0
    """Workflows left out because a session is longer than an engine's KV."""
    wall_s: float = 0.0
    peak_rss_mib: float = 0.0
