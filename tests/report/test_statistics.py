from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon
from tests.report.factory import run, runs_with_tct, workflow

from saga.report.records import RunRecord
from saga.report.statistics import bootstrap_interval, compare, holm, wilcoxon_p


def test_speedup_is_the_geomean_over_pairs_then_over_seeds() -> None:
    reference = runs_with_tct({1: [10, 40], 2: [90]})
    other = runs_with_tct({1: [10, 10], 2: [10]})
    comparison = compare(reference, other)
    # Seed 1: sqrt(1 x 4) = 2; seed 2: 9; together sqrt(18), although seed 2 has fewer workflows.
    assert [seed.speedup_geomean for seed in comparison.per_seed] == pytest.approx([2, 9])
    assert comparison.speedup_geomean == pytest.approx(18**0.5)
    assert comparison.n_seeds == 2
    assert comparison.num_pairs == 3


def test_what_did_not_finish_is_in_no_pair_and_counted() -> None:
    reference = runs_with_tct({1: [10, 10, None, None, 10]})
    other = runs_with_tct({1: [5, None, 5, None, 5]})
    comparison = compare(reference, other)
    assert comparison.speedup_geomean == pytest.approx(2)
    assert comparison.num_pairs == 2
    assert comparison.num_left_out == 3
    assert comparison.num_finished_only_reference == 1
    assert comparison.num_finished_only_other == 1


def test_warm_up_is_not_compared() -> None:
    warm_up, measured = workflow("w0", 1_000, measured=False), workflow("w1", 10)
    comparison = compare([run([warm_up, measured])], [run([warm_up, workflow("w1", 20)])])
    assert comparison.speedup_geomean == pytest.approx(0.5)
    assert comparison.num_pairs == 1
    assert comparison.num_left_out == 0


def test_pairing_is_by_id_not_by_position() -> None:
    reference = run([workflow("a", 10), workflow("b", 1_000)])
    other = run([workflow("b", 1_000), workflow("a", 10)])
    assert compare([reference], [other]).speedup_geomean == pytest.approx(1)


def test_one_seed_has_neither_interval_nor_p_and_says_so() -> None:
    comparison = compare(runs_with_tct({1: [10]}), runs_with_tct({1: [5]}))
    assert comparison.speedup_geomean == pytest.approx(2)
    assert (comparison.ci95, comparison.wilcoxon_p) == (None, None)
    assert "at least 2 seeds" in " ".join(comparison.notes)


def test_nothing_finished_has_no_speedup_and_says_so() -> None:
    comparison = compare(runs_with_tct({1: [None], 2: [3]}), runs_with_tct({1: [5], 2: [None]}))
    assert comparison.speedup_geomean is None
    assert (comparison.ci95, comparison.wilcoxon_p) == (None, None)
    assert comparison.n_seeds == 0
    assert comparison.num_left_out == 2
    assert "No workflow finished under both" in comparison.notes[0]


def test_seeds_that_only_one_side_ran_are_left_out_and_named() -> None:
    comparison = compare(runs_with_tct({1: [10], 2: [10]}), runs_with_tct({2: [5], 3: [1]}))
    assert [seed.seed for seed in comparison.per_seed] == [2]
    assert "2 seeds" in comparison.notes[-1]


def test_few_seeds_say_how_small_p_can_get() -> None:
    reference = runs_with_tct({seed: [10 + seed] for seed in range(5)})
    comparison = compare(reference, runs_with_tct({seed: [5] for seed in range(5)}))
    assert comparison.wilcoxon_p == pytest.approx(0.0625)
    assert comparison.notes == ("With 5 seeds p cannot fall below 0.0625",)


def test_a_seed_twice_or_no_runs_are_refused() -> None:
    once = runs_with_tct({1: [1]})
    with pytest.raises(ValueError, match=r"preset 'p' has seeds \[1, 1\]"):
        compare(once * 2, once)
    with pytest.raises(ValueError, match="no runs"):
        compare(once, [])


