"""Synthetic runs: single records with neutral defaults, and a whole plausible study."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

import numpy as np

from saga.report.content import LoadPoint
from saga.report.metrics import summarise
from saga.report.records import (
    EngineUsage,
    Outcome,
    RunRecord,
    TenantSeries,
    TimeSeries,
    TokenCounts,
    WorkflowRecord,
)

SECOND = 1_000_000
MINUTE = 60 * SECOND


def workflow(
    id: str = "w",
    tct_s: float | None = 10,
    *,
    alone_s: float = 10,
    expected_s: float = 10,
    share_s: float = 0,
    tenant: str = "t",
    tenant_class: str = "default",
    outcome: Outcome = Outcome.FINISHED,
    measured: bool = True,
    longest_wait_s: float = 0,
    parts_s: dict[str, float] | None = None,
) -> WorkflowRecord:
    """A workflow; without ``parts_s`` all its TCT is decode. ``tct_s`` None: it did not finish."""
    if tct_s is None and outcome is Outcome.FINISHED:
        outcome = Outcome.UNFINISHED
    tct_us = None if tct_s is None else round(tct_s * SECOND)
    parts = {"decode": tct_s or 0.0} if parts_s is None else parts_s
    return WorkflowRecord(
        id=id,
        tenant=tenant,
        tenant_class=tenant_class,
        agent_type="coder",
        outcome=outcome,
        measured=measured,
        submitted_us=5 * SECOND,
        finished_us=None if tct_us is None else 5 * SECOND + tct_us,
        num_steps=3,
        alone_us=round(alone_s * SECOND),
        expected_us=round(expected_s * SECOND),
        share_us=round(share_s * SECOND),
        longest_wait_us=round(longest_wait_s * SECOND),
        **{f"{part}_us": round(seconds * SECOND) for part, seconds in parts.items()},
    )


def run(
    workflows: Iterable[WorkflowRecord] = (),
    *,
    preset: str = "p",
    seed: int = 1,
    engines: Iterable[EngineUsage] = (),
    tokens: TokenCounts | None = None,
    ttft_s: Mapping[str, Iterable[float]] | None = None,
    deviation: float | None = None,
    series: TimeSeries | None = None,
    start_us: int = 0,
    end_us: int = 0,
    finished_in_window: int = 0,
    **counts: int,
) -> RunRecord:
    return RunRecord(
        preset=preset,
        seed=seed,
        workflows=list(workflows),
        engines=list(engines),
        tokens=tokens or TokenCounts(),
        ttft_us={name: _microseconds(times) for name, times in (ttft_s or {}).items()},
        deviation=deviation,
        series=series or TimeSeries(),
        start_us=start_us,
        end_us=end_us,
        finished_in_window=finished_in_window,
        **counts,
    )


def _microseconds(seconds: Iterable[float]) -> array[int]:
    return array("q", (round(one * SECOND) for one in seconds))


def runs_with_tct(tct_s_by_seed: dict[int, list[float | None]]) -> list[RunRecord]:
    """One run per seed with workflows w0, w1, ... of these TCTs."""
    return [
        run([workflow(f"w{i}", tct) for i, tct in enumerate(times)], seed=seed)
        for seed, times in tct_s_by_seed.items()
    ]


def study(
    pressure: dict[str, float], *, seeds: int = 10, tasks: int = 200
) -> dict[str, list[RunRecord]]:
    """Plausible runs of several presets; pressure 0: as if alone, 1: half the time is waste."""
    return {
        name: [_plausible_run(name, seed, pressure[name], tasks) for seed in range(1, seeds + 1)]
        for name in pressure
    }


def sweep(presets: dict[str, float], loads: Iterable[float]) -> list[LoadPoint]:
    """Plausible load points; each preset's number is the load at which it breaks down."""
    points = []
    for load in loads:
        pressure = {name: max(0.02, 8 * (load - knee)) for name, knee in presets.items()}
        runs = study(pressure, seeds=4, tasks=40)
        summaries = {name: [summarise(r) for r in runs[name]] for name in runs}
        points.append(LoadPoint(load=load, summaries=summaries))
    return points


