from typing import Any

import pytest
from tests.policies.factory import Cluster, engine, request, session

from saga.core.model import Engine
from saga.policies.working_set import WorkingSet

POLICY = WorkingSet(kappa=1.0, growth_tokens=500)


def admits(*engines: Engine, prompt: int = 1_000, policy: WorkingSet = POLICY) -> bool:
    verdict = policy.admit(request(prompt=prompt), Cluster(engines=engines))
    assert verdict.reason
    return verdict.admit


@pytest.mark.parametrize(("committed", "fits"), [(7_499, True), (7_500, True), (7_501, False)])
def test_the_boundary_is_the_capacity(committed: int, fits: bool) -> None:
    """10,000 tokens; two sessions grow by 500 each, the newcomer needs 1,000 + 500."""
    assert admits(engine(committed_tokens=committed, num_sessions=2)) is fits


@pytest.mark.parametrize(("kappa", "fits"), [(0.79, False), (0.8, True), (1.5, True)])
def test_kappa_scales_the_capacity(kappa: float, fits: bool) -> None:
    busy = engine(committed_tokens=6_000, num_sessions=1)  # with growth and newcomer 8,000
    assert admits(busy, policy=WorkingSet(kappa=kappa, growth_tokens=500)) is fits


def test_growth_counts_per_session() -> None:
    few = engine(committed_tokens=5_000, num_sessions=7)  # 5,000 + 3,500 + 1,500
    many = engine(committed_tokens=5_000, num_sessions=8)
    assert admits(few)
    assert not admits(many)


def test_an_empty_engine_always_admits() -> None:
    assert admits(engine(), prompt=9_999)
    assert admits(engine(), policy=WorkingSet(kappa=0.001))


def test_one_engine_with_room_is_enough() -> None:
    full = engine("full", committed_tokens=10_000, num_sessions=1)
    assert not admits(full, full)
    assert admits(full, full, engine("some", committed_tokens=2_000, num_sessions=1))


def test_a_larger_newcomer_needs_more() -> None:
    busy = engine(committed_tokens=6_000, num_sessions=1)
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
