"""Every metric, defined once: what the runs of one preset say about it.

``docs/metrics.md`` states the same definitions as a table. Workflows count when they are measured
(not warm-up); times of workflows come from the finished ones, and the others are counted beside
them, never dropped in silence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saga.report.records import Outcome, RunRecord, WorkflowRecord

PARTS = ("queue", "prefill", "regenerated", "decode", "tool", "subagents")
"""Parts that a finished workflow's TCT is made of, in the order of ``WorkflowRecord``."""

SLO_FACTOR = 1.5
"""A workflow meets its SLO when TCT <= SLO_FACTOR x ``expected_us``."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The metrics of one preset over one or more seeds; None where a metric is undefined.

    Times in seconds, fractions in 0..1. Over several seeds: means, quantiles and shares pool the
    workflows; fractions and rates are ratios of sums (weighted by tokens, memory or time);
    fairness is the mean of the seeds' values; counts add up; the longest wait is the longest.
    """

    num_seeds: int
    num_workflows: int
    """Measured workflows: the sum of the four outcomes that follow."""
    num_finished: int
    num_rejected: int
    num_timed_out: int
    num_unfinished: int
    num_excluded: int
    """Left out of the workload because a session is longer than an engine's KV."""

    tct_mean_s: float | None
    tct_geomean_s: float | None
    tct_p50_s: float | None
    tct_p95_s: float | None
    tct_p99_s: float | None
    slowdown_mean: float | None
    """TCT over the TCT of the same workflow alone on an idle engine."""
    slowdown_p99: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    longest_wait_s: float | None
    split_s: dict[str, float] | None
    """Mean seconds of TCT per part of ``PARTS``."""
    split_share: dict[str, float] | None
    """The same, over the sum of TCT."""

    hit_rate: float | None
    regenerated_fraction: float | None
    regenerated_gpu_s: float
    """Engine time; one engine may be several GPUs."""
    evicted_tokens: int
    kv_active: float | None
    kv_waiting: float | None
    kv_dead: float | None
    kv_used: float | None
    """``kv_active + kv_waiting + kv_dead``."""
    kv_useful: float | None
    """Active, or idle and later hit."""

    throughput_tasks_per_min: float | None
    throughput_output_tokens_per_s: float | None
    engine_busy: float | None
    num_evictions: int
    num_steals: int
    num_moves: int
    num_preemptions: int
    num_prefetches: int

    slo_attainment: float | None
    slo_by_class: dict[str, float]
    slo_alone_1_5: float | None
    """Share with TCT <= 1.5 x alone; the next two: 2 x and 3 x."""
    slo_alone_2: float | None
    slo_alone_3: float | None
    fairness_jain: float | None
    fairness_max_min: float | None
    num_starved_tenants: int
    """Tenants with measured workflows of which none finished, summed over seeds; while there is
    one, both fairness metrics are None."""


def summarise(run: RunRecord) -> Summary:
    """The metrics of one run."""
    return aggregate([run])


