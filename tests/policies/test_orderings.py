"""The policies that say which request goes first: the one with the smallest key."""

from collections.abc import Callable

import pytest
from tests.policies.factory import SECOND, Cluster, request, session, workflow

from saga.core.model import Request
from saga.core.policy import OrderingPolicy
from saga.policies.breadth_first import BreadthFirst
from saga.policies.depth_first import DepthFirst
from saga.policies.edf import Edf
from saga.policies.fcfs import Fcfs
from saga.policies.hybrid_order import HybridOrder
from saga.policies.longest_prefix import LongestPrefix
from saga.policies.program_fcfs import ProgramFcfs


def ask(name: str, *, arrived: int, submitted: int, steps: int, warm: bool) -> Request:
    owner = workflow(name, submitted=submitted, ranked_at=submitted)
    asked = session(name, of=owner, num_steps=steps, resident_tokens=100 if warm else 0)
    return request(name, of=asked, arrived=arrived)


WAITING = [
    ask("a", arrived=10, submitted=9, steps=3, warm=True),
    ask("b", arrived=20, submitted=1, steps=7, warm=False),
    ask("c", arrived=30, submitted=30, steps=0, warm=False),
    ask("d", arrived=40, submitted=5, steps=1, warm=True),
]


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (Fcfs, "abcd"),
        (ProgramFcfs, "bdac"),
        (BreadthFirst, "cdab"),
        (DepthFirst, "badc"),
        (Edf, "bdac"),
        (LongestPrefix, "adbc"),
        (HybridOrder, "dabc"),
    ],
)
def test_order(policy: Callable[[], OrderingPolicy], order: str) -> None:
    cluster = Cluster(now=50)
    ordered = sorted(WAITING, key=lambda waits: policy().key(waits, cluster))
    assert "".join(waits.id for waits in ordered) == order


def test_depth_first_is_breadth_first_backwards() -> None:
    cluster = Cluster()
    for waits in WAITING:
        assert DepthFirst().key(waits, cluster) == -BreadthFirst().key(waits, cluster)


def test_cold_sessions_of_a_year_ago_still_go_after_warm_ones_of_today() -> None:
    year = 365 * 24 * 3_600 * SECOND
    cold = ask("cold", arrived=0, submitted=0, steps=0, warm=False)
    warm = ask("warm", arrived=year, submitted=year, steps=1, warm=True)
    key = HybridOrder().key
    assert key(warm, Cluster(now=year)) < key(cold, Cluster(now=year))


def test_hybrid_tells_microseconds_apart_among_cold_sessions() -> None:
    """Keys are floats: adding the offset must not round submission times to the same number."""
    year = 365 * 24 * 3_600 * SECOND
    first = ask("1", arrived=year, submitted=year, steps=0, warm=False)
    second = ask("2", arrived=year, submitted=year + 1, steps=0, warm=False)
    assert HybridOrder().key(first, Cluster()) < HybridOrder().key(second, Cluster())


def test_a_declared_deadline_counts_and_else_the_target() -> None:
    late = request("late", of=session(of=workflow(submitted=5 * SECOND)))
    soon = request("soon", of=session(of=workflow(submitted=9 * SECOND, deadline=14 * SECOND)))
    assert Edf(target_s=10).key(late, Cluster()) == 15 * SECOND
    assert Edf(target_s=10).key(soon, Cluster()) == 14 * SECOND


def test_a_prefix_is_no_longer_than_the_prompt() -> None:
    """A context that was cut finds at most all of its new prompt."""
    cut = request("cut", of=session(resident_tokens=9_000), prompt=1_000)
    grown = request("grown", of=session(resident_tokens=1_500), prompt=2_000)
    assert LongestPrefix().key(grown, Cluster()) < LongestPrefix().key(cut, Cluster())


def test_a_workflow_that_gave_way_lost_its_age() -> None:
    old, new = workflow("old", submitted=1, ranked_at=30), workflow("new", submitted=9, ranked_at=9)
    keys = [ProgramFcfs().key(request(of=session(of=one)), Cluster(now=50)) for one in (old, new)]
    assert keys[0] > keys[1]
