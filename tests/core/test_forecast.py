"""Forecasts of one agent type: honest distributions, learned online, and apart from other types."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.core.forecast import MAX_TYPES, Forecaster, Forecasts, Progress
from saga.core.return_times import NO_TOOL

SECOND = 1_000_000
STEPS = st.tuples(
    st.one_of(st.none(), st.text(max_size=70)),
    st.integers(0, 10**9),
    st.integers(0, 10**13),
    st.integers(0, 10**9),
)
"""Tool, output tokens, return time, new tokens."""


def play(model: Forecaster, steps: list[tuple[str | None, int, int, int]]) -> Progress:
    progress = Progress()
    for tool, output, gap_us, new_tokens in steps:
        model.step(progress, tool, output)
        model.returned(progress, gap_us, new_tokens)
    return progress


@settings(max_examples=60)
@given(st.lists(st.lists(STEPS, max_size=8), max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_forecasts_of_any_traffic_are_distributions(
    sessions: list[list[tuple[str | None, int, int, int]]], one: float, two: float
) -> None:
    model, low, high = Forecaster(), min(one, two), max(one, two)
    for steps in [*sessions, []]:
        progress = play(model, steps)
        for told in (
            model.return_time(progress),
            model.tool_time(progress),
            model.output_tokens(progress),
            model.new_tokens(progress),
        ):
            assert 0 < told.quantile(low) <= told.quantile(high)
            assert 0 <= told.chance_by(told.quantile(low)) <= 1
            assert told.typical > 0
            assert 0 <= told.reliability < 1
        left = model.steps_left(progress)
        assert 0 <= left.quantile(low) <= left.quantile(high)
        assert model.next_tool(progress) != NO_TOOL
        model.ended(progress)


def test_tools_are_told_apart_and_so_are_persons() -> None:
    model = Forecaster()
    for _ in range(60):
        play(model, [("grep", 20, SECOND // 5, 100), ("pytest", 20, 40 * SECOND, 900)])
        play(model, [(None, 20, 300 * SECOND, 50)])
    typical = {}
    for tool in ("grep", "pytest", None):
        progress = Progress()
        model.step(progress, tool, 20)
        typical[tool] = model.return_time(progress).typical
    assert typical["grep"] == pytest.approx(SECOND / 5, rel=0.3)
    assert typical["pytest"] == pytest.approx(40 * SECOND, rel=0.3)
    assert typical[None] == pytest.approx(300 * SECOND, rel=0.3)


def test_a_slow_session_is_expected_to_stay_slow() -> None:
    model, chance = Forecaster(), Random(7)
    for _ in range(60):
        play(model, [("t", 20, int(SECOND * chance.uniform(0.9, 1.1)), 10)] * 4)
    slow = play(model, [("t", 20, 3 * SECOND, 10)] * 6)
    model.step(slow, "t", 20)
    usual = Progress()
    model.step(usual, "t", 20)
    assert model.return_time(slow).typical > 1.3 * model.return_time(usual).typical


def test_what_was_waited_for_already_is_taken_into_account() -> None:
    model = Forecaster()
    for number in range(200):
        play(model, [("t", 20, SECOND if number % 2 else 100 * SECOND, 10)])
    progress = Progress()
    model.step(progress, "t", 20)
    told = model.return_time(progress)
    assert told.chance_by(5 * SECOND) == pytest.approx(0.5, abs=0.1)
    waiting = told.after(5 * SECOND)
    assert waiting.quantile(0.05) > 50 * SECOND
    assert waiting.chance_by(5 * SECOND) == 0
    assert waiting.chance_by(200 * SECOND) > 0.9


def test_steps_left_are_those_of_sessions_that_went_on() -> None:
    model = Forecaster()
    for number in range(60):
        progress = play(model, [("t", 20, SECOND, 10)] * (5 if number % 2 else 20))
        model.ended(progress)
    progress = play(model, [("t", 20, SECOND, 10)] * 8)
    left = model.steps_left(progress)
    assert left.quantile(0.5) == 12
    assert left.reliability > 0.8


def test_agent_types_learn_nothing_from_each_other() -> None:
    forecasts = Forecasts()
    for _ in range(100):
        play(forecasts.of("red/agent"), [("secret", 20, 7 * SECOND, 10)] * 3)
    other, progress = forecasts.of("blue/agent"), Progress()
    assert other.next_labels(progress) == {}
    other.step(progress, "secret", 20)
    assert other.return_time(progress).reliability == 0


def test_agent_types_are_bounded_and_nobodys_make_room_for_anothers() -> None:
    forecasts = Forecasts()
    mine = forecasts.of("red/agent")
    made: list[str] = []
    forecasts.made = lambda kind, new: made.append(kind)
    for number in range(200):
        forecasts.of(f"blue/type {number}")
    assert len(made) == 200
    kept = [kind for kind in made if forecasts.peek(kind) is not None]
    assert MAX_TYPES // 2 <= len(kept) <= MAX_TYPES
    assert forecasts.peek("red/agent") is mine
    assert forecasts.peek("red/other") is None
    forecasts.begin_anew("red/agent")
    assert forecasts.of("red/agent") is not mine


def test_context_that_is_cut_is_not_reused() -> None:
    model = Forecaster()
    for _ in range(100):
        progress = Progress()
        for tool, cut in (("read", False), ("compact", True), ("read", False)):
            model.step(progress, tool, 100)
            model.returned(progress, SECOND, 200, cut=cut)
    progress = Progress()
    model.step(progress, "read", 100)
    kept = model.p_reuse(progress, 10_000)
    model.step(progress, "compact", 100)
    assert kept > 0.9
    assert model.p_reuse(progress, 10_000) < 0.2
    assert kept > model.p_reuse(play(model, [("read", 100, SECOND, 200)]), 100), "less to be found"


def test_work_left_grows_with_what_it_must_not_exceed() -> None:
    model = Forecaster()
    for number in range(60):
        model.ended(play(model, [("t", 50, SECOND, 300)] * (4 + number % 20)))
    progress = play(model, [("t", 50, SECOND, 300)] * 2)
    likely, most = model.work_left(progress, 0.5), model.work_left(progress, 0.95)
    assert 2 <= likely.steps < most.steps <= 21
    assert likely.new_tokens == pytest.approx(300 * likely.steps, rel=0.2)
    assert likely.output_tokens == pytest.approx(50 * likely.steps, rel=0.2)
