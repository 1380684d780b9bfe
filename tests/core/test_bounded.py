"""A mapping that forgets: bounded, and what is in use stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from saga.core.bounded import Generations


@given(st.integers(2, 20), st.lists(st.integers(0, 60), max_size=200))
def test_it_never_holds_more_than_was_said_and_nothing_wrong(most: int, keys: list[int]) -> None:
    held: Generations[int, int] = Generations(most)
    for key in keys:
        if held.get(key) is None:
            held.put(key, key * 10)
        assert len(held) <= most
        assert held.get(key) == key * 10
        assert held.peek(key) == key * 10


@given(st.integers(2, 20), st.lists(st.integers(0, 1_000), max_size=200))
def test_what_is_used_stays(most: int, others: list[int]) -> None:
    held: Generations[int, str] = Generations(most)
    held.put(-1, "mine")
    for other in others:
        held.put(other, "")
        assert held.get(-1) == "mine"


def test_a_look_is_no_use() -> None:
    held: Generations[int, str] = Generations(4)
    held.put(0, "mine")
    for other in range(1, 5):
        held.peek(0)
        held.put(other, "")
    assert held.peek(0) is None
