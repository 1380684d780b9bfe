"""Limits: what is let in, what is told, and the laws of buckets and counts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.limits import Limits, Verdict
from saga.gateway.settings import TenantSettings

MINUTE_US = 60_000_000


def limits(
    *,
    max_concurrent: int | None = None,
    requests_per_min: int | None = None,
    tokens_per_min: int | None = None,
) -> Limits:
    """Of one tenant, ``a``."""
    tenant = TenantSettings(
        max_concurrent=max_concurrent,
        requests_per_min=requests_per_min,
        tokens_per_min=tokens_per_min,
    )
    return Limits({"a": tenant})


# ---- examples


def test_without_limits_everything_is_let_in_and_nothing_is_told() -> None:
    free = Limits({"a": TenantSettings()})
    for tenant in ("a", "stranger"):
        for _ in range(1_000):
            assert free.take(tenant, 10**9, 0) == Verdict(headers={})


def test_requests_per_minute() -> None:
    two = limits(requests_per_min=2)
    assert two.take("a", 0, 0).headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
    }
    assert two.take("a", 0, 0).ok
    refused = two.take("a", 0, 1)
    assert (refused.ok, refused.exceeded, refused.retry_after_s) == (False, "requests_per_min", 30)
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert not two.take("a", 0, MINUTE_US // 2 - 1).ok
    assert two.take("a", 0, MINUTE_US // 2).ok


def test_tokens_per_minute_and_the_estimate_replaced_by_what_was_used() -> None:
    some = limits(tokens_per_min=600)
    assert some.take("a", 500, 0).headers == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "50s",
    }
    refused = some.take("a", 110, 0)
    assert (refused.exceeded, refused.retry_after_s) == ("tokens_per_min", 1)
    some.settle("a", 500, 450)
    assert some.take("a", 110, 0).ok
    some.settle("a", 110, 710)  # 560 in debt
    refused = some.take("a", 1, 0)
    assert (refused.exceeded, refused.retry_after_s) == ("tokens_per_min", 57)
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    some.settle("a", 0, 10_000)
    assert some.take("a", 1, 0).retry_after_s == 60


def test_a_request_larger_than_a_minutes_tokens_is_told_not_to_try_again() -> None:
    some = limits(tokens_per_min=600)
    refused = some.take("a", 601, 0)
    assert (refused.exceeded, refused.retry_after_s) == ("tokens_per_min", None)
    assert some.take("a", 600, 0).ok


def test_requests_at_once() -> None:
    two = limits(max_concurrent=2)
    assert two.take("a", 0, 0).ok
    assert two.take("a", 0, 0).ok
    refused = two.take("a", 0, 0)
    assert (refused.exceeded, refused.retry_after_s) == ("max_concurrent", 1)
    two.release("a")
    assert two.take("a", 0, 0).ok


def test_what_is_refused_for_one_limit_costs_nothing_of_another() -> None:
    both = limits(requests_per_min=1, tokens_per_min=100, max_concurrent=5)
    assert both.take("a", 101, 0).exceeded == "tokens_per_min"
    assert both.under_way("a") == 0
    last = both.take("a", 100, 0)
    assert last.ok
    assert last.headers["x-ratelimit-remaining-requests"] == "0"
    assert last.headers["x-ratelimit-remaining-tokens"] == "0"


def test_releasing_what_was_not_let_in_is_an_error() -> None:
    one = limits(max_concurrent=1)
    with pytest.raises(ValueError, match="tenant 'a' has no request under way"):
        one.release("a")


def test_time_that_goes_back_gives_nothing() -> None:
    one = limits(requests_per_min=1)
    assert one.take("a", 0, MINUTE_US).ok
    assert not one.take("a", 0, 0).ok
    assert not one.take("a", 0, MINUTE_US).ok


def test_other_settings_keep_what_was_used() -> None:
    some = limits(requests_per_min=10, tokens_per_min=100)
    for _ in range(9):
        some.take("a", 10, 0)
    some.configure({"a": TenantSettings(requests_per_min=100, max_concurrent=10)}, 0)
    verdict = some.take("a", 10**6, 0)
    assert verdict.ok  # the limit of tokens is gone
    assert verdict.headers["x-ratelimit-remaining-requests"] == "0"
    assert some.take("a", 0, MINUTE_US).exceeded == "max_concurrent"  # ten began before it was set


def test_time_before_other_settings_counts_at_the_rate_of_then() -> None:
    some = limits(requests_per_min=2)
    some.take("a", 0, 0)
    some.take("a", 0, 0)
    some.configure({"a": TenantSettings(requests_per_min=60)}, MINUTE_US // 2)
    assert some.take("a", 0, MINUTE_US // 2).ok
    assert not some.take("a", 0, MINUTE_US // 2).ok
    assert some.take("a", 0, MINUTE_US // 2 + 1_000_000).ok


# ---- laws

TIMES = st.lists(st.integers(0, 2 * MINUTE_US), min_size=1, max_size=60).map(
    lambda gaps: list(accumulate(gaps))
)


@given(st.integers(1, 50), TIMES)
def test_no_more_requests_than_rate_times_time_and_one_minutes_worth(
    rate: int, times: list[int]
) -> None:
    some = limits(requests_per_min=rate)
    admitted = [at for at in times for _ in range(3) if some.take("a", 0, at).ok]
    for i, start in enumerate(admitted):
        for j, end in enumerate(admitted[i:], 1):
            assert j * MINUTE_US <= rate * (end - start) + rate * MINUTE_US


@given(st.integers(1, 1_000), TIMES, st.data())
def test_no_more_tokens_used_than_rate_times_time_and_one_minutes_worth(
    rate: int, times: list[int], data: st.DataObject
) -> None:
    """Counting, whenever a request is let in, what those before it really used."""
    some = limits(tokens_per_min=rate)
    used = 0
    for at in times:
        estimate = data.draw(st.integers(0, rate))
        if some.take("a", estimate, at).ok:
            assert (used + estimate) * MINUTE_US <= rate * at + rate * MINUTE_US
            actual = data.draw(st.integers(0, 3 * rate))
            some.settle("a", estimate, actual)
            used += actual


@given(st.integers(1, 50), st.integers(1, 1_000), TIMES, st.data())
def test_whoever_waits_as_told_is_let_in(
    requests: int, tokens: int, times: list[int], data: st.DataObject
) -> None:
    """After two waits at most, one for each limit, if nobody else comes."""
    some = limits(requests_per_min=requests, tokens_per_min=tokens)
    for at in times:
        some.take("a", data.draw(st.integers(0, tokens)), at)
    now, wanted = times[-1], data.draw(st.integers(0, tokens))
    for _ in range(2):
        verdict = some.take("a", wanted, now)
        if verdict.ok:
            return
        assert verdict.retry_after_s is not None
        assert 1 <= verdict.retry_after_s <= 60
        now += verdict.retry_after_s * 1_000_000
    assert some.take("a", wanted, now).ok


@given(st.integers(1, 5), st.lists(st.sampled_from(["take", "release"]), max_size=60))
def test_requests_at_once_are_those_let_in_less_those_released(most: int, moves: list[str]) -> None:
    some, open_now = limits(max_concurrent=most), 0
    for move in moves:
        if move == "take":
            admitted = some.take("a", 0, 0).ok
            assert admitted == (open_now < most)
            open_now += admitted
        elif open_now:
            some.release("a")
            open_now -= 1
        assert some.under_way("a") == open_now


Moves = list[tuple[str, int, int]]


def verdicts(moves: Moves, tenants: Mapping[str, TenantSettings]) -> dict[str, list[Verdict]]:
    both, at = Limits(tenants), 0
    heard: dict[str, list[Verdict]] = {"a": [], "b": []}
    for tenant, tokens, gap in moves:
        at += gap
        heard[tenant].append(both.take(tenant, tokens, at))
    return heard


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, MINUTE_US // 5)),
        max_size=50,
    )
)
def test_one_tenant_does_not_feel_another(moves: Moves) -> None:
    tenant = TenantSettings(requests_per_min=5, tokens_per_min=100, max_concurrent=8)
    tenants = {"a": tenant, "b": tenant}
    alone: Moves = []
    gap = 0
    for name, tokens, more in moves:
        gap += more
        if name == "a":
            alone.append((name, tokens, gap))
            gap = 0
    assert verdicts(moves, tenants)["a"] == verdicts(alone, tenants)["a"]


def test_tenants_without_limits_leave_nothing_behind() -> None:
    some = limits(requests_per_min=1)
    before = [len(part) for part in vars(some).values()]
    for number in range(100):
        some.take(f"stranger-{number}", 10, 0)
        some.settle(f"stranger-{number}", 10, 20)
        some.release(f"stranger-{number}")
    assert [len(part) for part in vars(some).values()] == before
