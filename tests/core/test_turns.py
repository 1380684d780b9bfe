"""Orderings that look at each turn or keep scores, and the virtual time that they may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.steps import SECOND, dispatched

from saga.config import load_preset
from saga.core import events as ev
from saga.core.policy import ChoosingPolicy, ClusterView, RequestView, ScoringPolicy
from saga.core.view import VirtualClock
from saga.testing import FakeCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class LastFirst:
    """Which request? The one whose workflow's name comes last. Notes down among which."""

    asked: list[list[str]] = field(default_factory=list)

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.arrived

    def choose(self, heads: Sequence[RequestView], cluster: ClusterView) -> RequestView:
        self.asked.append([head.id for head in heads])
        return max(heads, key=lambda head: head.session.workflow.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewestOutputs:
    """Which request? One of the workflow that has written least; unknown ones come last."""

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.session.workflow.score

    def first_score(self, request: RequestView, cluster: ClusterView) -> float:
        return 1_000.0 + request.prompt_tokens

    def next_score(self, request: RequestView, output_tokens: int, cluster: ClusterView) -> float:
        return output_tokens + request.cached_tokens


def one_seat(ordering: LastFirst | FewestOutputs) -> FakeCluster:
    bundle = load_preset("vllm+max_waiting_per_engine=1").policies
    return FakeCluster(replace(bundle, ordering=ordering), max_num_seqs=1)


def test_who_answers_what() -> None:
    chooser, scorer = LastFirst(), FewestOutputs()
    assert isinstance(chooser, ChoosingPolicy) and not isinstance(chooser, ScoringPolicy)
    assert isinstance(scorer, ScoringPolicy) and not isinstance(scorer, ChoosingPolicy)


def test_a_choice_is_made_at_the_turn_among_the_first_of_each_workflow() -> None:
    ordering = LastFirst()
    cluster = one_seat(ordering)
    running = cluster.ask("running")
    asked = [
        cluster.ask(name, workflow=workflow)
        for name, workflow in [("b1", "b"), ("a", "a"), ("b2", "b")]
    ]
    assert ordering.asked == [[running]], "not when they are queued"
    sent = dispatched(cluster.finish(running))
    assert ordering.asked[1:] == [asked[:2]]
    assert sent == [(asked[0], "engine-0")]
    sent = dispatched(cluster.finish(asked[0]))
    assert ordering.asked[2:] == [asked[1:]]
    assert sent == [(asked[2], "engine-0")]


def test_scores_are_given_at_the_first_request_and_after_each() -> None:
    cluster = one_seat(FewestOutputs())
    first = cluster.ask("s", 500)
    workflow = cluster.scheduler.state.workflows["s"]
    assert (workflow.score, workflow.score_at) == (1_500.0, 0)
    cluster.advance(SECOND)
    other = cluster.ask("sub", 900, workflow="s")
    assert (workflow.score, workflow.score_at) == (1_500.0, 0), "it has one"
    cluster.finish(first, 70)
    assert (workflow.score, workflow.score_at) == (70.0, SECOND)
    cluster.tell(ev.RequestCancelled(at=cluster.now, request=other))
    assert workflow.score == 70.0, "what did not finish tells nothing"


def test_keys_may_be_scores() -> None:
    cluster = one_seat(FewestOutputs())
    request = cluster.ask("known")
    cluster.finish(request, 70)
    running = cluster.ask("running")
    cluster.ask("unknown")
    known = cluster.ask("known")
    assert dispatched(cluster.finish(running)) == [(known, "engine-0")]


# ---- virtual time


def test_memory_is_shared_by_the_unfinished_workflows() -> None:
    """100 000 tokens: 1 s alone, 2 s by two, 1 s by two on twice as much memory, then alone."""
    cluster = FakeCluster("vllm", kv_capacity_tokens=100_000)

    def after(seconds: int) -> float:
        cluster.tell(ev.Tick(at=cluster.now + seconds * SECOND))
        return cluster.scheduler.view.virtual_time

    cluster.ask("a")
    assert after(1) == pytest.approx(100_000.0)
    cluster.ask("b")
    assert after(2) == pytest.approx(200_000.0)
    cluster.engine_up("engine-1", kv_capacity_tokens=100_000)
    assert after(1) == pytest.approx(300_000.0)
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="a"))
    assert after(1) == pytest.approx(500_000.0)


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 9)), max_size=20))
def test_a_clock_adds_up_its_rates(spans: list[tuple[int, int]]) -> None:
    clock, now, total = VirtualClock(), 0, 0.0
    for span, rate in spans:
        clock.run(rate, now)
        now, total = now + span, total + span * rate
        assert clock.read(now) == total
