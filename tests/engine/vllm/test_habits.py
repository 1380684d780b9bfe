"""What is learned of sessions' comings and goings."""

from __future__ import annotations

import pytest

from saga.engine.vllm.habits import MAX_SESSIONS, Habits
from saga.policies.tool_ttl import ToolTtl

S = 1_000_000
TTL = ToolTtl(percentile=0.95, max_ttl_s=300, floor_s=1.0)


def learned(*gaps_s: float, sessions: int = 1, ttl: ToolTtl | None = TTL) -> Habits:
    """Sessions that were away for so long, one step after another, and then ended."""
    habits, now = Habits(ttl), 0
    for number in range(sessions):
        name = f"s{number}"
        habits.arrived(name, 100, now)
        habits.left(name, 100, now)
        for gap in gaps_s:
            now += int(gap * S)
            habits.arrived(name, 150, now)
            habits.left(name, 100, now)
        habits.ended(name)
    return habits


def test_as_long_as_nobody_came_back_the_longest_time_is_given() -> None:
    assert Habits(TTL).hold(1_000, None) == (300 * S, 1.0)


def test_then_a_high_quantile_of_the_return_times() -> None:
    assert learned(*range(1, 101)).hold(1_000, None)[0] == 95 * S


@pytest.mark.parametrize(("gap_s", "expected_s"), [(0.01, 1), (5, 5), (1_000, 300)])
def test_within_the_bounds_of_the_policy(gap_s: float, expected_s: float) -> None:
    habits = Habits(TTL)
    habits.arrived("s", 100, 0)
    habits.left("s", 100, 0)
    habits.arrived("s", 100, int(gap_s * S))
    assert habits.hold(1_000, None)[0] == expected_s * S


@pytest.mark.parametrize(("return_s", "expected_s"), [(0.1, 1), (7, 14), (1_000, 300)])
def test_what_a_client_expects_goes_before_what_was_learned(
    return_s: float, expected_s: float
) -> None:
    assert learned(50).hold(1_000, return_s)[0] == expected_s * S


def test_without_a_policy_nothing_is_kept_and_still_scored() -> None:
    assert Habits(None).hold(1_000, 5.0) == (0, 1.0)


def test_the_score_is_the_chance_of_another_step_times_the_overlap() -> None:
    habits = learned(1, 1, 1, sessions=40)
    score = habits.hold(950, None)[1]
    assert score == pytest.approx(0.75 * 950 / 1_000), "3 of 4 steps are followed by 50 new tokens"


def test_sessions_that_stay_away_for_longer_than_anything_is_kept_have_ended() -> None:
    habits = Habits(TTL)
    for number in range(40):
        habits.arrived(f"s{number}", 100, number)
        habits.left(f"s{number}", 100, number)
    assert habits.hold(1_000, None)[1] == 1.0
    habits.left("last", 100, 301 * S)
    assert not habits.knows("s0")
    assert habits.hold(1_000, None)[1] == 0.0


def test_requests_of_one_session_at_the_same_time_are_one_stay() -> None:
    habits = Habits(TTL)
    habits.arrived("s", 100, 0)
    habits.arrived("s", 100, 9 * S)
    habits.left("s", 100, 10 * S)
    habits.arrived("s", 100, 15 * S)
    assert habits.hold(1_000, None)[0] == 5 * S


def test_memory_is_bounded() -> None:
    habits = Habits(TTL)
    for number in range(MAX_SESSIONS + 10):
        habits.left(f"s{number}", 100, 0)
    assert not habits.knows("s9")
    assert habits.knows("s10")