def test_exact_p_of_a_textbook_case() -> None:
    # Ranks of |d| 1..8, negative ones 1 and 3: W = 4. Of 2^8 sign patterns, 1+1+1+2+2 = 7 have a
    # sum of at most 4 ({}, {1}, {2}, {3}, {1,2}, {4}, {1,3}), so p = 2 x 7 / 256.
    logs = np.array([-0.1, 0.2, -0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert wilcoxon_p(logs) == pytest.approx(14 / 256)


def test_ties_share_their_rank() -> None:
    # |d| = 1, 1, 1, 3: ranks 2, 2, 2, 4 and W = 2 (or 8). Sums <= 2: {} and three of one 2, so
    # p = 2 x 4 / 16. Breaking the tie by position would give 1 x 1/8 or 3 x 1/8 instead.
    assert wilcoxon_p(np.array([1.0, 1.0, -1.0, 3.0])) == 0.5
    assert wilcoxon_p(np.array([-1.0, 1.0, 1.0, 3.0])) == 0.5


@given(st.lists(st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=12))
def test_p_without_ties_is_scipys(logs: list[float]) -> None:
    if len({round(abs(x), 9) for x in logs}) == len(logs):
        assert wilcoxon_p(np.array(logs)) == pytest.approx(wilcoxon(logs, method="exact").pvalue)


def test_seeds_without_a_difference_do_not_count_as_evidence() -> None:
    assert wilcoxon_p(np.zeros(5)) == 1
    assert wilcoxon_p(np.array([0.0, 0.0, 0.3])) == 1
    assert wilcoxon_p(np.array([0.3])) is None


def test_interval_is_percentile_below_five_seeds_and_degenerate_when_all_agree() -> None:
    assert bootstrap_interval(np.log([2.0, 8.0])) == pytest.approx((2, 8))
    assert bootstrap_interval(np.log([3.0] * 7)) == pytest.approx((3, 3))
    assert bootstrap_interval(np.log([3.0])) is None


def test_interval_widens_with_the_spread_over_seeds_and_is_repeatable() -> None:
    draw = np.random.default_rng(7).normal(0.3, 1, 12)
    narrow, wide = bootstrap_interval(0.3 + 0.1 * draw), bootstrap_interval(0.3 + draw)
    assert narrow is not None and wide is not None
    assert wide[1] / wide[0] > narrow[1] / narrow[0] > 1
    assert bootstrap_interval(0.3 + draw) == wide


few_values = st.sampled_from([-0.3, 0.0, 0.2, 1.0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(few_values, st.floats(-2, 2)), min_size=2, max_size=12))
def test_interval_lies_within_what_was_seen(logs: list[float]) -> None:
    interval = bootstrap_interval(np.array(logs))
    assert interval is not None
    low, high = np.log(interval)
    assert min(logs) - 1e-9 <= low <= high <= max(logs) + 1e-9


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Over 60 studies of 15 seeds; a bootstrap over workflows would miss nearly always."""
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        interval = bootstrap_interval(draw.normal(np.log(1.4), 0.3, 15))
        assert interval is not None
        covered += interval[0] <= 1.4 <= interval[1]
    assert 48 <= covered <= 60


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None, "e": 0.9})
    assert adjusted == {"a": 0.04, "c": 0.09, "b": 0.09, "e": 0.9, "d": None}
    assert holm({}) == {}


times = st.lists(st.lists(st.integers(1, 5_000), min_size=3, max_size=3), min_size=1, max_size=7)


def _runs(times_by_seed: list[list[int]], factor: int = 1) -> list[RunRecord]:
    return runs_with_tct(
        {seed: [factor * time for time in times] for seed, times in enumerate(times_by_seed)}
    )


@settings(max_examples=25, deadline=None)
@given(times, times)
def test_swapping_the_sides_inverts_everything(
    ours: list[list[int]], theirs: list[list[int]]
) -> None:
    there, back = compare(_runs(ours), _runs(theirs)), compare(_runs(theirs), _runs(ours))
    assert there.speedup_geomean is not None and back.speedup_geomean is not None
    assert there.speedup_geomean == pytest.approx(1 / back.speedup_geomean)
    assert there.wilcoxon_p == pytest.approx(back.wilcoxon_p)
    assert (there.ci95 is None) == (back.ci95 is None)
    if there.ci95 and back.ci95:
        assert there.ci95 == pytest.approx((1 / back.ci95[1], 1 / back.ci95[0]), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(times)
def test_identical_runs_give_one(ours: list[list[int]]) -> None:
    comparison = compare(_runs(ours), _runs(ours))
    assert comparison.speedup_geomean == 1
    assert comparison.ci95 in (None, (1, 1))
    assert comparison.wilcoxon_p in (None, 1)


@settings(max_examples=25, deadline=None)
@given(times, st.integers(2, 50))
def test_a_reference_c_times_as_slow_gives_c(ours: list[list[int]], factor: int) -> None:
    comparison = compare(_runs(ours, factor), _runs(ours))
    assert comparison.speedup_geomean == pytest.approx(factor)
    if comparison.ci95 is not None:
        assert comparison.ci95 == pytest.approx((factor, factor))
