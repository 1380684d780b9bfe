"""How sure a comparison of two presets is: paired by workflow, replicated by seed.

The unit of replication is the seed. Workflows of one run share its queues, so they are not
independent, and neither the bootstrap nor the test ever treats them as if they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saga.report.averages import Floats
from saga.report.extras import sim_extra
from saga.report.records import Outcome, RunRecord, WorkflowRecord

CONFIDENCE = 0.95
NUM_RESAMPLES = 9_999
BCA_MIN_SEEDS = 5
_DIGITS = 12
"""Decimals of a log ratio that are told apart: far below anything real, far above rounding."""
_EQUAL = 10.0**-_DIGITS
_RNG_SEED = 20_240_229
"""Fixed, so that the same runs always give the same interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedComparison:
    """One seed: the same workflows under both presets."""

    seed: int
    speedup_geomean: float | None
    """Geometric mean of TCT_reference / TCT_other over the pairs; None without pairs."""
    num_pairs: int
    """Measured workflows that finished under both presets."""
    num_left_out: int
    """Measured workflows that did not finish under at least one of them."""
    num_finished_only_reference: int
    num_finished_only_other: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How many times as fast the other preset is as the reference; above 1 it is faster."""

    speedup_geomean: float | None
    """Geometric mean of the seeds' speed-ups; None without a single pair."""
    ci95: tuple[float, float] | None
    wilcoxon_p: float | None
    """Two-sided Wilcoxon signed-rank test on the seeds' log speed-ups, exact."""
    n_seeds: int
    """Seeds with at least one pair."""
    num_pairs: int
    num_left_out: int
    num_finished_only_reference: int
    num_finished_only_other: int
    per_seed: tuple[SeedComparison, ...]
    notes: tuple[str, ...]
    """In words, what is missing or limits the reading."""


def compare(reference_runs: Sequence[RunRecord], other_runs: Sequence[RunRecord]) -> Comparison:
    """Compares two presets over the seeds they share, workflow by workflow.

    Needs the extra ``sim`` (scipy) from two seeds on. Raises ValueError when a seed occurs twice
    among one preset's runs, or when there are no runs of one.
    """
    reference, other = _by_seed(reference_runs), _by_seed(other_runs)
    per_seed = tuple(
        _compare_seed(reference[seed], other[seed]) for seed in sorted(reference.keys() & other)
    )
    speedups = [s.speedup_geomean for s in per_seed if s.speedup_geomean is not None]
    logs = np.log(np.array(speedups, dtype=np.float64))
    return Comparison(
        speedup_geomean=float(np.exp(logs.mean())) if logs.size else None,
        ci95=bootstrap_interval(logs),
        wilcoxon_p=wilcoxon_p(logs),
        n_seeds=len(speedups),
        num_pairs=sum(seed.num_pairs for seed in per_seed),
        num_left_out=sum(seed.num_left_out for seed in per_seed),
        num_finished_only_reference=sum(seed.num_finished_only_reference for seed in per_seed),
        num_finished_only_other=sum(seed.num_finished_only_other for seed in per_seed),
        per_seed=per_seed,
        notes=tuple(_notes(len(speedups), len(reference.keys() ^ other.keys()))),
    )


def bootstrap_interval(logs: Floats) -> tuple[float, float] | None:
    """95 % interval of the geometric mean of ``exp(logs)``, bootstrapped over seeds.

    BCa (Efron 1987) from five seeds on, percentiles below or where all seeds agree (BCa is then
    undefined). None below two seeds: one seed says nothing about the spread.
    """
    if logs.size < 2:
        return None
    with sim_extra():
        from scipy.stats import bootstrap
    degenerate = float(np.ptp(logs)) <= _EQUAL
    result = bootstrap(
        (logs,),
        _mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa" if logs.size >= BCA_MIN_SEEDS and not degenerate else "percentile",
        random_state=np.random.default_rng(_RNG_SEED),
    )
    interval = result.confidence_interval
    return float(np.exp(interval.low)), float(np.exp(interval.high))


