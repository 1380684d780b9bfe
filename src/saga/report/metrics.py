"""Every metric, defined once: what the runs of one preset say about it.

``docs/metrics.md`` states the same definitions as a table. Workflows count when they are measured
(not warm-up); times of workflows come from the finished ones, and the others are counted beside
them, never dropped in silence.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saga.report.averages import Floats, geomean, largest, mean, mean_if_all, quantile, ratio
from saga.report.fairness import (
    by_class,
    by_tenant,
    compared,
    each,
    finish_time_fairness,
    jain_index,
    max_min_ratio,
    slowdown,
    tenant_slowdowns,
)
from saga.report.records import Outcome, RunRecord, WorkflowRecord

PARTS = ("queue", "prefill", "regenerated", "decode", "tool", "subagents")
"""Parts that a finished workflow's TCT is made of, in the order of ``WorkflowRecord``."""

SLO_FACTOR = 1.5
"""A workflow meets its SLO when TCT <= SLO_FACTOR x ``expected_us``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The metrics of one preset over one or more seeds; None where a metric is undefined.

    Times in seconds, fractions in 0..1. Over several seeds: means, quantiles and shares pool the
    workflows; fractions and rates are ratios of sums (weighted by tokens, memory or time);
    Jain and max/min are the mean of the seeds' values; counts add up; the longest wait and the
    largest deviation are those of all.
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
    slowdown_mean_by_class: dict[str, float]
    """These and others by class or tenant: only those with a finished workflow."""
    slowdown_p99_by_class: dict[str, float]
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    ttft_p99_s_by_class: dict[str, float]
    longest_wait_s: float | None
    longest_wait_s_by_class: dict[str, float]
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
    num_pauses: int
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
    finish_time_fairness_p99: float | None
    """TCT over TCT alone with no more of an engine than the tenant's weighted share."""
    finish_time_fairness_max: float | None
    finish_time_fairness_p99_by_tenant: dict[str, float]
    finish_time_fairness_max_by_tenant: dict[str, float]
    afs_deviation_ratio: float | None
    """The largest deviation of a tenant's service from its share over the bound, at most 1."""
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
    tct_s = np.array([workflow.finished_tct_us for workflow in finished], dtype=np.float64) / 1e6
    slowdowns = by_class(finished, slowdown)
    rho = by_tenant(finished, finish_time_fairness)
    ttft_s = _ttft_s(runs)
    split_s = {part: _sum_seconds(finished, part) for part in PARTS}

    engines = [engine for run in runs for engine in run.engines]
    memory = sum(engine.capacity_tokens * engine.window_us for engine in engines)
    active = sum(engine.active for engine in engines)
    waiting = sum(engine.waiting for engine in engines)
    dead = sum(engine.dead for engine in engines)
    prompt = sum(run.tokens.prompt for run in runs)
    output = sum(run.tokens.output for run in runs)
    window_s = sum(run.end_us - run.start_us for run in runs) / 1e6
    tenants = [tenant_slowdowns(run) for run in runs]

    return Summary(
        num_seeds=len(runs),
        num_workflows=len(workflows),
        num_finished=outcomes[Outcome.FINISHED],
        num_rejected=outcomes[Outcome.REJECTED],
        num_timed_out=outcomes[Outcome.TIMED_OUT],
        num_unfinished=outcomes[Outcome.UNFINISHED],
        num_excluded=sum(run.num_excluded for run in runs),
        tct_mean_s=mean(tct_s),
        tct_geomean_s=geomean(tct_s),
        tct_p50_s=quantile(tct_s, 0.50),
        tct_p95_s=quantile(tct_s, 0.95),
        tct_p99_s=quantile(tct_s, 0.99),
        slowdown_mean=mean(_pooled(slowdowns)),
        slowdown_p99=quantile(_pooled(slowdowns), 0.99),
        slowdown_mean_by_class=each(slowdowns, mean),
        slowdown_p99_by_class=each(slowdowns, _p99),
        ttft_p50_s=quantile(_pooled(ttft_s), 0.50),
        ttft_p99_s=quantile(_pooled(ttft_s), 0.99),
        ttft_p99_s_by_class=each(ttft_s, _p99),
        longest_wait_s=largest(_longest_wait_s(w) for w in workflows),
        longest_wait_s_by_class=each(by_class(workflows, _longest_wait_s), largest),
        split_s={p: s / len(finished) for p, s in split_s.items()} if finished else None,
        split_share={p: s / float(tct_s.sum()) for p, s in split_s.items()} if finished else None,
        hit_rate=ratio(sum(run.tokens.hit + run.tokens.host_hit for run in runs), prompt),
        regenerated_fraction=ratio(sum(run.tokens.regenerated for run in runs), prompt),
        regenerated_gpu_s=sum(run.regenerated_gpu_us for run in runs) / 1e6,
        evicted_tokens=sum(run.evicted_tokens for run in runs),
        kv_active=ratio(active, memory),
        kv_waiting=ratio(waiting, memory),
        kv_dead=ratio(dead, memory),
        kv_used=ratio(active + waiting + dead, memory),
        kv_useful=ratio(active + sum(engine.later_hit for engine in engines), memory),
        throughput_tasks_per_min=ratio(60 * sum(run.finished_in_window for run in runs), window_s),
        throughput_output_tokens_per_s=ratio(output, window_s) if output else None,
        engine_busy=ratio(
            sum(engine.busy_us for engine in engines), sum(engine.window_us for engine in engines)
        ),
        num_evictions=sum(run.num_evictions for run in runs),
        num_steals=sum(run.num_steals for run in runs),
        num_moves=sum(run.num_moves for run in runs),
        num_pauses=sum(run.num_pauses for run in runs),
        num_preemptions=sum(run.num_preemptions for run in runs),
        num_prefetches=sum(run.num_prefetches for run in runs),
        slo_attainment=_attained(workflows, SLO_FACTOR, _expected_us),
        slo_by_class=_attained_by_class(workflows),
        slo_alone_1_5=_attained(workflows, 1.5, _alone_us),
        slo_alone_2=_attained(workflows, 2, _alone_us),
        slo_alone_3=_attained(workflows, 3, _alone_us),
        fairness_jain=mean_if_all(jain_index(compared(run)) for run in tenants),
        fairness_max_min=mean_if_all(max_min_ratio(compared(run)) for run in tenants),
        finish_time_fairness_p99=quantile(_pooled(rho), 0.99),
        finish_time_fairness_max=largest(_pooled(rho)),
        finish_time_fairness_p99_by_tenant=each(rho, _p99),
        finish_time_fairness_max_by_tenant=each(rho, largest),
        afs_deviation_ratio=largest(run.deviation for run in runs),
        num_starved_tenants=sum(not values for run in tenants for values in run.values()),
    )


