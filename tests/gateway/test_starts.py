"""When an engine begins with a request: what can be said from outside."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.starts import FEWEST_TOKENS, PrefillQueue

TOKENS = st.integers(0, 200_000)
PAUSE = st.integers(0, 5_000_000)
SENDS = st.lists(st.tuples(PAUSE, TOKENS), max_size=50)


def test_an_idle_engine_begins_at_once() -> None:
    assert PrefillQueue().send(10_000, now=7) == 7


def test_the_next_request_begins_when_the_one_before_it_is_prefilled() -> None:
    queue = PrefillQueue(us_per_token=20.0)
    assert queue.send(1_000, now=0) == 0
    assert queue.send(500, now=5_000) == 20_000
    assert queue.send(1, now=30_000) == 30_000
    assert queue.send(1, now=90_000) == 90_000, "long idle"


@given(SENDS)
def test_requests_begin_in_the_order_in_which_they_are_sent_and_not_before(
    sends: list[tuple[int, int]],
) -> None:
    queue, now, last = PrefillQueue(), 0, 0
    for pause, tokens in sends:
        now += pause
        begins = queue.send(tokens, now)
        assert begins is not None
        assert begins >= max(now, last)
        last = begins


@given(SENDS)
def test_an_engine_is_never_thought_to_be_busy_for_longer_than_its_prompts_take(
    sends: list[tuple[int, int]],
) -> None:
    queue, now = PrefillQueue(us_per_token=20.0), 0
    for pause, tokens in sends:
        now += pause
        queue.send(tokens, now)
    assert queue.busy_until <= now + 20 * sum(tokens for _, tokens in sends)


def test_nothing_is_assumed_while_requests_wait_inside_the_engine() -> None:
    queue = PrefillQueue(num_waiting=1)
    assert queue.send(100_000, now=5) is None
    queue.num_waiting = 0
    assert queue.send(1, now=6) == 6


@given(st.integers(FEWEST_TOKENS, 200_000), st.floats(0.2, 2_000.0))
def test_the_pace_of_an_engine_is_learned(tokens: int, pace: float) -> None:
    queue, now = PrefillQueue(), 0
    for _ in range(60):
        began = queue.send(tokens, now)
        assert began is not None
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
    began = queue.send(tokens, now=0)
    assert began == 0
    queue.first_token(tokens, began, now=50)
    assert queue.send(1, now=51) == 51


def test_those_sent_after_it_still_count() -> None:
    queue = PrefillQueue(us_per_token=100.0)
    queue.send(100, now=0)
    queue.send(100, now=0)
    queue.first_token(100, 0, now=4_000)  # 6,000 us early
    assert queue.send(1, now=4_000) == 14_000


def test_whole_answers_can_only_say_that_an_engine_is_faster() -> None:
    """Without a single stream a small model's engine would be thought busy for ever."""
    queue, now = PrefillQueue(us_per_token=20.0), 0
    for _ in range(100):
        began = queue.send(10_000, now)
        assert began is not None
        now = max(now, began) + 30_000  # with its decoding: 3 us per token
        queue.answered(10_000, began, now)
    assert queue.us_per_token < 3.1
    assert queue.busy_until <= now
    before = queue.us_per_token
    queue.answered(10_000, now, now + 10**9)
    assert queue.us_per_token == before, "a long answer says nothing"
