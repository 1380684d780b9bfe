"""Justitia: costs by hand, and that its order is that in which fair sharing would end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.steps import SECOND, dispatched
from tests.policies.factory import Cluster, request, session, workflow

from saga.core.graph import GraphStore
from saga.core.model import Request
from saga.policies.justitia import Justitia
from saga.testing import FakeCluster

UNIT = Justitia(step_ms=1_000.0)
"""One second a step: costs are in tokens times steps."""


def grown(new_tokens: int, output_tokens: int) -> GraphStore:
    """What steps of agents add and write."""
    graphs = GraphStore()
    graph = graphs.learn("agent")
    graph.new_tokens.add(new_tokens)
    graph.output_tokens.add(output_tokens)
    return graphs


def first(prompt: int, steps: float) -> Request:
    return request(of=session(of=workflow(mean_steps=steps)), prompt=prompt)


@pytest.mark.parametrize(
    ("steps", "cost"),
    [
        (1.0, 1_000 * 100 + 5_000),
        (3.0, (1_000 + 1_500 + 2_000) * 100 + 3 * 5_000),
    ],
)
def test_costs_by_hand(steps: float, cost: float) -> None:
    """Each call finds 400 tokens more and the 100 that the one before wrote."""
    cluster = Cluster(graphs=grown(400, 100), virtual_time=7.0)
    assert UNIT.first_score(first(1_000, steps), cluster) == pytest.approx(7.0 + cost)
    assert Justitia(step_ms=40.0).first_score(first(1_000, steps), cluster) == pytest.approx(
        7.0 + cost * 0.04
    )


def test_a_workflow_keeps_its_place() -> None:
    cluster = Cluster(graphs=grown(400, 100), virtual_time=1e9)
    asked = first(1_000, 3.0)
    asked.session.workflow.score = 123.0
    assert UNIT.next_score(asked, 5_000, cluster) == 123.0 == UNIT.key(asked, cluster)


MEMORY = 1_000.0
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 4_000), st.integers(1, 3_000), st.integers(1, 5)),
    min_size=2,
    max_size=8,
)
"""Pauses before arrivals in milliseconds, prompts, steps."""


class Fluid:
    """Gives all that is unfinished an equal part of the memory at any time."""

    def __init__(self) -> None:
        self.virtual_time = 0.0
        self.left: dict[int, float] = {}
        self.ended: list[int] = []

    def flow(self, seconds: float) -> None:
        while self.left:
            next_to_end = min(self.left, key=self.left.__getitem__)
            needed = self.left[next_to_end] * len(self.left) / MEMORY
            part = MEMORY * min(needed, seconds) / len(self.left)
            self.virtual_time += part
            self.left = {name: left - part for name, left in self.left.items()}
            if needed > seconds:
                return
            seconds -= needed
            del self.left[next_to_end]
            self.ended.append(next_to_end)


@given(ARRIVALS)
def test_it_is_the_order_in_which_fair_sharing_would_end(
    arrivals: list[tuple[int, int, int]],
) -> None:
    policy, graphs, fluid = Justitia(step_ms=1.0), grown(40, 10), Fluid()
    scores: list[float] = []
    for number, (pause_ms, prompt, steps) in enumerate(arrivals):
        fluid.flow(pause_ms / 1e3)
        asked = first(prompt, float(steps))
        fluid.left[number] = policy.first_score(asked, Cluster(graphs=graphs))
        now = Cluster(graphs=graphs, virtual_time=fluid.virtual_time)
        scores.append(policy.first_score(asked, now))
    fluid.flow(1e9)
    assert len(fluid.ended) == len(arrivals)
    for before, after in pairwise(fluid.ended):
        assert scores[before] <= scores[after] + 1e-6


def test_the_cheap_overtakes_until_others_have_had_time_enough() -> None:
    """An hour of memory for itself is more than the small ones need, and than what is left then."""
    cluster = FakeCluster("justitia+max_waiting_per_engine=1", max_num_seqs=1)
    running = cluster.ask("running")
    large = cluster.ask("large", 50_000)
    small = cluster.ask("small", 1_000)
    cluster.advance(3_600 * SECOND)
    late = cluster.ask("late", 1_000)
    order = []
    for _ in range(3):
        ((running, _),) = dispatched(cluster.finish(running))
        order.append(running)
    assert order == [small, large, late]
