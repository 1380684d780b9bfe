"""Memory shared by tenants: bounded, and nobody is pushed out by another's flood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.memory import TenantLru

puts = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=200)


@given(puts, st.integers(1, 12))
def test_never_holds_more_than_its_capacity_and_keeps_the_newest(
    entries: list[tuple[str, int]], capacity: int
) -> None:
    memory: TenantLru[int, int] = TenantLru(capacity)
    for number, (tenant, key) in enumerate(entries):
        memory.put(tenant, key, number)
        assert len(memory) <= capacity
        if capacity >= 3:
            assert memory.get(tenant, key) == number
    held = {(t, k) for t, k in entries if memory.get(t, k) is not None}
    assert len(held) == len(memory)


@given(st.integers(20, 500))
def test_a_flood_takes_nothing_from_a_tenant_within_its_share(flood: int) -> None:
    memory: TenantLru[int, str] = TenantLru(20)
    for key in range(10):
        memory.put("small", key, "kept")
    for key in range(flood):
        memory.put("large", key, "flood")
    assert [memory.get("small", key) for key in range(10)] == ["kept"] * 10
    assert memory.get("large", flood - 1) == "flood"


def test_a_newcomer_gets_room_from_whoever_holds_most() -> None:
    memory: TenantLru[int, int] = TenantLru(4)
    for key in range(4):
        memory.put("first", key, key)
    memory.put("second", 0, 0)
    assert memory.get("first", 0) is None
    assert memory.get("second", 0) == 0


def test_who_holds_more_than_its_share_pays_for_itself() -> None:
    memory: TenantLru[int, int] = TenantLru(20)
    for tenant, number in (("most", 11), ("more", 8), ("few", 1)):
        for key in range(number):
            memory.put(tenant, key, key)
    memory.put("more", 8, 8)
    assert memory.get("more", 0) is None
    assert memory.get("most", 0) == 0


def test_what_was_used_least_recently_goes_first() -> None:
    memory: TenantLru[str, int] = TenantLru(2)
    memory.put("t", "a", 1)
    memory.put("t", "b", 2)
    assert memory.get("t", "a") == 1
    memory.put("t", "c", 3)
    assert (memory.get("t", "a"), memory.get("t", "b"), memory.get("t", "c")) == (1, None, 3)


def test_pop_frees_room_and_is_no_error_without_an_entry() -> None:
    memory: TenantLru[str, int] = TenantLru(1)
    memory.put("t", "a", 1)
    memory.pop("t", "a")
    memory.pop("t", "a")
    memory.pop("u", "a")
    assert len(memory) == 0
    assert memory.get("t", "a") is None


def test_needs_room_for_something() -> None:
    with pytest.raises(ValueError, match="capacity"):
        TenantLru(0)