def aggregate(runs: Sequence[RunRecord]) -> Summary:
    """The metrics of one preset over the runs of its seeds; any number of runs, none included.

    Raises ValueError for a finished workflow without a positive TCT.
    """
    workflows = [workflow for run in runs for workflow in run.workflows if workflow.measured]
    outcomes = Counter(workflow.outcome for workflow in workflows)
    finished = [workflow for workflow in workflows if workflow.outcome is Outcome.FINISHED]
    tct_s = np.array([finished_tct_us(workflow) for workflow in finished], dtype=np.float64) / 1e6
    slowdown = np.array([s for w in finished if (s := _slowdown(w)) is not None], dtype=np.float64)
    ttft_s = _concatenate([np.array(run.ttft_us, dtype=np.float64) / 1e6 for run in runs])
    split_s = {part: _sum_seconds(finished, part) for part in PARTS}

    engines = [engine for run in runs for engine in run.engines]
    memory = sum(engine.capacity_tokens * engine.window_us for engine in engines)
    active = sum(engine.active for engine in engines)
    waiting = sum(engine.waiting for engine in engines)
    dead = sum(engine.dead for engine in engines)
    prompt = sum(run.tokens.prompt for run in runs)
    output = sum(run.tokens.output for run in runs)
    window_s = sum(run.end_us - run.start_us for run in runs) / 1e6
    slowdowns = [tenant_slowdowns(run) for run in runs]

    return Summary(
        num_seeds=len(runs),
        num_workflows=len(workflows),
        num_finished=outcomes[Outcome.FINISHED],
        num_rejected=outcomes[Outcome.REJECTED],
        num_timed_out=outcomes[Outcome.TIMED_OUT],
        num_unfinished=outcomes[Outcome.UNFINISHED],
        num_excluded=sum(run.num_excluded for run in runs),
        tct_mean_s=_mean(tct_s),
        tct_geomean_s=geomean(tct_s),
        tct_p50_s=_quantile(tct_s, 0.50),
        tct_p95_s=_quantile(tct_s, 0.95),
        tct_p99_s=_quantile(tct_s, 0.99),
        slowdown_mean=_mean(slowdown),
        slowdown_p99=_quantile(slowdown, 0.99),
        ttft_p50_s=_quantile(ttft_s, 0.50),
        ttft_p99_s=_quantile(ttft_s, 0.99),
        longest_wait_s=max((w.longest_wait_us / 1e6 for w in workflows), default=None),
        split_s={p: s / len(finished) for p, s in split_s.items()} if finished else None,
        split_share={p: s / float(tct_s.sum()) for p, s in split_s.items()} if finished else None,
        hit_rate=_ratio(sum(run.tokens.hit + run.tokens.host_hit for run in runs), prompt),
        regenerated_fraction=_ratio(sum(run.tokens.regenerated for run in runs), prompt),
        regenerated_gpu_s=sum(run.regenerated_gpu_us for run in runs) / 1e6,
        evicted_tokens=sum(run.evicted_tokens for run in runs),
        kv_active=_ratio(active, memory),
        kv_waiting=_ratio(waiting, memory),
        kv_dead=_ratio(dead, memory),
        kv_used=_ratio(active + waiting + dead, memory),
        kv_useful=_ratio(active + sum(engine.later_hit for engine in engines), memory),
        throughput_tasks_per_min=_ratio(60 * sum(run.finished_in_window for run in runs), window_s),
        throughput_output_tokens_per_s=_ratio(output, window_s) if output else None,
        engine_busy=_ratio(
            sum(engine.busy_us for engine in engines), sum(engine.window_us for engine in engines)
        ),
        num_evictions=sum(run.num_evictions for run in runs),
        num_steals=sum(run.num_steals for run in runs),
        num_moves=sum(run.num_moves for run in runs),
        num_preemptions=sum(run.num_preemptions for run in runs),
        num_prefetches=sum(run.num_prefetches for run in runs),
        slo_attainment=_attained(workflows, SLO_FACTOR, _expected_us),
        slo_by_class=_attained_by_class(workflows),
        slo_alone_1_5=_attained(workflows, 1.5, _alone_us),
        slo_alone_2=_attained(workflows, 2, _alone_us),
        slo_alone_3=_attained(workflows, 3, _alone_us),
        fairness_jain=_mean_if_all(jain_index(_compared(run)) for run in slowdowns),
        fairness_max_min=_mean_if_all(max_min_ratio(_compared(run)) for run in slowdowns),
        num_starved_tenants=sum(not values for run in slowdowns for values in run.values()),
    )


def finished_tct_us(workflow: WorkflowRecord) -> int:
    """TCT of a finished workflow, microseconds, always positive.

    Raises ValueError when the record has none: every statistic on ratios would be meaningless.
    """
    tct_us = workflow.tct_us
    if tct_us is None or tct_us <= 0:
        raise ValueError(
            f"workflow {workflow.id!r} is finished with a TCT of {tct_us} us; it must be positive"
        )
    return tct_us


