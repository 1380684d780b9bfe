"""``lru`` evicts whole sessions, ``prefix_lru`` their tails; both those idle for longest."""

from dataclasses import replace

from tests.sim.factory import SECOND, chat, plan_of, play, small_cluster, workflow

from saga.core.cache import CacheView, EvictionPolicy, KVEntry
from saga.core.events import RequestFinished
from saga.policies.lru import Lru
from saga.policies.prefix_lru import PrefixLru

VIEW = CacheView(now=100, max_idle=100, max_tokens=1_000)


def test_both_rank_by_idle_time_alone() -> None:
    old = KVEntry(session="s", tokens=1, last_access=10)
    new = KVEntry(session="t", tokens=999, last_access=11, p_reuse=0.0)
    for policy in (Lru(), PrefixLru()):
        assert isinstance(policy.rank(old, VIEW), int | float)
        assert policy.rank(old, VIEW) > policy.rank(new, VIEW)
        assert policy.rank(replace(new, last_access=10), VIEW) == policy.rank(old, VIEW)


def cached(eviction: str) -> list[int]:
    """Two sessions of 1,600 tokens take turns in 3,008; cached tokens of their second prompts.

    Each is 100 blocks of 16, memory is 188: the second session needs 12 blocks of the first.
    """
    talk = chat((1_500, 100), (10, 10), gap=30 * SECOND)
    plan = plan_of([workflow("a", talk), workflow("b", talk)], [0, 10 * SECOND])
    played = play(f"vllm+eviction={eviction}", plan, small_cluster(1, 3_008))
    ends = [event for event, _ in played.log if isinstance(event, RequestFinished)]
    return [event.cached_tokens or 0 for event in ends[2:]]


def test_whole_sessions_go_or_only_their_tails() -> None:
    assert cached("prefix_lru")[0] == (100 - 12) * 16
    assert cached("lru")[0] == 0


def test_only_lru_takes_the_whole_entry() -> None:
    policies: list[tuple[EvictionPolicy, bool]] = [(Lru(), True), (PrefixLru(), False)]
    for policy, whole in policies:
        assert policy.whole_entry is whole
        assert policy.static
        assert not policy.clairvoyant
