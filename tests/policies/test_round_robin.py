from collections import Counter
from itertools import pairwise

import pytest
from tests.policies.factory import Cluster, engine, request

from saga.core.actions import Dispatch
from saga.policies.round_robin import RoundRobin
from saga.testing import FakeCluster


@pytest.mark.parametrize("num_engines", [1, 3, 16])
def test_exactly_even_whatever_the_load(num_engines: int) -> None:
    engines = [engine(f"engine-{number}") for number in range(num_engines)]
    engines[0].num_running = 10
    turns = []
    for arrived in range(1, 5 * num_engines + 1):
        answer = RoundRobin().route(request(), Cluster(engines=engines, num_arrived=arrived))
        assert answer is not None
        turns.append(answer.engine.id)
    assert set(Counter(turns).values()) == {5}
    assert all(a != b for a, b in pairwise(turns)) or num_engines == 1


def test_a_session_goes_round_like_everybody() -> None:
    cluster = FakeCluster("vllm", engines=4)
    for _ in range(8):
        cluster.finish(cluster.ask("session"), tool="shell")
    engines = [action.engine for action in cluster.actions if isinstance(action, Dispatch)]
    assert len(set(engines[:4])) == 4
    assert engines[4:] == engines[:4]
