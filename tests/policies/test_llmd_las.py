"""llm-d's LAS: scores by hand, and that the order depends on differences in time only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.steps import dispatched
from tests.policies.factory import SECOND, Cluster, request, session, workflow

from saga.core.model import Request
from saga.core.policy import RequestView
from saga.policies.llmd_las import LlmdLas
from saga.testing import FakeCluster


def head(name: str, service: float, *, at_s: int = 0, arrived_s: int = 0) -> Request:
    """Of a workflow with so much service as of ``at_s``."""
    owner = workflow(name, score=service, score_at=at_s * SECOND)
    return request(name, of=session(of=owner), arrived=arrived_s * SECOND)


def test_service_halves_and_then_grows() -> None:
    """8 000 a minute ago are 4 000; 1 000 of prompt and twice 50 of output come on top."""
    asked = head("w", 8_000.0)
    asked.cached_tokens = 900
    cluster = Cluster(now=60 * SECOND)
    assert LlmdLas().next_score(asked, 50, cluster) == pytest.approx(5_100.0)
    assert LlmdLas(uncached_only=True).next_score(asked, 50, cluster) == pytest.approx(4_200.0)
    assert LlmdLas(output_weight=0.0).next_score(asked, 50, cluster) == pytest.approx(5_000.0)
    assert LlmdLas().first_score(asked, cluster) == 0.0


@pytest.mark.parametrize(
    ("service_of_c", "chosen"),
    [(3_000, "c"), (6_000, "b"), (10_000, "b")],
)
def test_a_turn_by_hand(service_of_c: float, chosen: str) -> None:
    """Services 10 000, 5 000 and that of c, waits 10 s, 5 s and 0 s.

    3 000: a 0.2, b 0.8 (1 - 2/7) + 0.1 = 0.67, c 0.8. 6 000: a 0.2, b 0.9, c 0.64.
    """
    heads = [
        head("a", 10_000, arrived_s=0),
        head("b", 5_000, arrived_s=5),
        head("c", service_of_c, arrived_s=10),
    ]
    assert LlmdLas().choose(heads, Cluster(now=10 * SECOND)).id == chosen


HEADS = st.lists(
    st.tuples(st.integers(0, 100_000), st.integers(0, 600), st.integers(0, 600)),
    min_size=1,
    max_size=6,
)
"""Service, as of when, arrived."""


def heads_of(drawn: list[tuple[int, int, int]]) -> list[Request]:
    made = [
        head(f"w{number}", float(service), at_s=at_s, arrived_s=arrived_s)
        for number, (service, at_s, arrived_s) in enumerate(drawn)
    ]
    return sorted(made, key=lambda waits: waits.arrived)


@given(HEADS)
def test_at_its_ends_it_is_first_come_first_served_and_least_service(
    drawn: list[tuple[int, int, int]],
) -> None:
    heads, cluster = heads_of(drawn), Cluster(now=600 * SECOND)
    assert LlmdLas(service_weight=0.0).choose(heads, cluster) is heads[0]
    least = LlmdLas(service_weight=1.0, half_life_s=1e15).choose(heads, cluster)
    assert least.session.workflow.score == min(waits.session.workflow.score for waits in heads)


@given(HEADS, st.sampled_from([0.5, 0.8]))
def test_time_alone_does_not_change_whose_turn_it_is(
    drawn: list[tuple[int, int, int]], weight: float
) -> None:
    """All service decays alike and all wait alike; only who comes and goes can change the order."""
    heads, policy = heads_of(drawn), LlmdLas(service_weight=weight)
    chosen = policy.choose(heads, Cluster(now=600 * SECOND))
    later = policy.choose(heads, Cluster(now=660 * SECOND))
    assert later is chosen or merit(policy, heads, later) == pytest.approx(
        merit(policy, heads, chosen)
    )


def merit(policy: LlmdLas, heads: list[Request], of: RequestView) -> float:
    """What is compared, calculated once more."""
    services = {
        waits.id: waits.session.workflow.score * 2.0 ** (waits.session.workflow.score_at / 60e6)
        for waits in heads
    }
    arrivals = {waits.id: waits.arrived for waits in heads}

    def part(values: dict[str, float] | dict[str, int]) -> float:
        least, most = min(values.values()), max(values.values())
        return (values[of.id] - least) / (most - least) if most > least else 0.0

    weight = policy.service_weight
    return weight * (1.0 - part(services)) - (1.0 - weight) * part(arrivals)


def test_who_was_served_lets_another_by() -> None:
    cluster = FakeCluster("llmd_las+max_waiting_per_engine=1", max_num_seqs=1)
    cluster.finish(cluster.ask("served", 5_000), 500)
    running = cluster.ask("running")
    served, new = cluster.ask("served"), cluster.ask("new")
    assert dispatched(cluster.finish(running)) == [(new, "engine-0")]
    assert dispatched(cluster.finish(new)) == [(served, "engine-0")]
    workflow = cluster.scheduler.state.workflows["served"]
    assert workflow.score == 6_000.0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="half_life_s must be above 0"):
        LlmdLas(half_life_s=0.0)
    with pytest.raises(ValueError, match=r"service_weight is 1\.1"):
        LlmdLas(service_weight=1.1)