def wilcoxon_p(logs: Floats) -> float | None:
    """Exact two-sided signed-rank p of "no difference"; None below two seeds.

    Counts, over all sign patterns, the sums of positive ranks at least as far from the middle as
    the one observed. Ties share their mean rank, for which scipy's exact p is not exact. Seeds
    without any difference are dropped, as Wilcoxon did; if all are, p is 1.
    """
    if logs.size < 2:
        return None
    different = logs[np.abs(logs) > _EQUAL]
    doubled = _doubled_ranks(np.abs(different))
    num_patterns = np.zeros(doubled.sum() + 1)
    num_patterns[0] = 1
    for rank in doubled:
        num_patterns[rank:] = num_patterns[rank:] + num_patterns[:-rank]
    from_middle = np.abs(2 * np.arange(num_patterns.size) - doubled.sum())
    observed = from_middle[doubled[different > 0].sum()]
    return float(num_patterns[from_middle >= observed].sum() / 2**different.size)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """p-values adjusted for the number of comparisons made (Holm 1979); None stays None."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[name] = largest
    return adjusted


def _mean(logs: Floats, axis: int) -> Any:
    """Rounded, so that BCa sees as equal what only differs by the order of the summands."""
    return np.round(np.mean(logs, axis=axis), _DIGITS)


def _doubled_ranks(values: Floats) -> NDArray[np.int64]:
    """Twice the rank of each value; equal ones share the mean, hence twice, to stay integers."""
    _, position, count = np.unique(
        np.round(values, _DIGITS), return_inverse=True, return_counts=True
    )
    last = np.cumsum(count)
    return (2 * last - count + 1)[position]


def _by_seed(runs: Sequence[RunRecord]) -> dict[int, RunRecord]:
    if not runs:
        raise ValueError("no runs to compare; each preset needs at least one")
    by_seed = {run.seed: run for run in runs}
    if len(by_seed) < len(runs):
        seeds = sorted(run.seed for run in runs)
        raise ValueError(f"preset {runs[0].preset!r} has seeds {seeds}; each may occur only once")
    return by_seed


def _compare_seed(reference: RunRecord, other: RunRecord) -> SeedComparison:
    ours, theirs = _measured(reference), _measured(other)
    everyone = ours.keys() | theirs.keys()
    finished_ours = {id_ for id_, w in ours.items() if w.outcome is Outcome.FINISHED}
    finished_theirs = {id_ for id_, w in theirs.items() if w.outcome is Outcome.FINISHED}
    # Sorted: a sum of floats in a set's order would differ from process to process.
    paired = sorted(finished_ours & finished_theirs)
    logs = np.array(
        [np.log(ours[i].finished_tct_us / theirs[i].finished_tct_us) for i in paired],
        dtype=np.float64,
    )
    return SeedComparison(
        seed=reference.seed,
        speedup_geomean=float(np.exp(logs.mean())) if paired else None,
        num_pairs=len(paired),
        num_left_out=len(everyone) - len(paired),
        num_finished_only_reference=len(finished_ours - finished_theirs),
        num_finished_only_other=len(finished_theirs - finished_ours),
    )


def _measured(run: RunRecord) -> dict[str, WorkflowRecord]:
    return {workflow.id: workflow for workflow in run.workflows if workflow.measured}


def _notes(n_seeds: int, num_unpaired_seeds: int) -> list[str]:
    notes = []
    if n_seeds == 0:
        notes.append("No workflow finished under both presets, so there is no speed-up")
    elif n_seeds == 1:
        notes.append("One seed has no confidence interval and no p; both need at least 2 seeds")
    elif n_seeds < 6:
        notes.append(f"With {n_seeds} seeds p cannot fall below {2 / 2**n_seeds:.4g}")
    if num_unpaired_seeds:
        notes.append(f"Left out: {num_unpaired_seeds} seeds that were run under one preset only")
    return notes