def tenant_slowdowns(run: RunRecord) -> dict[str, list[float]]:
    """Slowdowns (TCT over alone) of each tenant's finished workflows; empty if none finished.

    Workflows whose time alone is not known (0) are left out.
    """
    slowdowns: dict[str, list[float]] = defaultdict(list)
    for workflow in run.workflows:
        if workflow.measured and workflow.alone_us > 0:
            values = slowdowns[workflow.tenant]
            if (slowdown := _slowdown(workflow)) is not None:
                values.append(slowdown)
    return dict(slowdowns)


def jain_index(values: Sequence[float]) -> float | None:
    """Jain's fairness index, 1/n (one gets everything) to 1 (all equal): (sum x)^2 / (n sum x^2).

    Jain, Chiu, Hawe: A Quantitative Measure of Fairness, DEC-TR-301, 1984.
    """
    return _ratio(sum(values) ** 2, len(values) * sum(value * value for value in values))


def max_min_ratio(values: Sequence[float]) -> float | None:
    """The largest over the smallest value; 1 when all are equal."""
    return _ratio(max(values), min(values)) if values else None


def geomean(values: Floats) -> float | None:
    """Geometric mean of positive values."""
    return float(np.exp(np.log(values).mean())) if values.size else None


def _compared(slowdowns: dict[str, list[float]]) -> list[float]:
    """What fairness compares: tenants' mean slowdowns, or the workflows of a tenant on its own.

    Empty, hence undefined, when a tenant finished nothing: its slowdown has no upper limit.
    """
    if len(slowdowns) == 1:
        return next(iter(slowdowns.values()))
    if not all(slowdowns.values()):
        return []
    return [sum(values) / len(values) for values in slowdowns.values()]


def _attained(
    workflows: Sequence[WorkflowRecord], factor: float, reference: Callable[[WorkflowRecord], int]
) -> float | None:
    """Share of workflows that finished within ``factor`` x reference; all others are misses.

    A workflow whose reference is not known (0) is not judged.
    """
    judged = [workflow for workflow in workflows if reference(workflow) > 0]
    met = sum(
        workflow.outcome is Outcome.FINISHED
        and finished_tct_us(workflow) <= factor * reference(workflow)
        for workflow in judged
    )
    return _ratio(met, len(judged))


def _attained_by_class(workflows: Sequence[WorkflowRecord]) -> dict[str, float]:
    by_class: dict[str, list[WorkflowRecord]] = defaultdict(list)
    for workflow in workflows:
        by_class[workflow.tenant_class].append(workflow)
    shares = {name: _attained(of, SLO_FACTOR, _expected_us) for name, of in by_class.items()}
    return {name: share for name, share in sorted(shares.items()) if share is not None}


def _expected_us(workflow: WorkflowRecord) -> int:
    return workflow.expected_us


def _alone_us(workflow: WorkflowRecord) -> int:
    return workflow.alone_us


def _slowdown(workflow: WorkflowRecord) -> float | None:
    if workflow.outcome is not Outcome.FINISHED or workflow.alone_us <= 0:
        return None
    return finished_tct_us(workflow) / workflow.alone_us


def _sum_seconds(workflows: Sequence[WorkflowRecord], part: str) -> float:
    total_us: int = sum(getattr(workflow, f"{part}_us") for workflow in workflows)
    return total_us / 1e6


def _concatenate(arrays: Sequence[Floats]) -> Floats:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _quantile(values: Floats, q: float) -> float | None:
    """Linear between the two nearest ranks (numpy's default)."""
    return float(np.quantile(values, q)) if values.size else None


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _mean_if_all(values: Iterable[float | None]) -> float | None:
    """The mean, or None if any is missing: leaving the bad seeds out would flatter the preset."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
