"""The breaker against its table, and its laws for any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.breaker import Breaker, BreakerLimits, BreakerState, is_failure

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
SECOND = 1_000_000
LIMITS = BreakerLimits(failures=3, share=0.5, min_count=8, window_s=10.0, cooldown_s=5.0)
COOLDOWN = 5 * SECOND


def breaker_in(state: BreakerState) -> tuple[Breaker, int]:
    """A breaker in that state, and the time."""
    breaker = Breaker(LIMITS)
    if state is not CLOSED:
        for _ in range(LIMITS.failures):
            breaker.failed(0)
    now = COOLDOWN if state is HALF_OPEN else 1
    assert breaker.state(now) is state
    return breaker, now


def play(breaker: Breaker, what: str, now: int) -> int:
    """Does one thing; returns the time after it."""
    match what:
        case "succeeded":
            breaker.succeeded(now)
        case "failed":
            breaker.failed(now)
        case "sent":
            breaker.sent(now)
        case "cooldown":
            return now + COOLDOWN
    return now


TABLE = {
    (CLOSED, "succeeded"): (CLOSED, True),
    (CLOSED, "failed"): (CLOSED, True),  # one of three
    (CLOSED, "sent"): (CLOSED, True),
    (CLOSED, "cooldown"): (CLOSED, True),
    (OPEN, "succeeded"): (OPEN, False),
    (OPEN, "failed"): (OPEN, False),
    (OPEN, "sent"): (OPEN, False),
    (OPEN, "cooldown"): (HALF_OPEN, True),
    (HALF_OPEN, "succeeded"): (CLOSED, True),
    (HALF_OPEN, "failed"): (OPEN, False),
    (HALF_OPEN, "sent"): (HALF_OPEN, False),  # that was the trial
    (HALF_OPEN, "cooldown"): (HALF_OPEN, True),
}


@pytest.mark.parametrize(("state", "what"), TABLE)
def test_table(state: BreakerState, what: str) -> None:
    breaker, now = breaker_in(state)
    now = play(breaker, what, now)
    assert (breaker.state(now), breaker.allows(now)) == TABLE[state, what]


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = Breaker(LIMITS)
    for what in ["failed", "failed", "succeeded", "failed", "failed"]:
        play(breaker, what, 0)
    assert breaker.state(0) is CLOSED
    breaker.failed(0)
    assert breaker.state(0) is OPEN


def test_a_share_of_failures_opens_from_the_least_count_on() -> None:
    breaker = Breaker(LIMITS)
    for number in range(7):
        play(breaker, "failed" if number % 2 else "succeeded", 0)
        assert breaker.state(0) is CLOSED
    breaker.failed(0)  # four of eight
    assert breaker.state(0) is OPEN


def test_failures_older_than_the_window_do_not_count() -> None:
    breaker = Breaker(LIMITS)
    for number in range(6):
        play(breaker, "failed" if number % 2 else "succeeded", 0)
    later = 10 * SECOND
    breaker.succeeded(later)
    breaker.failed(later)
    assert breaker.state(later) is CLOSED


def test_what_was_before_a_good_trial_is_forgotten() -> None:
    breaker, now = breaker_in(HALF_OPEN)
    breaker.succeeded(now)
    for what in ["succeeded", "succeeded", "failed", "succeeded", "failed"]:
        play(breaker, what, now)
    assert breaker.state(now) is CLOSED


def test_a_trial_that_ends_in_nothing_is_over_after_the_cooldown() -> None:
    breaker, now = breaker_in(HALF_OPEN)
    breaker.sent(now)
    assert not breaker.allows(now + COOLDOWN - 1)
    assert breaker.allows(now + COOLDOWN)


@pytest.mark.parametrize(
    ("status", "counts"),
    [(status, False) for status in (200, 301, 400, 401, 404, 408, 429, 499, 501, 503, 529)]
    + [(status, True) for status in (500, 502, 504, 599)],
)
def test_which_statuses_speak_against_the_engine(status: int, counts: bool) -> None:
    assert is_failure(status) is counts


TURNS = st.lists(
    st.tuples(
        st.sampled_from(["succeeded", "failed", "failed", "sent", "wait"]),
        st.integers(0, 6 * SECOND),
    ),
    max_size=80,
)


@given(turns=TURNS)
def test_laws_of_any_history(turns: list[tuple[str, int]]) -> None:
    breaker, now = Breaker(LIMITS), 0
    in_a_row = failures = 0
    opened: int | None = None
    for what, pause in turns:
        now += pause if what == "wait" else 0
        before = breaker.state(now)
        allowed = breaker.allows(now)
        play(breaker, what, now)
        after = breaker.state(now)

        in_a_row = in_a_row + 1 if what == "failed" else 0 if what == "succeeded" else in_a_row
        failures += what == "failed"
        if before is not OPEN and after is OPEN:
            assert what == "failed"  # nothing else opens it
            opened = now
        if before is CLOSED and what == "failed" and in_a_row >= LIMITS.failures:
            assert after is OPEN
        if after is CLOSED:
            assert breaker.allows(now)
        if before is HALF_OPEN and allowed and what == "sent":
            assert not breaker.allows(now)  # one trial at a time
        if opened is not None and after is OPEN:
            assert now < opened + COOLDOWN  # it never stays open
    if failures == 0:
        assert breaker.state(now) is CLOSED
    assert breaker.allows(now + 2 * COOLDOWN)  # nor shut for good


@given(turns=TURNS)
def test_memory_is_bounded(turns: list[tuple[str, int]]) -> None:
    breaker, now = Breaker(BreakerLimits(failures=10_000, min_count=10_000)), 0
    for what, pause in turns:
        now += pause
        play(breaker, what, now)
    assert len(breaker._window) <= 10
