"""How long beginnings stay that requests have in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saga.engine.vllm.hints import plain_id
from saga.engine.vllm.prefixes import (
    FIRST_US,
    LONGEST_US,
    MAX_PREFIXES,
    PATIENCE,
    SHORTEST_US,
    Prefixes,
    is_prefix,
    name_of,
)

SECOND = 1_000_000


def test_one_that_is_found_steadily_stays_for_a_few_of_its_gaps() -> None:
    prefixes = Prefixes()
    assert prefixes.found("p", 0) == FIRST_US
    stays = [prefixes.found("p", number * 4 * SECOND) for number in range(1, 20)]
    assert stays == [PATIENCE * 4 * SECOND] * 19


@given(st.lists(st.integers(0, 10**10), max_size=50))
def test_it_is_never_kept_for_too_short_or_too_long(gaps: list[int]) -> None:
    prefixes, now = Prefixes(), 0
    for gap in gaps:
        now += gap
        assert SHORTEST_US <= prefixes.found("p", now) <= LONGEST_US


def test_the_one_found_least_recently_is_forgotten() -> None:
    prefixes = Prefixes()
    for number in range(MAX_PREFIXES + 1):
        prefixes.found(f"p{number}", number)
        prefixes.found("p0", number)
    assert len(list(prefixes)) == MAX_PREFIXES
    assert "p0" in prefixes
    assert "p1" not in prefixes


def test_no_session_has_the_name_of_a_beginning() -> None:
    name = name_of([7, 8])
    assert is_prefix(name)
    assert plain_id(name) is None
    assert not is_prefix("7")
