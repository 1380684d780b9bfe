"""Every metric on an example small enough to compute by hand, and the laws beside them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.factory import MINUTE, SECOND, run, workflow

from saga.report.metrics import Summary, aggregate, summarise
from saga.report.records import EngineUsage, Outcome, RunRecord, TokenCounts, WorkflowRecord

HAND_MADE = run(
    [
        workflow(
            *("w0", 10),
            alone_s=5,
            expected_s=8,
            share_s=20,
            tenant="a",
            tenant_class="heavy",
            longest_wait_s=3,
            parts_s={"queue": 4, "prefill": 1, "decode": 3, "tool": 2},
        ),
        workflow(
            *("w1", 40),
            alone_s=10,
            expected_s=20,
            share_s=25,
            tenant="b",
            tenant_class="light",
            longest_wait_s=9,
            parts_s={"queue": 8, "prefill": 3, "regenerated": 9, "decode": 9, "subagents": 11},
        ),
        workflow("w2", None, tenant="a", tenant_class="heavy", longest_wait_s=70),
        workflow("w3", None, tenant="b", tenant_class="light", outcome=Outcome.REJECTED),
        workflow("w4", None, tenant="b", tenant_class="light", outcome=Outcome.TIMED_OUT),
        workflow("warm-up", 1_000, measured=False, longest_wait_s=1_000, tenant="c"),
    ],
    engines=[
        EngineUsage(
            engine="e0",
            capacity_tokens=100,
            window_us=10,
            active=300,
            waiting=200,
            dead=100,
            later_hit=150,
            busy_us=4,
        ),
        EngineUsage(
            engine="e1", capacity_tokens=100, window_us=30, active=300, waiting=400, busy_us=20
        ),
    ],
    tokens=TokenCounts(prompt=1_000, hit=600, host_hit=50, regenerated=250, new=100, output=480),
    ttft_s={"heavy": [1, 2, 5], "light": [3, 4]},
    deviation=0.25,
    start_us=MINUTE,
    end_us=5 * MINUTE,
    finished_in_window=6,
    evicted_tokens=77,
    num_evictions=7,
    num_steals=6,
    num_pauses=11,
    num_moves=5,
    num_preemptions=4,
    num_prefetches=3,
    num_excluded=2,
    regenerated_gpu_us=9 * SECOND,
)

BY_HAND = {
    "num_seeds": 1,
    "num_workflows": 5,
    "num_finished": 2,
    "num_rejected": 1,
    "num_timed_out": 1,
    "num_unfinished": 1,
    "num_excluded": 2,
    "tct_mean_s": 25,
    "tct_geomean_s": 20,  # sqrt(10 x 40)
    "tct_p50_s": 25,
    "tct_p95_s": 38.5,  # 10 + 0.95 x 30
    "tct_p99_s": 39.7,
    "slowdown_mean": 3,  # (10/5 + 40/10) / 2
    "slowdown_p99": 3.98,
    "slowdown_mean_by_class": {"heavy": 2, "light": 4},
    "slowdown_p99_by_class": {"heavy": 2, "light": 4},
    "ttft_p50_s": 3,
    "ttft_p99_s": 4.96,
    "ttft_p99_s_by_class": {"heavy": 4.94, "light": 3.99},  # 2 + 0.98 x 3; 3 + 0.99 x 1
    "longest_wait_s": 70,  # of one that did not finish
    "longest_wait_s_by_class": {"heavy": 70, "light": 9},
    "split_s": {
        "queue": 6,
        "prefill": 2,
        "regenerated": 4.5,
        "decode": 6,
        "tool": 1,
        "subagents": 5.5,
    },
    "split_share": {
        "queue": 0.24,
        "prefill": 0.08,
        "regenerated": 0.18,
        "decode": 0.24,
        "tool": 0.04,
        "subagents": 0.22,
    },
    "hit_rate": 0.65,
    "regenerated_fraction": 0.25,
    "regenerated_gpu_s": 9,
    "evicted_tokens": 77,
    "kv_active": 0.15,  # 600 of 100 x 10 + 100 x 30
    "kv_waiting": 0.15,
    "kv_dead": 0.025,
    "kv_used": 0.325,
    "kv_useful": 0.1875,
    "throughput_tasks_per_min": 1.5,
    "throughput_output_tokens_per_s": 2,
    "engine_busy": 0.6,
    "num_evictions": 7,
    "num_steals": 6,
    "num_pauses": 11,
    "num_moves": 5,
    "num_preemptions": 4,
    "num_prefetches": 3,
    "slo_attainment": 0.2,  # w0: 10 <= 12; w1: 40 > 30; three misses
    "slo_by_class": {"heavy": 0.5, "light": 0},
    "slo_alone_1_5": 0,
    "slo_alone_2": 0.2,
    "slo_alone_3": 0.2,
    "fairness_jain": 0.9,  # (2 + 4)^2 / (2 x (4 + 16))
    "fairness_max_min": 2,
    "finish_time_fairness_p99": 1.589,  # 10/20 and 40/25: 0.5 + 0.99 x 1.1
    "finish_time_fairness_max": 1.6,
    "finish_time_fairness_p99_by_tenant": {"a": 0.5, "b": 1.6},
    "finish_time_fairness_max_by_tenant": {"a": 0.5, "b": 1.6},
    "afs_deviation_ratio": 0.25,
    "num_starved_tenants": 0,
}


@pytest.mark.parametrize("metric", [field.name for field in fields(Summary)])
def test_each_metric_is_what_a_person_computes(metric: str) -> None:
    assert getattr(summarise(HAND_MADE), metric) == pytest.approx(BY_HAND[metric], rel=1e-12)


def test_nothing_finished_gives_none_and_counts() -> None:
    summary = summarise(run([workflow("w", None)], engines=[], end_us=MINUTE))
    assert summary.num_unfinished == 1
    assert (summary.tct_mean_s, summary.tct_geomean_s, summary.split_s) == (None, None, None)
    assert summary.fairness_jain is None
    assert summary.num_starved_tenants == 1
    assert summary.slo_attainment == 0
    assert summary.throughput_tasks_per_min == 0
    assert summary.throughput_output_tokens_per_s is None
    assert summary.kv_used is None


@pytest.mark.parametrize("runs", [[], [run()], [run(), run(seed=2)]])
def test_empty_input_is_strict_json(runs: list[RunRecord]) -> None:
    summary = aggregate(runs)
    json.dumps(asdict(summary), allow_nan=False)
    assert summary.hit_rate is None


def test_quantiles_pool_the_workflows_of_all_seeds() -> None:
    fast = run([workflow(f"w{i}", 1) for i in range(3)], seed=1)
    slow = run([workflow("w0", 100)], seed=2)
    summary = aggregate([fast, slow])
    assert summary.num_seeds == 2
    assert summary.tct_p50_s == 1
    assert summary.tct_mean_s == pytest.approx(103 / 4)


def test_fractions_are_weighted_by_tokens_and_by_memory_times_time() -> None:
    small = run(
        tokens=TokenCounts(prompt=100, hit=100),
        engines=[EngineUsage(engine="e", capacity_tokens=10, window_us=10, active=100)],
        end_us=MINUTE,
        finished_in_window=5,
    )
    large = run(
        seed=2,
        tokens=TokenCounts(prompt=300, new=300),
        engines=[EngineUsage(engine="e", capacity_tokens=10, window_us=90)],
        end_us=3 * MINUTE,
        finished_in_window=3,
    )
    summary = aggregate([small, large])
    assert summary.hit_rate == 0.25
    assert summary.kv_active == 0.1
    assert summary.throughput_tasks_per_min == 2


def test_fairness_is_averaged_over_seeds_not_pooled() -> None:
    """Each seed neglects the other tenant; pooled, both would look the same."""
    first = run([workflow("w0", 10, tenant="a"), workflow("w1", 30, tenant="b")])
    second = run([workflow("w0", 30, tenant="a"), workflow("w1", 10, tenant="b")], seed=2)
    summary = aggregate([first, second])
    assert summary.fairness_max_min == pytest.approx(3)
    assert summary.fairness_jain == pytest.approx(0.8)


def test_one_tenant_is_compared_workflow_by_workflow() -> None:
    summary = summarise(run([workflow("w0", 10), workflow("w1", 30)]))
    assert summary.fairness_max_min == pytest.approx(3)


def test_a_starved_tenant_makes_fairness_undefined_in_every_aggregate() -> None:
    starved = run([workflow("w0", 10, tenant="a"), workflow("w1", None, tenant="b")])
    fair = run([workflow("w0", 10, tenant="a"), workflow("w1", 10, tenant="b")], seed=2)
    assert summarise(fair).fairness_jain == 1
    assert aggregate([starved, fair]).fairness_jain is None
    assert aggregate([starved, fair]).num_starved_tenants == 1


@pytest.mark.parametrize(("tct_s", "met"), [(15, 1.0), (15.000001, 0.0)])
def test_the_slo_limit_itself_is_met(tct_s: float, met: float) -> None:
    summary = summarise(run([workflow("w", tct_s, alone_s=10, expected_s=10)]))
    assert summary.slo_attainment == met
    assert summary.slo_alone_1_5 == met


def test_references_that_are_not_known_are_not_judged() -> None:
    summary = summarise(run([workflow("w", 10, alone_s=0, expected_s=0)]))
    assert summary.slo_attainment is summary.slo_alone_2 is summary.slowdown_mean is None
    assert summary.fairness_jain is None
    assert summary.slo_by_class == {}
    assert summary.tct_mean_s == 10


@pytest.mark.parametrize("tct_s", [0, -1])
def test_a_finished_workflow_without_a_positive_tct_is_refused(tct_s: float) -> None:
    with pytest.raises(ValueError, match="workflow 'odd' is finished with a TCT of"):
        summarise(run([workflow("odd", tct_s)]))


def test_a_finished_workflow_without_an_end_is_refused() -> None:
    odd = workflow("odd", 10)
    odd.finished_us = None
    with pytest.raises(ValueError, match="'odd' is finished with a TCT of None us"):
        _ = odd.finished_tct_us


outcomes = st.sampled_from([Outcome.REJECTED, Outcome.TIMED_OUT, Outcome.UNFINISHED])


@st.composite
def workflows(draw: st.DrawFn) -> list[WorkflowRecord]:
    times = draw(st.lists(st.one_of(st.none(), st.integers(1, 10_000)), max_size=25))
    return [
        workflow(
            f"w{i}",
            time,
            alone_s=draw(st.integers(1, 100)),
            tenant=draw(st.sampled_from("ab")),
            measured=draw(st.booleans()),
            outcome=Outcome.FINISHED if time else draw(outcomes),
        )
        for i, time in enumerate(times)
    ]


@given(workflows())
def test_laws_of_every_run(records: list[WorkflowRecord]) -> None:
    summary = summarise(run(records))
    assert summary.num_workflows == (
        summary.num_finished + summary.num_rejected + summary.num_timed_out + summary.num_unfinished
    )
    if summary.num_finished:
        assert summary.tct_geomean_s is not None and summary.tct_mean_s is not None
        assert summary.tct_geomean_s <= summary.tct_mean_s * (1 + 1e-9)
        assert summary.split_s is not None and summary.split_share is not None
        assert math.isclose(sum(summary.split_s.values()), summary.tct_mean_s)
        assert math.isclose(sum(summary.split_share.values()), 1)
    if summary.num_workflows:
        levels = (summary.slo_alone_1_5, summary.slo_alone_2, summary.slo_alone_3)
        shares = [level for level in levels if level is not None]
        assert len(shares) == 3
        assert shares == sorted(shares)
    json.dumps(asdict(summary), allow_nan=False)


@given(workflows())
def test_a_seed_seen_twice_changes_no_mean_and_doubles_counts(
    records: list[WorkflowRecord],
) -> None:
    once, twice = summarise(run(records)), aggregate([run(records), run(records, seed=2)])
    assert twice.num_workflows == 2 * once.num_workflows
    for metric in ("tct_mean_s", "tct_geomean_s", "slo_attainment", "fairness_jain"):
        assert getattr(twice, metric) == pytest.approx(getattr(once, metric))
