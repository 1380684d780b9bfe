import pytest
from tests.policies.factory import Cluster, engine, request

from saga.core.actions import Dispatch
from saga.core.loads import Measure
from saga.policies.least_loaded import LeastLoaded
from saga.testing import FakeCluster

ENGINES = [
    engine("few-requests", num_running=1, num_sessions=9, committed_tokens=9_000),
    engine("few-sessions", num_running=3, num_sessions=1, committed_tokens=9_500),
    engine(
        "few-tokens", num_running=3, num_sessions=2, committed_tokens=10, resident_tokens=10_000
    ),
]


@pytest.mark.parametrize(
    ("load", "chosen"),
    [
        ("requests", "few-requests"),
        ("sessions", "few-sessions"),  # 1 against 2 and 9
        ("committed", "few-sessions"),  # 2.15 of capacity, against 2.401 and 11.7
        ("paper", "few-requests"),  # 0.05, against 0.15 and 0.65
    ],
)
def test_it_looks_at_its_own_measure(load: Measure, chosen: str) -> None:
    answer = LeastLoaded(load=load).route(request(), Cluster(engines=ENGINES))
    assert answer is not None
    assert answer.engine.id == chosen


def test_a_session_that_ran_elsewhere_makes_no_difference() -> None:
    cluster = FakeCluster("vllm+routing=least_loaded", engines=2)
    cluster.ask("one")
    cluster.ask("two")
    first, second = (a.engine for a in cluster.actions if isinstance(a, Dispatch))
    assert first != second
