"""Law 9, purity: a policy looks, and leaves everything as it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from saga.config import QUESTIONS, PolicyInfo, known_policies
from saga.core import events as ev
from saga.core.cache import CacheView, KVEntry
from saga.core.loads import MEASURES
from saga.core.model import RequestState
from saga.core.policy import ChoosingPolicy, ScoringPolicy
from saga.testing import FakeCluster, snapshot

SECOND = 1_000_000


def busy_cluster() -> FakeCluster:
    """Engines full and draining, requests in every state, graphs and tools with a history."""
    cluster = FakeCluster(
        "saga+admission.kappa=0.4+admission.reserve=0.0",
        engines=3,
        kv_capacity_tokens=20_000,
        max_num_seqs=2,
    )
    for number in range(62):
        tenant, agent_type = ("a", "coder") if number % 2 else ("b", "browser")
        workflow = f"past-{number}"
        cluster.tell(
            ev.WorkflowSubmitted(
                at=cluster.now, workflow=workflow, tenant=tenant, agent_type=agent_type
            )
        )
        for tool in ("shell", "search", None):
            cluster.finish(cluster.ask(workflow, 1_000), tool=tool)
            cluster.advance(3 * SECOND)
        cluster.tell(ev.WorkflowDone(at=cluster.now, workflow=workflow))
    for number in range(8):
        name, tenant = f"w{number}", "abc"[number % 3]
        cluster.tell(
            ev.WorkflowSubmitted(
                at=cluster.now,
                workflow=name,
                tenant=tenant,
                agent_type="coder" if number % 2 else "browser",
                weight=1.0 + number,
                deadline=cluster.now + (8 + number) * SECOND if number % 4 == 0 else None,
                mean_steps=7.0,
            )
        )
        cluster.ask(f"{name}/root", 2_000 + number, workflow=name)
        if number % 3 == 0:
            cluster.ask(f"{name}/sub", 4_000, workflow=name)
    running = next(engine.running[0] for engine in cluster.engines.values() if engine.running)
    cluster.finish(running, tool="shell")
    cluster.tell(ev.EngineDraining(at=cluster.now, engine="engine-2"))
    cluster.auto_start = False
    cluster.engine_up("engine-3", kv_capacity_tokens=10_000, max_num_seqs=1)
    cluster.advance(SECOND)
    cluster.ask("w1/late", 3_000, workflow="w1")
    return cluster


Question = tuple[Callable[..., Any], tuple[Any, ...]]


def questions(info: PolicyInfo, policy: Any, cluster: FakeCluster) -> list[Question]:
    """Everything that the policy can be asked about this cluster."""
    state, view = cluster.scheduler.state, cluster.scheduler.view
    requests = list(state.requests.values())
    running = [request for request in requests if request.state is RequestState.RUNNING]
    ask = getattr(policy, QUESTIONS[info.kind])
    match info.kind:
        case "admission":
            sessions = state.sessions.values()
            return [
                *((ask, (request, view)) for request in requests),
                *((policy.makes, (request, SECOND, view)) for request in requests),
                *((policy.growth_tokens, (session, 1_000, view)) for session in sessions),
                *((policy.absence_us, (session, view)) for session in sessions),
            ]
        case "routing":
            return [(ask, (request, view)) for request in requests]
        case "ordering":
            asked: list[Question] = [(ask, (request, view)) for request in requests]
            if isinstance(policy, ChoosingPolicy):
                asked.append((policy.choose, (requests, view)))
            if isinstance(policy, ScoringPolicy):
                asked += [(policy.first_score, (request, view)) for request in requests]
                asked += [(policy.next_score, (request, 100, view)) for request in requests]
            return asked
        case "retention" | "offload" | "prefetch":
            at_home = [s for s in state.sessions.values() if s.home is not None]
            return [(ask, (session, view)) for session in at_home]
        case "fairness":
            limits, engine = (policy.limit, policy.start_limit), view.engines[0]
            return [
                *((ask, (workflow, view)) for workflow in state.workflows.values()),
                *((policy.share, (tenant, tenant.urgency)) for tenant in state.tenants.values()),
                *((policy.preempt, (request, running, view)) for request in requests),
                *((limit, (least,)) for limit in limits for least in (0.0, 1e7)),
                *((policy.forecast_cost, (request, 500, engine)) for request in requests),
                *((policy.final_cost, (request, 500, 100, engine)) for request in requests),
            ]
        case "stealing":
            return [(ask, (view,))]
        case "eviction":
            entries = [KVEntry(session="s", tokens=5, last_access=at) for at in (1, 5)]
            return [(ask, (entry, CacheView(10, 9, 5))) for entry in entries]
        case _:
            raise AssertionError(f"nobody here knows how to ask about {info.kind}")


@pytest.mark.parametrize("info", known_policies().values(), ids=lambda info: info.name)
def test_law_9_a_policy_call_leaves_the_state_equal(info: PolicyInfo) -> None:
    cluster = busy_cluster()
    policy = info.cls()
    asked = questions(info, policy, cluster)
    assert asked
    look_at_loads(cluster)
    everything = (cluster.scheduler, policy, asked)
    before = snapshot(everything)
    answers = [ask(*arguments) for ask, arguments in asked]
    assert [ask(*arguments) for ask, arguments in asked] == answers, "same question, same answer"
    assert snapshot(everything) == before


def look_at_loads(cluster: FakeCluster) -> None:
    """Loads are calculated when somebody looks; so that is not a trace that a policy left."""
    for measure in MEASURES:
        cluster.scheduler.view.loads.table(measure)


def test_the_cluster_is_busy() -> None:
    cluster = busy_cluster()
    state = cluster.scheduler.state
    states = {request.state for request in state.requests.values()}
    assert states == {RequestState.QUEUED, RequestState.DISPATCHED, RequestState.RUNNING}
    assert len(state.tenants) == 3
    assert any(session.tool == "shell" for session in state.sessions.values())
    assert any(engine.num_queued for engine in state.engines.values())
    assert cluster.scheduler.unadmitted
    assert [engine.draining for engine in state.engines.values()].count(True) == 1
    assert cluster.scheduler.view.graphs["coder"].p_continue("shell") is not None


def test_a_snapshot_sees_every_change() -> None:
    """A picture that cannot differ would prove nothing."""
    cluster = busy_cluster()
    look_at_loads(cluster)
    before = snapshot(cluster.scheduler)
    assert snapshot(cluster.scheduler) == before
    state, view = cluster.scheduler.state, cluster.scheduler.view
    changes: list[tuple[Any, str]] = [
        (next(iter(state.requests.values())), "charged"),
        (next(iter(state.sessions.values())), "resident_tokens"),
        (next(iter(state.workflows.values())), "gap_us"),
        (next(iter(state.tenants.values())), "service"),
        (next(iter(state.engines.values())), "num_running"),
        (view.graphs["coder"], "num_sessions"),
        (cluster.scheduler.unadmitted, "virtual_time"),
    ]
    for thing, name in changes:
        value = getattr(thing, name)
        setattr(thing, name, value + 1)
        assert snapshot(cluster.scheduler) != before, name
        setattr(thing, name, value)
        assert snapshot(cluster.scheduler) == before
    view.return_times.observe("shell", 1)
    assert snapshot(cluster.scheduler) != before


def test_a_policy_has_no_memory() -> None:
    """Its fields are its parameters and cannot be written."""
    for info in known_policies().values():
        policy = info.cls()
        assert replace(policy) == policy
        with pytest.raises((AttributeError, TypeError)):
            policy.memory = 1
