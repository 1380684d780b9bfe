"""DLPM: limits and costs by hand, and the published rule with deficits beside ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.steps import dispatched
from tests.core.test_queues import make_request
from tests.policies.factory import engine, request

from saga.core.model import Tenant
from saga.core.queues import FairQueue
from saga.policies.dlpm import Dlpm
from saga.testing import FakeCluster

QUANTUM = 10


def test_costs_by_hand() -> None:
    asked = request(prompt=1_000)
    assert Dlpm().forecast_cost(asked, 300, engine()) == 300.0
    assert Dlpm().final_cost(asked, 300, 50, engine()) == 400.0
    assert Dlpm(extend_weight=2.0, output_weight=0.5).final_cost(asked, 300, 50, engine()) == 625.0


@pytest.mark.parametrize(("least", "end"), [(0.0, 10.0), (9.9, 10.0), (10.0, 20.0), (25.0, 30.0)])
def test_the_limit_is_just_before_the_end_of_the_round(least: float, end: float) -> None:
    limit = Dlpm(quantum=QUANTUM).limit(least)
    assert least <= limit < end
    assert limit == pytest.approx(end)


class Deficits:
    """The rule as published, for tenants that always wait."""

    def __init__(self, names: str) -> None:
        self.left = dict.fromkeys(names, 0)

    def may_go(self) -> set[str]:
        while not any(left > 0 for left in self.left.values()):
            for name in self.left:
                self.left[name] += QUANTUM
        return {name for name, left in self.left.items() if left > 0}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 25), st.integers(0, 15)), max_size=60))
def test_rounds_are_deficits(turns: list[tuple[int, int, int]]) -> None:
    """Whoever goes, at whatever charges: the same tenants may go next."""
    tenants = {name: Tenant(id=name) for name in "abc"}
    queue, published = FairQueue(Dlpm(quantum=QUANTUM).limit), Deficits("abc")
    for number in range(len(turns) + 1):
        for name, tenant in tenants.items():
            queue.push(make_request(f"{name}{number}", tenant), 0.0)
    for pick, at_turn, at_end in turns:
        heads = {head.session.workflow.tenant.id: head for head in queue.first(3)}
        assert heads.keys() == published.may_go()
        name = sorted(heads)[pick % len(heads)]
        queue.take(heads[name], float(at_turn))
        queue.settle(name, float(at_end), float(at_end))
        published.left[name] -= at_turn + at_end
    assert queue.deviation <= 1.0


def test_inside_a_round_the_longest_prefix_goes_first() -> None:
    """b finds its 1 100 tokens there, a nothing; in short rounds a goes first, since b went."""
    order = {}
    for quantum in (1e6, 1.0):
        cluster = FakeCluster(
            f"dlpm+max_waiting_per_engine=1+fairness.quantum={quantum}", max_num_seqs=1
        )
        first = cluster.ask("b", 1_000, tenant="b")
        cluster.ask("blocks", 10, tenant="c")
        cluster.finish(first, 100)
        cluster.ask("a", 1_000, tenant="a")
        cluster.ask("b", 1_500, tenant="b")
        sent = len(cluster.actions)
        cluster.settle()
        order[quantum] = [request[0] for request, _ in dispatched(cluster.actions[sent:])]
    assert order == {1e6: ["b", "a"], 1.0: ["a", "b"]}


@pytest.mark.parametrize("wrong", [{"quantum": 0.0}, {"extend_weight": -1.0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="quantum must be above 0"):
        Dlpm(**wrong)
