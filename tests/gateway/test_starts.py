"""When an engine begins with a request: what can be said from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.starts import FEWEST_TOKENS, FULL, STEP_TOKENS, Expected, PrefillQueue

TOKENS = st.integers(0, 200_000)
PAUSE = st.integers(0, 5_000_000)
SENDS = st.lists(st.tuples(PAUSE, TOKENS), max_size=50)


def prefill(queue: PrefillQueue, tokens: int, now: int) -> int:
    """When a request sent now is prefilled."""
    expected = queue.send(tokens, now)
    assert expected is not None
    return expected.prefill


def test_an_idle_engine_begins_at_once() -> None:
    assert PrefillQueue().send(10_000, now=7) == Expected(begins=7, prefill=7)


def test_the_next_request_is_prefilled_after_the_one_before_it() -> None:
    queue = PrefillQueue(us_per_token=20.0)
    assert prefill(queue, 1_000, now=0) == 0
    assert prefill(queue, 500, now=5_000) == 20_000
    assert prefill(queue, 1, now=30_000) == 30_000
    assert prefill(queue, 1, now=90_000) == 90_000, "long idle"


def test_short_prompts_share_a_step() -> None:
    """Else an engine that takes many of them at once would get them one by one."""
    queue = PrefillQueue(us_per_token=20.0)
    begins = [queue.send(STEP_TOKENS // 4, now=0) for _ in range(6)]
    assert [one.begins for one in begins if one] == [0, 0, 0, 0, 0, 20 * STEP_TOKENS // 4]


def test_a_long_prompt_lets_the_next_one_begin_in_its_last_step() -> None:
    queue = PrefillQueue(us_per_token=20.0)
    queue.send(STEP_TOKENS + 5_000, now=0)
    assert queue.send(1, now=0) == Expected(begins=100_000, prefill=20 * (STEP_TOKENS + 5_000))


@given(SENDS)
def test_requests_begin_in_the_order_in_which_they_are_sent_and_not_before(
    sends: list[tuple[int, int]],
) -> None:
    queue, now, last = PrefillQueue(), 0, 0
    for pause, tokens in sends:
        now += pause
        expected = queue.send(tokens, now)
        assert expected is not None
        assert now <= expected.begins <= expected.prefill
        assert expected.begins >= last
        last = expected.begins


@given(SENDS)
def test_an_engine_is_never_thought_to_be_busy_for_longer_than_its_prompts_take(
    sends: list[tuple[int, int]],
) -> None:
    queue, now = PrefillQueue(us_per_token=20.0), 0
    for pause, tokens in sends:
        now += pause
        queue.send(tokens, now)
    assert queue.busy_until <= now + 20 * sum(tokens for _, tokens in sends)


@pytest.mark.parametrize("used", [FULL, 1.0, None])
def test_nothing_is_assumed_while_requests_wait_for_memory(used: float | None) -> None:
    queue = PrefillQueue()
    queue.note_report(1, used)
    assert queue.send(100_000, now=5) is None
    queue.note_report(0, used)
    assert queue.send(1, now=6) == Expected(6, 6)


def test_who_waits_in_an_engine_with_free_memory_waits_for_a_step_only() -> None:
    """Else one look at a busy engine would hold all others back until the next one."""
    queue = PrefillQueue()
    queue.note_report(5, 0.3)
    assert queue.send(1, now=6) == Expected(6, 6)


@given(st.integers(FEWEST_TOKENS, 200_000), st.floats(0.2, 2_000.0))
def test_the_pace_of_an_engine_is_learned(tokens: int, pace: float) -> None:
    queue, now = PrefillQueue(), 0
    for _ in range(60):
        began = prefill(queue, tokens, now)
        now = max(now, began) + int(tokens * pace)
        queue.first_token(tokens, began, now)
        now += 10**10
    slack = 1 / tokens  # times are whole microseconds
    assert abs(queue.us_per_token - pace) < 0.01 * pace + slack


@given(st.lists(st.tuples(TOKENS, PAUSE, st.integers(-(10**9), 10**9)), max_size=50))
def test_whatever_is_measured_no_pace_is_free_or_negative(
    measured: list[tuple[int, int, int]],
) -> None:
    """A first token may come before its request is thought to have begun."""
    queue = PrefillQueue()
    for tokens, now, late in measured:
        queue.first_token(tokens, now + late, now)
        assert queue.us_per_token > 0


@given(st.integers(0, FEWEST_TOKENS - 1), PAUSE)
def test_short_prefills_teach_nothing(tokens: int, took: int) -> None:
    queue = PrefillQueue()
    before = queue.us_per_token
    queue.first_token(tokens, 0, took)
    assert queue.us_per_token == before


@given(st.integers(1, 200_000))
def test_a_first_token_that_comes_early_frees_the_engine(tokens: int) -> None:
    """Else a pace that was learned while the engine was slow would hold requests back."""
    queue = PrefillQueue(us_per_token=10_000.0)
    began = prefill(queue, tokens, now=0)
    assert began == 0
    queue.first_token(tokens, began, now=50)
    assert prefill(queue, 1, now=51) == 51


def test_those_sent_after_it_still_count() -> None:
    queue = PrefillQueue(us_per_token=100.0)
    queue.send(100, now=0)
    queue.send(100, now=0)
    queue.first_token(100, 0, now=4_000)  # 6,000 us early
    assert prefill(queue, 1, now=4_000) == 14_000


def test_whole_answers_can_only_say_that_an_engine_is_faster() -> None:
    """Without a single stream a small model's engine would be thought busy for ever."""
    queue, now = PrefillQueue(us_per_token=20.0), 0
    for _ in range(100):
        began = prefill(queue, 10_000, now)
        now = max(now, began) + 30_000  # with its decoding: 3 us per token
        queue.answered(10_000, began, now)
    assert queue.us_per_token < 3.1
    assert queue.busy_until <= now
    before = queue.us_per_token
    queue.answered(10_000, now, now + 10**9)
    assert queue.us_per_token == before, "a long answer says nothing"
