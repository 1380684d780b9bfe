"""PLAS: queues by hand, and that waiting never harms and service never helps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.steps import dispatched
from tests.policies.factory import SECOND, Cluster, request, session, workflow

from saga.core.model import Request
from saga.policies.plas import Plas
from saga.testing import FakeCluster

PLAS = Plas(num_queues=4, first_s=1.0, factor=2.0, beta=10.0)


def head(name: str, service_s: float, *, arrived_s: float = 0.0, waited_s: float = 0.0) -> Request:
    """Of a workflow with so much service, whose calls have waited before."""
    owner = workflow(name, service_us=service_s * SECOND, score=waited_s * SECOND)
    return request(name, of=session(of=owner), arrived=int(arrived_s * SECOND))


@pytest.mark.parametrize(
    ("service_s", "queue"),
    [(0.0, 0), (0.99, 0), (1.0, 1), (1.99, 1), (2.0, 2), (3.99, 2), (4.0, 3), (1e9, 3)],
)
def test_queues_by_hand(service_s: float, queue: int) -> None:
    assert PLAS.queue(head("w", service_s), now=0) == queue


def test_least_service_first_and_first_come_first_served_inside() -> None:
    heads = [
        head("long", 9.0, arrived_s=0),
        head("older", 1.9, arrived_s=1),
        head("younger", 1.1, arrived_s=2),
    ]
    cluster = Cluster(now=3 * SECOND)
    assert PLAS.choose(heads, cluster).id == "older"
    assert PLAS.choose([*heads, head("new", 0.0, arrived_s=3)], cluster).id == "new"
    assert [PLAS.key(waits, cluster) for waits in heads] == [0, SECOND, 2 * SECOND]


def test_who_has_waited_beta_times_its_service_counts_in_the_first_queue() -> None:
    """5 s of service, 20 s of waits before: after 30 s more."""
    starving = head("starving", 5.0, waited_s=20.0)
    assert PLAS.queue(starving, 30 * SECOND - 1) == 3
    assert PLAS.queue(starving, 30 * SECOND) == 0
    new = head("new", 0.0, arrived_s=1.0)
    assert PLAS.choose([starving, new], Cluster(now=29 * SECOND)) is new
    assert PLAS.choose([starving, new], Cluster(now=30 * SECOND)) is starving


SERVICE = st.floats(0.0, 100.0)


@given(SERVICE, SERVICE, st.integers(0, 1_000), st.integers(0, 1_000))
def test_waiting_never_harms_and_service_never_helps(
    service: float, more: float, wait_s: int, longer_s: int
) -> None:
    queue = PLAS.queue(head("w", service), wait_s * SECOND)
    assert PLAS.queue(head("w", service), (wait_s + longer_s) * SECOND) <= queue
    assert PLAS.queue(head("w", service + more), wait_s * SECOND) >= queue


def test_waits_add_up() -> None:
    """One second is waited for the seat, and nothing for the second call."""
    cluster = FakeCluster("plas+max_waiting_per_engine=1", max_num_seqs=1)
    other, first = cluster.ask("other"), cluster.ask("s")
    workflow = cluster.scheduler.state.workflows["s"]
    cluster.advance(SECOND)
    cluster.finish(other)
    cluster.advance(5 * SECOND)
    cluster.finish(first)
    assert workflow.score == SECOND
    cluster.finish(cluster.ask("s"))
    assert workflow.score == SECOND


def test_a_new_workflow_overtakes_a_long_one() -> None:
    cluster = FakeCluster("plas+max_waiting_per_engine=1", max_num_seqs=1)
    cluster.finish(cluster.ask("long", 20_000), 2_000)
    running = cluster.ask("running")
    long, new = cluster.ask("long"), cluster.ask("new")
    cluster.advance(SECOND)
    assert dispatched(cluster.finish(running)) == [(new, "engine-0")]
    assert dispatched(cluster.finish(new)) == [(long, "engine-0")]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="num_queues must be at least 1"):
        Plas(num_queues=0)
