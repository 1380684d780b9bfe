"""What fairness asks of the scheduler beyond the ledger: preemptions in time, and no free rides."""

from tests.core.steps import SECOND, only, session, state_of, step

from saga.core import actions as act
from saga.core import events as ev
from saga.core.cache import FOREVER
from saga.core.model import RequestState
from saga.testing import FakeCluster

ONE_AT_A_TIME = "saga_paper+stealing=null+retention=null+prefetch=null"


def crowded() -> FakeCluster:
    """An engine full of a light tenant's requests, and a heavy tenant's request behind them."""
    cluster = FakeCluster(ONE_AT_A_TIME, engines=1, max_num_seqs=2)
    for name in ("a", "b"):
        cluster.ask(name, tenant="light")
    cluster.tell(ev.WorkflowSubmitted(at=cluster.now, workflow="c", tenant="heavy", weight=10))
    cluster.ask("c")
    return cluster


def test_a_preemption_comes_though_no_event_touches_the_engine() -> None:
    cluster = crowded()
    preempted = only(cluster.advance(2 * SECOND), act.Preempt)
    assert len(preempted) == 1
    assert preempted[0].reason.startswith("gives way to request c")


def test_a_client_that_cancels_pays_for_what_ran() -> None:
    cluster = FakeCluster("vllm")
    cluster.ask("other", 10)  # keeps the tenant alive
    tenant = cluster.scheduler.state.tenants["tenant"]
    before = tenant.service
    request = cluster.ask("a", 4_000)
    assert state_of(cluster, request) is RequestState.RUNNING
    cluster.tell(ev.RequestCancelled(at=cluster.now, request=request))
    assert tenant.service >= before + 4_000 * 250


def test_kv_of_a_cancelled_queued_request_is_not_kept_for_ever() -> None:
    cluster = FakeCluster("saga+admission=null", engines=1, max_num_seqs=1, auto_start=True)
    step(cluster, "a", 1_000, tool="shell")
    cluster.ask("b", 1_000)
    cluster.advance(SECOND)
    request = cluster.ask("a", 1_300)
    assert state_of(cluster, request) is RequestState.QUEUED
    assert only(cluster.actions, act.Retain)[-1].until == FOREVER
    actions = cluster.tell(ev.RequestCancelled(at=cluster.now, request=request))
    assert [action.until for action in only(actions, act.Retain)] == [cluster.now]
    assert not session(cluster, "a").retained
