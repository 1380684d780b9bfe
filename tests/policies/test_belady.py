from saga.core.cache import FOREVER, CacheView, KVEntry, RetentionIndex
from saga.policies.belady import Belady


def kv(next_use: int, tokens: int = 10) -> KVEntry:
    return KVEntry(session="s", tokens=tokens, last_access=0, next_use=next_use)


def test_the_farthest_next_use_goes_first_and_never_used_again_before_all() -> None:
    index = RetentionIndex(Belady())
    soon, later, never = kv(10), kv(500), kv(FOREVER)
    for entry in (later, never, soon):
        index.add(entry, now=0)
    order = []
    while (victim := index.victim(now=5)) is not None:
        order.append(victim)
        index.discard(victim)
    assert order == [never, later, soon]


def test_neither_age_nor_size_counts() -> None:
    view = CacheView(now=100, max_idle=100, max_tokens=1_000)
    small = KVEntry(session="s", tokens=1, last_access=99, next_use=7)
    large = KVEntry(session="t", tokens=1_000, last_access=0, next_use=7)
    assert Belady().rank(small, view) == Belady().rank(large, view)


def test_a_farther_next_use_goes_before_the_one_that_was_being_taken_from() -> None:
    """Otherwise it would be no optimum."""
    index = RetentionIndex(Belady())
    later, latest = kv(500), kv(900)
    index.add(later, now=0)
    assert index.victim(now=1) is later
    later.tokens -= 4
    index.add(latest, now=2)
    assert index.victim(now=2) is latest
    index.discard(latest)
    assert index.victim(now=3) is later


def test_a_nearer_next_use_does_not_take_its_place() -> None:
    index = RetentionIndex(Belady())
    later = kv(500)
    index.add(later, now=0)
    assert index.victim(now=1) is later
    index.add(kv(400), now=2)
    assert index.victim(now=2) is later


def test_it_sees_the_future_and_says_so() -> None:
    assert Belady.clairvoyant
