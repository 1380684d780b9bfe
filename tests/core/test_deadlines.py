"""Workflows that cannot make their deadline: who is asked, what is left of them, how long newcomers
are thought to wait."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.steps import SECOND, dispatched, only, session, state_of, step
from tests.policies.mutants import AlwaysAdmits

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.model import Request, RequestState, Session, Workflow
from saga.core.policy import ClusterView, RequestView, Verdict
from saga.testing import FakeCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubts(AlwaysAdmits):
    """May this workflow start? Yes, unless it has a deadline; what was asked is in ``asked``."""

    asked: list[tuple[str, int]] = field(default_factory=list)

    def makes(self, request: RequestView, wait_us: int, cluster: ClusterView) -> Verdict:
        self.asked.append((request.id, wait_us))
        return Verdict(False, "it is late")


def submit(cluster: FakeCluster, name: str, deadline: int | None, tenant: str = "tenant") -> None:
    cluster.tell(
        ev.WorkflowSubmitted(at=cluster.now, workflow=name, tenant=tenant, deadline=deadline)
    )


def done(cluster: FakeCluster, name: str) -> None:
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow=name))


def doubtful() -> tuple[FakeCluster, list[tuple[str, int]]]:
    doubts = Doubts()
    return FakeCluster(replace(load_preset("saga").policies, admission=doubts)), doubts.asked


def experienced(seconds: Sequence[int] = (20,) * 10, preset: str = "saga") -> FakeCluster:
    """Where workflows of two steps took so long, all in their one tool call."""
    cluster = FakeCluster(preset)
    for number, tool_s in enumerate(seconds):
        step(cluster, f"past-{number}", 1_000, tool="shell")
        cluster.advance(tool_s * SECOND)
        step(cluster, f"past-{number}", 1_200)
        done(cluster, f"past-{number}")
    cluster.actions.clear()
    return cluster


# ---- who is asked


def test_a_hopeless_workflow_is_refused_at_once_with_the_numbers() -> None:
    cluster = experienced()
    submit(cluster, "late", cluster.now + 15 * SECOND)
    request = cluster.ask("late")
    assert cluster.actions == [
        act.Reject(
            request=request,
            reason="its deadline is in 15.0 s, and 90 % of workflows of type agent take at least "
            "20.0 s",
            code="deadline_unreachable",
        )
    ]
    assert not session(cluster, "late").admitted
    assert cluster.scheduler.state.num_ended[RequestState.REJECTED] == 1


def test_the_others_are_not() -> None:
    cluster = experienced()
    submit(cluster, "in time", cluster.now + 20 * SECOND)
    submit(cluster, "careless", None)
    assert [state_of(cluster, cluster.ask(name)) for name in ("in time", "careless")] == 2 * [
        RequestState.RUNNING
    ]


def test_without_admission_nobody_is_refused() -> None:
    for preset in ("vllm", "saga+admission=null"):
        cluster = experienced(preset=preset)
        submit(cluster, "late", cluster.now - SECOND)
        assert state_of(cluster, cluster.ask("late")) is RequestState.RUNNING


def test_what_policies_think_of_workflows_without_a_deadline_does_not_count() -> None:
    cluster, asked = doubtful()
    cluster.ask("careless")
    assert len(dispatched(cluster.actions)) == 1
    assert asked == []


def test_a_policy_is_asked_once_and_its_answer_holds() -> None:
    cluster, asked = doubtful()
    submit(cluster, "late", 10 * SECOND)
    first = cluster.ask("late")
    cluster.advance(SECOND)
    cluster.ask("late")
    cluster.tell(
        ev.SessionOpened(at=cluster.now, session="late/sub", workflow="late", parent="late")
    )
    cluster.ask("late/sub", workflow="late")
    assert asked == [(first, 0)]
    assert [action.reason for action in only(cluster.actions, act.Reject)] == 3 * ["it is late"]
    assert dispatched(cluster.actions) == []


@pytest.mark.parametrize("waits", [False, True])
def test_steps_of_a_workflow_that_was_let_in_are_never_refused(waits: bool) -> None:
    """Neither is one that still waits for admission when its deadline is over."""
    cluster = experienced()
    if waits:
        cluster.ask("large", 60_000)
    submit(cluster, "slow", cluster.now + 30 * SECOND)
    first = cluster.ask("slow", 60_000)
    cluster.advance(100 * SECOND)
    assert (state_of(cluster, first) is RequestState.QUEUED) == waits
    if waits:
        done(cluster, "large")
    cluster.finish(first, tool="shell")
    cluster.advance(100 * SECOND)
    assert state_of(cluster, cluster.ask("slow", 61_000)) is RequestState.RUNNING
    cluster.tell(
        ev.SessionOpened(at=cluster.now, session="slow/sub", workflow="slow", parent="slow")
    )
    assert cluster.ask("slow/sub", 10, workflow="slow") in cluster.scheduler.state.requests
    assert only(cluster.actions, act.Reject) == []


def test_whoever_was_here_before_is_not_asked() -> None:
    """A sub-agent whose root is not known here, and a session that comes back to its KV: their
    workflows are under way."""
    cluster, asked = doubtful()
    submit(cluster, "sub", SECOND)
    cluster.tell(ev.SessionOpened(at=cluster.now, session="sub", workflow="sub", parent="root"))
    submit(cluster, "back", SECOND)
    cluster.tell(ev.SessionOpened(at=cluster.now, session="back", workflow="back"))
    cluster.tell(ev.BlocksStored(at=cluster.now, engine="engine-0", session="back", num_tokens=500))
    for name in ("sub", "back"):
        assert state_of(cluster, cluster.ask(name)) is RequestState.RUNNING
    assert asked == []


# ---- what is left of it


def test_a_refused_workflow_leaves_nothing_behind() -> None:
    """But for the counts of requests, and numbers of events that nobody decides by."""
    cluster = experienced()
    cluster.ask("other")
    state = cluster.scheduler.state
    before = everything_but_counts(cluster)
    submit(cluster, "late", cluster.now + SECOND, tenant="newcomer")
    cluster.ask("late")
    done(cluster, "late")
    cluster.advance(100 * SECOND)  # its session's absence lapses
    cluster.tell(ev.Tick(at=cluster.now))
    assert "newcomer" not in state.tenants
    assert not cluster.scheduler.kv.lapses
    after = everything_but_counts(cluster)
    assert after == before


def everything_but_counts(cluster: FakeCluster) -> object:
    """Who waits where, what was given to whom, and what was learned."""
    scheduler, state = cluster.scheduler, cluster.scheduler.state
    graph = scheduler.view.graphs["agent"]
    return (
        [len(queue) for queue in (scheduler.unadmitted, *scheduler.queues.values())],
        {name: lane.virtual_time for name, lane in scheduler.unadmitted.lanes.items()},
        {name: (tenant.service, tenant.share) for name, tenant in state.tenants.items()},
        (list(state.workflows), list(state.sessions), list(state.requests)),
        (graph.num_sessions, graph.ideal_us.count, len(graph.durations_us)),
        (state.total_weight, [engine.committed_tokens for engine in state.engines.values()]),
    )


@given(
    seconds=st.lists(st.integers(0, 40), min_size=1, max_size=14),
    deadlines_s=st.lists(st.integers(-5, 50), min_size=2, max_size=6),
)
def test_law_whoever_is_refused_would_be_at_any_earlier_deadline(
    seconds: list[int], deadlines_s: list[int]
) -> None:
    cluster = experienced(seconds)
    refused = []
    for number, deadline_s in enumerate(sorted(deadlines_s)):
        submit(cluster, f"w{number}", cluster.now + deadline_s * SECOND)
        request = cluster.ask(f"w{number}", 100)
        refused.append(request not in cluster.scheduler.state.requests)
        done(cluster, f"w{number}")
    assert refused == sorted(refused, reverse=True)
    enough = len(seconds) >= 10
    overdue = [deadline_s <= 0 for deadline_s in sorted(deadlines_s)]
    assert refused == overdue or enough


# ---- what workflows take


def test_what_workflows_take_is_learned_without_their_queueing() -> None:
    """Two prompts of 1,000 tokens, of which no one is cached, 30 of output, and 3 s of a tool."""
    cluster = FakeCluster("saga", auto_start=False)
    for number in range(10):
        name = f"w{number}"
        cluster.finish(cluster.ask(name, 1_000), 10, tool="shell")
        cluster.advance(3 * SECOND)
        request = cluster.ask(name, 1_000)
        cluster.advance(7 * SECOND)
        cluster.finish(request, 20)
        graph = cluster.scheduler.view.graphs["agent"]
        assert graph.fastest_us(0.1) is None
        cluster.advance(50 * SECOND)  # nobody said that it is over
        done(cluster, name)
    assert graph.fastest_us(0.1) == 2 * 1_000 * 250 + 30 * 2_500 + 3 * SECOND


def test_sessions_side_by_side_take_no_longer_than_all_of_them_together() -> None:
    """From the first request to the end of the last step, whatever is declared or closed when."""
    cluster = FakeCluster("saga")
    for number in range(10):
        name = f"w{number}"
        submit(cluster, name, None)
        cluster.advance(5 * SECOND)
        step(cluster, name, 100, tool="agents")
        for child in range(8):
            cluster.tell(
                ev.SessionOpened(
                    at=cluster.now, session=f"{name}/{child}", workflow=name, parent=name
                )
            )
            step(cluster, f"{name}/{child}", 100, tool="shell")
        cluster.advance(9 * SECOND)
        for child in range(8):
            step(cluster, f"{name}/{child}", 200)
        step(cluster, name, 300)
        cluster.advance(50 * SECOND)
        done(cluster, name)
    graph = cluster.scheduler.view.graphs["agent"]
    assert graph.ideal_us.value(0) > 72 * SECOND
    assert graph.fastest_us(0.1) == 9 * SECOND


# ---- the wait for admission


def crowd(cluster: FakeCluster, names: str, tenant: str = "tenant") -> None:
    """One workflow at a time has room."""
    for name in names:
        cluster.ask(name, 60_000, tenant=tenant)


def wait_us(cluster: FakeCluster, tenant: str, deadline: int | None = None) -> int:
    """Of a newcomer of the tenant."""
    scheduler = cluster.scheduler
    workflow = Workflow(
        id="new",
        tenant=scheduler.state.tenants[tenant],
        agent_type="agent",
        submitted=cluster.now,
        ranked_at=cluster.now,
        deadline=deadline,
    )
    request = Request(
        id="new",
        session=Session(id="new", workflow=workflow),
        arrived=cluster.now,
        prompt_tokens=60_000,
        expected_output_tokens=1,
    )
    return scheduler.admission.deadlines.wait_us(request)


def test_who_waits_behind_more_waits_longer() -> None:
    """Each runs for 10 s: the k-th of those that wait from the beginning on is let in after 10 k s,
    10 s a place. What is learned begins at 0, as for a tenant that never waited."""
    cluster = FakeCluster("saga", kv_capacity_tokens=100_000)
    crowd(cluster, "abcdefgh")
    assert wait_us(cluster, "tenant") == 0, "nobody was let in that had waited"
    known = 0.0
    for number, name in enumerate("abcdefg"):
        cluster.advance(10 * SECOND)
        done(cluster, name)
        known += 0.2 * (10 * SECOND - known)
        num_waiting = 6 - number
        expected = known * (num_waiting + 1) if num_waiting else 0.0
        assert wait_us(cluster, "tenant") == pytest.approx(expected, abs=1)
    crowd(cluster, "i")
    assert wait_us(cluster, "tenant") == pytest.approx(2 * known, abs=1)


def test_a_tenant_of_which_nobody_waits_is_thought_to_wait_for_nothing() -> None:
    cluster = FakeCluster("saga", kv_capacity_tokens=100_000)
    cluster.ask("light's", 100, tenant="light")
    crowd(cluster, "abcdefgh", tenant="heavy")
    for name in "abcd":
        cluster.advance(10 * SECOND)
        done(cluster, name)
    assert wait_us(cluster, "heavy") > 10 * SECOND
    assert wait_us(cluster, "light") == 0


def test_the_wait_is_told_to_the_policy_and_to_the_client() -> None:
    cluster = experienced()
    crowd(cluster, "abcdefgh")
    for name in "abcd":
        cluster.advance(10 * SECOND)
        done(cluster, name)
    expected = wait_us(cluster, "tenant")
    for name, slack, refused in (("in time", expected + 1, False), ("late", expected - 1, True)):
        submit(cluster, name, cluster.now + 20 * SECOND + slack)
        if refused:
            expected = wait_us(cluster, "tenant")  # one more waits
        request = cluster.ask(name, 60_000)
        assert (request not in cluster.scheduler.state.requests) == refused
    (reject,) = only(cluster.actions, act.Reject)
    assert reject.reason.endswith(
        f"at least 20.0 s, after a wait of about {expected / 1e6:.1f} s for memory"
    )


def test_sub_agents_say_nothing_about_the_wait_of_newcomers() -> None:
    """They go ahead of workflows that are younger than theirs."""
    cluster = FakeCluster("saga", kv_capacity_tokens=100_000)
    step(cluster, "a", 60_000, tool="agents")
    cluster.tell(ev.SessionOpened(at=cluster.now, session="a/1", workflow="a", parent="a"))
    cluster.ask("a/1", 60_000, workflow="a")
    assert wait_us(cluster, "tenant") == 0
    cluster.advance(SECOND)
    cluster.tell(ev.SessionClosed(at=cluster.now, session="a"))
    assert session(cluster, "a/1").admitted
    assert cluster.scheduler.state.tenants["tenant"].place_us == 0.0


def test_without_fair_queues_all_tenants_wait_in_one_line() -> None:
    cluster = FakeCluster("saga+fairness=null", kv_capacity_tokens=100_000)
    cluster.ask("light's", 100, tenant="light")
    crowd(cluster, "abc", tenant="heavy")
    request = cluster.ask("d", 60_000, tenant="light")
    assert cluster.scheduler.state.requests[request].place == 3


def test_who_is_more_urgent_waits_at_the_place_that_its_ordering_gives_it() -> None:
    cluster = FakeCluster("saga+ordering=edf", kv_capacity_tokens=100_000)
    for number in range(6):
        submit(cluster, f"w{number}", (1_000 + 100 * number) * SECOND)
        cluster.ask(f"w{number}", 60_000)
    cluster.advance(10 * SECOND)
    done(cluster, "w0")
    place_us = 0.2 * 10 * SECOND
    for deadline_s, place in ((10, 1), (1_150, 1), (1_250, 2), (1_550, 5)):  # w2 to w5 wait
        assert wait_us(cluster, "tenant", deadline_s * SECOND) == place * place_us