def _attained(
    workflows: Sequence[WorkflowRecord], factor: float, reference: Callable[[WorkflowRecord], int]
) -> float | None:
    """Share of workflows that finished within ``factor`` x reference; all others are misses.

    A workflow whose reference is not known (0) is not judged.
    """
    judged = [workflow for workflow in workflows if reference(workflow) > 0]
    met = sum(
        workflow.outcome is Outcome.FINISHED
        and workflow.finished_tct_us <= factor * reference(workflow)
        for workflow in judged
    )
    return ratio(met, len(judged))


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


def _sum_seconds(workflows: Sequence[WorkflowRecord], part: str) -> float:
    total_us: int = sum(getattr(workflow, f"{part}_us") for workflow in workflows)
    return total_us / 1e6


def _ttft_s(runs: Sequence[RunRecord]) -> dict[str, Floats]:
    """By tenant class, pooled over seeds."""
    times: dict[str, list[Floats]] = defaultdict(list)
    for run in runs:
        for name, of_class in run.ttft_us.items():
            times[name].append(np.array(of_class, dtype=np.float64) / 1e6)
    return {name: np.concatenate(times[name]) for name in sorted(times)}


def _longest_wait_s(workflow: WorkflowRecord) -> float:
    return workflow.longest_wait_us / 1e6


def _p99(values: Floats) -> float | None:
    return quantile(values, 0.99)


def _pooled(groups: Mapping[str, Floats]) -> Floats:
    return np.concatenate([*groups.values(), np.empty(0)])
