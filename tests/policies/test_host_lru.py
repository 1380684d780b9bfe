from tests.policies.factory import Cluster, engine, session
from tests.sim.factory import SECOND, chat, plan_of, play, small_cluster, workflow

from saga.core.events import RequestFinished
from saga.policies.host_lru import HostLru


def test_nothing_is_moved_ahead_of_need() -> None:
    home = engine()
    assert not HostLru().offload_now(session(home=home, resident_tokens=9), Cluster(engines=[home]))


def cached(preset: str, host_memory_gib: float) -> list[int]:
    """Two sessions of 1,600 tokens take turns in 2,000; cached tokens of their second prompts."""
    talk = chat((1_500, 100), (10, 10), gap=30 * SECOND)
    plan = plan_of([workflow("a", talk), workflow("b", talk)], [0, 10 * SECOND])
    played = play(preset, plan, small_cluster(1, 2_000, host_memory_gib=host_memory_gib))
    ends = [event for event, _ in played.log if isinstance(event, RequestFinished)]
    return [event.cached_tokens or 0 for event in ends[2:]]


def test_what_was_evicted_comes_back_from_host_memory() -> None:
    assert cached("vllm+offload=host_lru", 10) == [1_584, 1_584]  # 99 whole blocks


def test_it_is_what_engines_with_host_memory_do_by_default() -> None:
    assert cached("vllm", 10) == cached("vllm+offload=host_lru", 10)


def test_without_store_or_without_memory_it_is_computed_again() -> None:
    bare = cached("vllm+offload=host_lru", 0)
    assert max(bare) <= 400  # what the other left of it
    assert cached("vllm+offload=host_lru+offload.store=false", 10) == bare