def _plausible_run(preset: str, seed: int, pressure: float, tasks: int) -> RunRecord:
    """The workload depends on the seed alone, so that presets are paired."""
    draw = np.random.default_rng(seed)
    alone = draw.lognormal(5.4, 0.7, tasks)
    noise = np.random.default_rng([seed, *preset.encode()])
    waste = alone * pressure * noise.lognormal(0, 0.5, tasks) * noise.lognormal(0, 0.25)
    workflows = []
    for i in range(tasks):
        tenant = "ABC"[i % 3]
        parts = {
            "queue": 0.6 * waste[i],
            "prefill": 0.12 * alone[i],
            "regenerated": 0.4 * waste[i],
            "decode": 0.48 * alone[i],
            "tool": 0.34 * alone[i],
            "subagents": 0.06 * alone[i],
        }
        parts = {part: round(seconds, 6) for part, seconds in parts.items()}
        lost = noise.random() < 0.02 * pressure
        workflows.append(
            workflow(
                f"w{i}",
                None if lost else sum(parts.values()),
                alone_s=alone[i],
                expected_s=1.3 * alone[i],
                share_s=2 * alone[i],
                tenant=f"team {tenant}",
                tenant_class="heavy" if tenant == "A" else "light",
                outcome=Outcome.TIMED_OUT if lost else Outcome.FINISHED,
                longest_wait_s=0.3 * waste[i],
                parts_s={} if lost else parts,
            )
        )
    end = 240 * MINUTE
    regenerated = int(4_000_000 * pressure / (1 + pressure))
    area = 442_000 * end
    dead, waiting = 0.35 * pressure / (1 + pressure), 0.30 / (1 + pressure)
    return run(
        workflows,
        preset=preset,
        seed=seed,
        engines=[
            EngineUsage(
                engine=f"e{i}",
                capacity_tokens=442_000,
                window_us=end,
                active=int(0.41 * area),
                waiting=int(waiting * area),
                dead=int(dead * area),
                later_hit=int(0.85 * waiting * area),
                busy_us=int(0.9 * end),
            )
            for i in range(2)
        ],
        tokens=TokenCounts(
            prompt=10_000_000 + regenerated,
            hit=9_000_000,
            regenerated=regenerated,
            new=1_000_000,
            output=400_000,
        ),
        ttft_s={
            name: noise.lognormal(-0.5 + min(pressure, 8), 0.8, 2 * tasks)
            for name in ("heavy", "light")
        },
        deviation=min(1.0, 0.1 + 0.3 * pressure),
        series=_plausible_series(noise, end),
        end_us=end,
        finished_in_window=int(tasks / (1 + 0.2 * pressure)),
        evicted_tokens=2 * regenerated,
        regenerated_gpu_us=regenerated * 120,
        num_moves=int(30 * pressure),
        num_events=40 * tasks,
    )


def _plausible_series(noise: np.random.Generator, end: int, num: int = 100) -> TimeSeries:
    """Three tenants of equal weight, the last of which comes late."""
    at = np.linspace(0, end, num).astype(int)
    tenants = {}
    for number, tenant in enumerate("ABC"):
        here = at >= number // 2 * end / 2
        sharing = np.where(at >= end / 2, 3, 2)
        service = np.cumsum(here * noise.uniform(0.5, 1.5, num) / sharing) * end / num
        tenants[f"team {tenant}"] = TenantSeries(
            service_us=array("q", service.astype(int)),
            committed_tokens=array("q", (here * 100_000).tolist()),
            num_waiting=array("q", (here * noise.integers(0, 9, num)).tolist()),
            lead_us=array("d", here * noise.uniform(0, SECOND, num)),
            entitlement=array("d", here / sharing),
        )
    return TimeSeries(at_us=array("q", at), tenants=tenants)
