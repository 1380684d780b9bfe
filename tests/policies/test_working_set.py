from math import e
from typing import Any

import pytest
from tests.policies.factory import Cluster, engine, request, session, workflow

from saga.core.model import Engine
from saga.policies.working_set import WorkingSet

POLICY = WorkingSet(kappa=1.0, reserve=0.2)


def cluster_of(*engines: Engine, entitled: float = 0.0) -> Cluster:
    """Where sessions add 100 tokens a step and do ten on average, and so end at 1,000."""
    cluster = Cluster(engines=engines, entitled=entitled)
    graph = cluster.graphs.learn("agent")
    graph.output_tokens.add(40)
    for _ in range(3_000):
        for _ in range(9):
            graph.observe_step("shell", "shell", new_tokens=60)
        graph.observe_end("shell", 10)
    return cluster


def admits(
    *engines: Engine, prompt: int = 1_100, policy: WorkingSet = POLICY, entitled: float = 0.0
) -> bool:
    """A newcomer, by default with a prompt so long that no growth is expected."""
    verdict = policy.admit(request(prompt=prompt), cluster_of(*engines, entitled=entitled))
    assert verdict.reason
    return verdict.admit


@pytest.mark.parametrize(("committed", "fits"), [(7_899, True), (7_900, True), (7_901, False)])
def test_the_boundary_is_the_capacity(committed: int, fits: bool) -> None:
    """10,000 tokens; two sessions grow by 500 each, the newcomer needs 1,100."""
    busy = engine(committed_tokens=committed, growth_tokens=1_000, num_sessions=2)
    assert admits(busy) is fits


@pytest.mark.parametrize(("kappa", "fits"), [(0.75, False), (0.76, True), (1.5, True)])
def test_kappa_scales_the_capacity(kappa: float, fits: bool) -> None:
    busy = engine(committed_tokens=6_000, growth_tokens=500, num_sessions=1)  # in all 7,600
    assert admits(busy, policy=WorkingSet(kappa=kappa, reserve=0.0)) is fits


@pytest.mark.parametrize(("entitled", "fits"), [(1_099, False), (1_100, True)])
def test_the_reserve_is_for_tenants_below_their_share(entitled: float, fits: bool) -> None:
    full = engine(committed_tokens=9_000, num_sessions=1)
    assert not admits(full)
    assert admits(full, entitled=entitled) is fits
    overfull = engine(committed_tokens=11_000, num_sessions=1)
    assert not admits(overfull, entitled=1e9)


def test_growth_is_what_the_graph_expects() -> None:
    cluster = cluster_of(engine())
    grown = [POLICY.growth_tokens(session(), tokens, cluster) for tokens in (0, 500, 1_100, 9_000)]
    assert grown == pytest.approx([367, 106, 0, 0], abs=4), "1,000 / e, 1,000 / sqrt(e) - 500, ..."


def test_growth_before_anything_is_known() -> None:
    """20 steps of 600 tokens, or as many steps as were declared; the end is at most of these / e"""
    cluster = Cluster(engines=[engine()])
    assert POLICY.growth_tokens(session(), 0, cluster) == int(12_000 / e)
    declared = session(of=workflow(mean_steps=100.0))
    assert POLICY.growth_tokens(declared, 0, cluster) == int(60_000 / e)


def test_sessions_under_way_count_though_none_has_ended() -> None:
    """The first to end are the short ones: nobody should be taken in by them."""
    cluster = Cluster(engines=[engine()])
    before = POLICY.growth_tokens(session(), 0, cluster)
    graph = cluster.graphs.learn("agent")
    graph.output_tokens.add(200)
    for _ in range(1_000):
        graph.observe_step("shell", "shell", new_tokens=400)
    assert POLICY.growth_tokens(session(), 0, cluster) > 10 * before


def test_an_empty_engine_always_admits() -> None:
    assert admits(engine(), prompt=9_999)
    assert admits(engine(), policy=WorkingSet(kappa=0.001, reserve=0.0))


def test_one_engine_with_room_is_enough() -> None:
    full = engine("full", committed_tokens=10_000, num_sessions=1)
    assert not admits(full, full)
    assert admits(full, full, engine("some", committed_tokens=2_000, num_sessions=1))


def test_a_larger_newcomer_needs_more() -> None:
    busy = engine(committed_tokens=7_000, num_sessions=1)
    assert admits(busy, prompt=3_000)
    assert not admits(busy, prompt=3_001)


def test_how_long_an_absent_session_counts() -> None:
    cluster = Cluster(engines=[engine()])
    for seconds in range(1, 101):
        cluster.return_times.observe("shell", seconds * 1_000_000)
    policy = WorkingSet(absent_unknown_s=60.0, absent_floor_s=5.0)
    assert policy.absence_us(session(tool="shell"), cluster) == 95_000_000
    assert policy.absence_us(session(tool="new tool"), cluster) == 60_000_000
    assert policy.absence_us(session(tool=None), cluster) == 5_000_000, "it may be over"
    cluster.return_times.observe(None, 40_000_000)
    assert policy.absence_us(session(tool=None), cluster) == 40_000_000
    quick = WorkingSet(absent_percentile=0.5, absent_floor_s=60.0)
    assert quick.absence_us(session(tool="shell"), cluster) == 60_000_000


@pytest.mark.parametrize(
    "bad", [{"absent_percentile": 0.0}, {"absent_unknown_s": -1.0}, {"absent_floor_s": -1.0}]
)
def test_absences_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="absent_"):
        WorkingSet(**bad)
