"""Quantiles against numpy and against a sorted list; bounded memory."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.core.errors import CoreError
from saga.core.return_times import NO_TOOL, Quantiles, ReturnTimes, owner_of

VALUES = st.lists(st.integers(0, 10**9), min_size=1, max_size=80)
P = st.integers(0, 8).map(lambda k: k / 8)
"""Exact in binary, so that the rank is not a matter of rounding."""


def observed(values: list[int], window: int = 256) -> Quantiles:
    quantiles = Quantiles(window)
    for value in values:
        quantiles.observe(value)
    return quantiles


@given(VALUES, P)
def test_nearest_rank_as_numpy_has_it(values: list[int], p: float) -> None:
    expected = np.quantile(values, p, method="inverted_cdf")
    assert observed(values).quantile(p) == expected


@given(VALUES, P)
def test_the_smallest_observed_value_that_covers_p(values: list[int], p: float) -> None:
    answer = observed(values).quantile(p)
    assert answer in values
    covered = {x: Fraction(sum(v <= x for v in values), len(values)) for x in values}
    assert answer == min(x for x in values if covered[x] >= p)


@given(VALUES, P, st.integers(1, 20))
def test_only_the_window_counts(values: list[int], p: float, window: int) -> None:
    quantiles = observed(values, window)
    assert len(quantiles) == min(window, len(values))
    assert quantiles.quantile(p) == observed(values[-window:]).quantile(p)


def test_quantiles_by_hand() -> None:
    quantiles = observed(list(range(1, 11)))
    assert [quantiles.quantile(p) for p in (0.0, 0.1, 0.5, 0.9, 0.95, 1.0)] == [1, 1, 5, 9, 10, 10]
    assert Quantiles().quantile(0.5) is None


def test_return_times_are_kept_by_tool() -> None:
    times = ReturnTimes()
    times.observe("shell", 5)
    times.observe(None, 7)
    assert times.quantile("shell", 0.5) == 5
    assert times.quantile(None, 0.5) == times.quantile(NO_TOOL, 0.5) == 7
    assert times.quantile("search", 0.5) is None


@given(st.lists(st.sampled_from("abcdef"), max_size=60), st.integers(1, 4))
def test_the_least_recently_seen_tool_is_forgotten(tools: list[str], max_tools: int) -> None:
    times = ReturnTimes(max_tools=max_tools)
    for tool in tools:
        times.observe(tool, 1)
    last_seen = list(dict.fromkeys(reversed(tools)))[:max_tools]
    assert len(times) == len(last_seen)
    assert {tool for tool in "abcdef" if times.quantile(tool, 0.5) is not None} == set(last_seen)


def test_asking_is_not_seeing() -> None:
    times = ReturnTimes(max_tools=2)
    times.observe("a", 1)
    times.observe("b", 1)
    times.quantile("a", 0.5)
    times.observe("c", 1)
    assert times.quantile("a", 0.5) is None


@pytest.mark.parametrize("sizes", [{"window": 0}, {"max_tools": 0}])
def test_memory_that_cannot_be(sizes: dict[str, int]) -> None:
    with pytest.raises(CoreError, match="at least 1"):
        ReturnTimes(**sizes)


def test_owners_learn_nothing_from_each_other() -> None:
    times = ReturnTimes()
    times.observe("shell", 5, owner="red")
    assert times.quantile("shell", 0.5, owner="red") == 5
    assert times.quantile("shell", 0.5, owner="blue") is None
    assert times.quantile("shell", 0.5) is None


def test_agent_types_of_a_gateway_begin_with_their_tenant() -> None:
    assert owner_of("red/coder/v2") == "red"
    assert owner_of("coder") == ""
