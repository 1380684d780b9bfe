"""w = home if load(home) < theta and the session's KV is there, else the least loaded engine."""

from dataclasses import replace
from typing import Any

import pytest
from tests.policies.factory import Cluster, engine, request, session

from saga.core.model import Engine
from saga.core.policy import Route
from saga.policies.affinity_threshold import AffinityThreshold


def home_with(running: int, used: int, **now: Any) -> Engine:
    """Load 0.05 per running request of 10 seats, and 0.5 per whole memory of 10,000 tokens."""
    return engine("home", num_running=running, resident_tokens=used, **now)


def route(policy: AffinityThreshold, home: Engine | None, *others: Engine, kv: int = 500) -> Route:
    asked = request(of=session(home=home, resident_tokens=kv))
    engines = [*others, *([home] if home is not None and not home.draining else [])]
    answer = policy.route(asked, Cluster(engines=engines))
    assert answer is not None
    return answer


IDLE = engine("idle")


def test_home_below_theta_keeps_its_session_though_another_is_idle() -> None:
    home = home_with(running=10, used=5_800)  # 0.5 + 0.29 = 0.79
    assert route(AffinityThreshold(), home, IDLE).engine is home


def test_home_at_theta_loses_it() -> None:
    home = home_with(running=10, used=6_000)  # 0.5 + 0.3 = 0.8
    answer = route(AffinityThreshold(), home, IDLE)
    assert (answer.engine.id, answer.move_kv) == ("idle", False)


def test_theta_is_a_parameter() -> None:
    home = home_with(running=4, used=2_000)  # 0.2 + 0.1 = 0.3
    assert route(AffinityThreshold(theta=0.31), home, IDLE).engine is home
    assert route(AffinityThreshold(theta=0.29), home, IDLE).engine is IDLE


def test_queued_requests_load_an_engine_too() -> None:
    home = home_with(running=10, used=5_800)
    home.num_queued = 1  # 0.79 + 0.05
    assert route(AffinityThreshold(), home, IDLE).engine is IDLE


def test_without_kv_a_home_is_nothing_special() -> None:
    home = home_with(running=2, used=0)
    assert route(AffinityThreshold(), home, IDLE, kv=0).engine is IDLE
    assert route(AffinityThreshold(), home, IDLE, kv=1).engine is home


def test_a_new_session_goes_to_the_least_loaded() -> None:
    busy = engine("busy", num_running=3)
    assert route(AffinityThreshold(), None, busy, IDLE, kv=0).engine is IDLE


def test_a_draining_home_is_left() -> None:
    home = home_with(running=1, used=500, draining=True)
    assert route(AffinityThreshold(move_kv=True), home, IDLE) == Route(
        IDLE, "new session or no KV left"
    )


@pytest.mark.parametrize(("margin", "stays"), [(0.0, False), (0.5, False), (0.61, True)])
def test_margin_is_what_leaving_must_gain(margin: float, stays: bool) -> None:
    home, other = home_with(running=10, used=8_000), engine("other", num_running=6)
    cold = route(AffinityThreshold(cold_margin=margin), home, other)  # 0.9 against 0.3
    moved = route(AffinityThreshold(margin=margin, move_kv=True), home, other)
    assert cold.engine is moved.engine is (home if stays else other)
    assert (cold.move_kv, moved.move_kv) == (False, not stays)


@pytest.mark.parametrize(("mine", "theirs"), [(None, "a"), ("a", None), (None, None), ("a", "b")])
def test_kv_follows_only_where_it_can_be_had(mine: str | None, theirs: str | None) -> None:
    home, other = home_with(running=10, used=8_000), engine("other", shared_kv=theirs)
    home.shared_kv = mine
    policy = AffinityThreshold(move_kv=True, margin=0.0, cold_margin=0.5)
    answer = route(policy, home, other)
    assert (answer.engine, answer.move_kv) == (other, False), "0.9 against 0: worth computing"
    assert route(replace(policy, cold_margin=1.0), home, other).engine is home


def test_margin_does_not_hold_back_a_session_without_kv() -> None:
    home, other = home_with(running=10, used=8_000), engine("other", num_running=6)
    assert route(AffinityThreshold(margin=5.0), home, other, kv=0).engine is other


def test_kv_moves_along_if_it_may_and_if_there_is_any() -> None:
    policy, home = AffinityThreshold(move_kv=True), home_with(running=10, used=8_000)
    assert route(policy, home, IDLE).move_kv
    assert not route(policy, home, IDLE, kv=0).move_kv
    assert not route(policy, None, IDLE, kv=0).move_kv


def test_placement_may_go_by_another_load_than_leaving() -> None:
    home = home_with(running=10, used=8_000)
    full = engine("full", committed_tokens=9_000, num_sessions=1)  # nothing runs there
    busy = engine("busy", num_running=5)
    assert route(AffinityThreshold(), home, full, busy).engine is full
    assert route(AffinityThreshold(placement="committed"), home, full, busy).engine is busy


def test_alone_an_overloaded_home_stays_home() -> None:
    home = home_with(running=10, used=10_000)
    assert route(AffinityThreshold(), home).engine is home
    answer = route(AffinityThreshold(move_kv=True), home)
    assert answer.engine is home
