"""Eq. 1: P_evict = alpha R + beta (1 - P_reuse) + gamma S."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.core.cache import CacheView, KVEntry, RetentionIndex
from saga.policies.wa_lru import WaLru

VIEW = CacheView(now=100, max_idle=80, max_tokens=1_000)


def entry(last_access: int = 100, tokens: int = 1, p_reuse: float = 1.0) -> KVEntry:
    return KVEntry(session="s", tokens=tokens, last_access=last_access, p_reuse=p_reuse)


@pytest.mark.parametrize(
    ("kv", "expected"),
    [
        # idle 40 of 80, P_reuse 0.6, 250 of 1,000 tokens: 0.3 * 0.5 + 0.5 * 0.4 + 0.2 * 0.25
        (entry(60, 250, 0.6), 0.4),
        # the oldest and largest, surely reused: 0.3 + 0.2
        (entry(20, 1_000, 1.0), 0.5),
        # just left, will not be reused: 0.5 + 0.2 * 0.1
        (entry(100, 100, 0.0), 0.52),
        # everything against it
        (entry(20, 1_000, 0.0), 1.0),
        # beyond both of the largest, the terms stop at 1
        (entry(-900, 9_000, 0.0), 1.0),
    ],
)
def test_equation_1(kv: KVEntry, expected: float) -> None:
    assert WaLru().rank(kv, VIEW) == pytest.approx(expected)


def test_weights_are_the_papers_and_can_be_set() -> None:
    assert (WaLru().alpha, WaLru().beta, WaLru().gamma) == (0.3, 0.5, 0.2)
    kv = entry(60, 250, 0.6)
    assert WaLru(alpha=1, beta=0, gamma=0).rank(kv, VIEW) == pytest.approx(0.5)
    assert WaLru(alpha=0, beta=1, gamma=0).rank(kv, VIEW) == pytest.approx(0.4)
    assert WaLru(alpha=0, beta=0, gamma=1).rank(kv, VIEW) == pytest.approx(0.25)


def test_an_index_evicts_the_highest_score_of_those_that_are_there() -> None:
    index = RetentionIndex(WaLru())
    old = entry(last_access=0, tokens=100, p_reuse=0.95)  # 0.3 + 0.025 + 0.02 = 0.345
    big = entry(last_access=90, tokens=1_000, p_reuse=0.9)  # 0.03 + 0.05 + 0.2 = 0.28
    done = entry(last_access=80, tokens=50, p_reuse=0.1)  # 0.06 + 0.45 + 0.01 = 0.52
    for kv in (old, big, done):
        index.add(kv, now=100)
    order = []
    while (victim := index.victim(now=100)) is not None:
        order.append(victim)
        index.discard(victim)
    # Among old and big, big is the largest still; alone, each is both oldest and largest.
    assert order == [done, old, big]


ENTRIES = st.builds(
    entry,
    last_access=st.integers(0, 100),
    tokens=st.integers(1, 2_000),
    p_reuse=st.floats(0, 1),
)


@given(ENTRIES)
def test_law_a_score_lies_between_0_and_1(kv: KVEntry) -> None:
    assert 0.0 <= WaLru().rank(kv, VIEW) <= 1.0 + 1e-12


@given(ENTRIES, st.integers(0, 100), st.integers(0, 2_000), st.floats(0, 1))
def test_law_older_larger_and_less_useful_go_first(
    kv: KVEntry, older: int, larger: int, less: float
) -> None:
    worse = replace(
        kv,
        last_access=kv.last_access - older,
        tokens=kv.tokens + larger,
        p_reuse=kv.p_reuse * less,
    )
    assert WaLru().rank(worse, VIEW) >= WaLru().rank(kv, VIEW)
