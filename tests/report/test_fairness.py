"""How tenants fare beside each other: on paper, and the laws of the indices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.factory import run, workflow

from saga.report.fairness import (
    by_class,
    each,
    finish_time_fairness,
    jain_index,
    max_min_ratio,
    slowdown,
)
from saga.report.metrics import aggregate, summarise
from saga.report.records import Outcome

positive = st.floats(min_value=1e-3, max_value=1e6)
times = st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)), min_size=1)


@given(st.lists(positive, min_size=1, max_size=20), positive)
def test_jain_is_between_1_over_n_and_1_and_has_no_unit(values: list[float], unit: float) -> None:
    index = jain_index(values)
    assert index is not None
    assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9
    assert jain_index([unit * value for value in values]) == pytest.approx(index)


@given(positive, st.integers(1, 10))
def test_equal_values_are_perfectly_fair(value: float, count: int) -> None:
    assert jain_index([value] * count) == pytest.approx(1)
    assert max_min_ratio([value] * count) == 1


def test_one_taking_everything_is_1_over_n() -> None:
    assert jain_index([7, 0, 0, 0]) == 0.25
    assert jain_index([]) is max_min_ratio([]) is None


def test_who_finishes_as_in_a_slice_of_its_own_has_a_rho_of_1() -> None:
    assert finish_time_fairness(workflow(tct_s=30, alone_s=10, share_s=30)) == 1
    assert finish_time_fairness(workflow(tct_s=15, alone_s=10, share_s=30)) == 0.5
    assert finish_time_fairness(workflow(tct_s=90, alone_s=10, share_s=30)) == 3


def test_what_did_not_finish_or_whose_share_is_unknown_has_no_rho() -> None:
    late = workflow(tct_s=None, share_s=30, outcome=Outcome.TIMED_OUT)
    assert finish_time_fairness(late) is None
    assert finish_time_fairness(workflow(tct_s=30)) is None
    summary = summarise(run([late, workflow(tct_s=30)]))
    assert summary.finish_time_fairness_p99 is summary.finish_time_fairness_max is None
    assert summary.finish_time_fairness_max_by_tenant == {}


@given(times)
def test_rho_of_a_single_tenant_is_the_slowdown(pairs: list[tuple[int, int]]) -> None:
    """Its share is the whole engine, so that both references are the same."""
    workflows = [
        workflow(f"w{i}", tct, alone_s=alone, share_s=alone) for i, (tct, alone) in enumerate(pairs)
    ]
    summary = summarise(run(workflows))
    assert summary.finish_time_fairness_p99 == summary.slowdown_p99
    assert summary.finish_time_fairness_max_by_tenant == {"t": summary.finish_time_fairness_max}
    assert summary.slowdown_mean_by_class == {"default": summary.slowdown_mean}


@given(times, st.lists(st.sampled_from("abc"), min_size=1))
def test_laws_of_groups(pairs: list[tuple[int, int]], names: list[str]) -> None:
    """The worst of all is the worst of some tenant; a mean lies between those of the classes."""
    workflows = [
        workflow(
            f"w{i}",
            tct,
            alone_s=alone,
            share_s=2 * alone,
            tenant=names[i % len(names)],
            tenant_class=names[i % len(names)].upper(),
        )
        for i, (tct, alone) in enumerate(pairs)
    ]
    summary = summarise(run(workflows))
    worst = summary.finish_time_fairness_max_by_tenant
    assert max(worst.values()) == summary.finish_time_fairness_max
    assert all(summary.finish_time_fairness_p99_by_tenant[name] <= worst[name] for name in worst)
    means = summary.slowdown_mean_by_class
    assert set(means) == {one.tenant_class for one in workflows}
    assert summary.slowdown_mean is not None
    slack = 1 + 1e-9
    assert min(means.values()) / slack <= summary.slowdown_mean <= max(means.values()) * slack


def test_groups_pool_the_workflows_of_all_seeds_and_are_in_order() -> None:
    seeds = [
        run([workflow("w", tct, tenant_class=name)], seed=seed, ttft_s={name: [tct]})
        for seed, (name, tct) in enumerate([("b", 10), ("b", 30), ("a", 20)])
    ]
    summary = aggregate(seeds)
    assert list(summary.slowdown_mean_by_class.items()) == [("a", 2), ("b", 2)]
    assert list(summary.ttft_p99_s_by_class) == ["a", "b"]
    assert summary.ttft_p99_s_by_class["b"] == pytest.approx(29.8)


def test_a_class_of_which_nothing_finished_has_waits_and_misses_but_no_slowdown() -> None:
    stuck = workflow("w1", None, tenant_class="stuck", longest_wait_s=50)
    summary = summarise(run([workflow("w0", 10, tenant_class="fine"), stuck]))
    assert summary.slowdown_mean_by_class == {"fine": 1}
    assert summary.longest_wait_s_by_class == {"fine": 0, "stuck": 50}
    assert summary.slo_by_class == {"fine": 1, "stuck": 0}


def test_warm_up_is_in_no_group() -> None:
    warm = workflow("w1", 10, tenant_class="warm", measured=False, longest_wait_s=9, share_s=1)
    summary = summarise(run([workflow("w0", 10), warm]))
    assert list(summary.longest_wait_s_by_class) == ["default"]
    assert summary.finish_time_fairness_max is None


def test_the_deviation_is_the_largest_of_the_seeds_that_have_one() -> None:
    runs = [run(deviation=0.2), run(deviation=0.7), run()]
    assert aggregate(runs).afs_deviation_ratio == 0.7
    assert aggregate([run(), run()]).afs_deviation_ratio is None


def test_a_group_without_a_number_is_left_out() -> None:
    groups = by_class([workflow("w0", 10), workflow("w1", None, tenant_class="stuck")], slowdown)
    assert list(groups) == ["default"]
    assert each(groups, lambda values: None) == {}
