"""VTC: counters by hand, and the bound that was published for two tenants that always wait."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.steps import dispatched
from tests.core.test_queues import make_request
from tests.policies.factory import engine, request

from saga.core.fairness import ServiceLedger
from saga.core.model import Request, Tenant
from saga.core.queues import FairQueue
from saga.policies.vtc import Vtc
from saga.testing import FakeCluster


def test_costs_by_hand() -> None:
    asked = request(prompt=1_000)
    for uncached in (0, 1_000):  # what was cached does not matter
        assert Vtc().forecast_cost(asked, uncached, engine()) == 1_000.0
        assert Vtc().final_cost(asked, uncached, 50, engine()) == 1_100.0
    weighted = Vtc(input_weight=0.5, output_weight=3.0)
    assert weighted.final_cost(asked, 1_000, 50, engine()) == 650.0


def test_the_least_counter_goes_first() -> None:
    """a takes 1 200 tokens each time, b 800: a b b a b a."""
    cluster = FakeCluster("vtc+max_waiting_per_engine=1", max_num_seqs=1)
    running = cluster.ask("a0", 1_000, tenant="a")
    for name in ("b0", "a1", "b1", "b2", "a2"):
        cluster.ask(name, 1_000 if name[0] == "a" else 600, tenant=name[0])
    order = ""
    for _ in range(5):
        ((running, _),) = dispatched(cluster.finish(running, 100))
        order += running[:2]
    assert order == "b0b1a1b2a2"


def test_who_comes_back_starts_at_the_least_counter_of_the_last_turn() -> None:
    queue = FairQueue(Vtc().limit)
    for number in range(4):
        queue.push(make_request(f"r{number}", Tenant(id="busy")), 0.0)
    for _ in range(3):
        head = queue.peek()
        assert head is not None
        queue.take(head, 500.0)
    queue.push(make_request("back", Tenant(id="idle")), 0.0)
    assert queue.lanes["idle"].virtual_time == 1_000.0


MEMORY = 1_000
LARGEST_PROMPT = 400


class Race:
    """Two tenants that always wait, on one engine that keeps memory for what it has begun."""

    def __init__(self, policy: Vtc) -> None:
        self.queue = FairQueue(policy.limit)
        self.ledger = ServiceLedger(policy, 1)
        self.tenants = [Tenant(id="a"), Tenant(id="b")]
        self.running: list[tuple[Request, int]] = []
        self.free = MEMORY
        self.differences = [0.0]

    def join(self, number: int, size: tuple[int, int]) -> None:
        tenant = self.tenants[number % 2]
        asked = make_request(f"r{number}", tenant)
        asked.prompt_tokens, asked.expected_output_tokens = size
        tenant.num_queued += 1
        self.queue.push(asked, 0.0)

    def turn(self, pick: int) -> None:
        """The head begins, or, if it does not fit, something that runs ends."""
        head = self.queue.peek()
        assert head is not None
        tokens = head.prompt_tokens + head.expected_output_tokens
        if tokens <= self.free:
            self.ledger.charge(head, head.prompt_tokens, engine(), self.queue)
            self.running.append((head, tokens))
            self.free -= tokens
        else:
            ended, tokens = self.running.pop(pick % len(self.running))
            self.free += tokens
            self.ledger.finish(ended, ended.expected_output_tokens, engine(), self.queue)
        self.differences.append(self.tenants[0].service - self.tenants[1].service)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 1.0), (0.0, 3.0)])
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, LARGEST_PROMPT), st.sampled_from([1, 10, 100, 600])),
        min_size=2,
        max_size=20,
    ),
    picks=st.lists(st.integers(0, 99), max_size=60),
)
def test_the_published_bound(
    weights: tuple[float, float], sizes: Sequence[tuple[int, int]], picks: Sequence[int]
) -> None:
    """Theorem 4.4: over any interval |W_a - W_b| <= 2 max(w_p L_input, w_q M)."""
    race = Race(Vtc(input_weight=weights[0], output_weight=weights[1]))
    for number in range(2 * len(picks) + 2):
        race.join(number, sizes[number % len(sizes)])
    for pick in picks:
        race.turn(pick)
    bound = 2 * max(weights[0] * LARGEST_PROMPT, weights[1] * MEMORY)
    assert max(race.differences) - min(race.differences) <= bound


@pytest.mark.parametrize("field", ["input_weight", "output_weight"])
def test_weights_below_0_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="not be below 0"):
        Vtc(**{field: -1.0})
