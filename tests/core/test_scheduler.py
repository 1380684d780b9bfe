"""One example per event, action and rule of the scheduler."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pytest
from tests.core.bundles import bundle

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.cache import FOREVER
from saga.core.errors import ClockError, CoreError, DuplicateIdError, UnknownIdError
from saga.core.model import RequestState, Session, SessionState
from saga.core.policy import (
    ClusterView,
    RequestView,
    Route,
    SessionView,
    Steal,
    TenantView,
    WorkflowView,
)
from saga.core.scheduler import Scheduler
from saga.testing import FakeCluster, snapshot

A = TypeVar("A")
SECOND = 1_000_000


def only(actions: Iterable[act.Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def dispatched(actions: Iterable[act.Action]) -> list[tuple[str, str]]:
    return [(action.request, action.engine) for action in only(actions, act.Dispatch)]


def session(cluster: FakeCluster, name: str) -> Session:
    return cluster.scheduler.state.sessions[name]


def state_of(cluster: FakeCluster, request: str) -> RequestState:
    return cluster.scheduler.state.requests[request].state


def reason_of(cluster: FakeCluster, request: str) -> str:
    return cluster.scheduler.state.requests[request].reason


def everything(scheduler: Scheduler) -> object:
    """All that it knows, but for the actions of the last event."""
    known = {name: value for name, value in vars(scheduler).items() if name != "_actions"}
    return snapshot(known)


def step(cluster: FakeCluster, name: str, prompt_tokens: int, *, tool: str | None = None) -> None:
    """One request of the session, from its arrival to its end."""
    cluster.finish(cluster.ask(name, prompt_tokens), tool=tool)


# ---- arrival and dispatch


def test_an_arrival_beside_room_is_dispatched_at_once() -> None:
    cluster = FakeCluster("vllm", auto_start=False)
    request = cluster.ask("s")
    (dispatch,) = cluster.actions
    assert dispatch == act.Dispatch(request=request, engine="engine-0", reason="next in turn")
    assert session(cluster, "s").state is SessionState.REASONING
    assert session(cluster, "s").home is None, "ownership begins when the engine accepts"
    cluster.start(request)
    assert session(cluster, "s").home is cluster.scheduler.state.engines["engine-0"]
    assert session(cluster, "s").resident_tokens == 1_000
    cluster.finish(request, 100)
    assert session(cluster, "s").state is SessionState.ACTING
    assert session(cluster, "s").resident_tokens == 1_100
    assert cluster.scheduler.state.num_ended == {RequestState.FINISHED: 1}


def test_without_an_engine_a_request_waits_and_says_why() -> None:
    cluster = FakeCluster("vllm", engines=0)
    request = cluster.ask("s")
    assert not dispatched(cluster.actions)
    assert reason_of(cluster, request) == "no engine is up"
    assert dispatched(cluster.engine_up("late")) == [(request, "late")]


def test_without_a_limit_everything_is_sent_and_the_engine_orders_it() -> None:
    cluster = FakeCluster("batch_optimal", max_num_seqs=1)
    step(cluster, "old", 1_000)
    running = cluster.ask("other")
    deep = cluster.ask("old")
    fresh = cluster.ask("new")
    engine = cluster.engines["engine-0"]
    assert (engine.running, engine.waiting) == ([running], [fresh, deep]), "breadth first"


def test_no_more_wait_on_an_engine_than_the_limit() -> None:
    cluster = FakeCluster("vllm+max_waiting_per_engine=2", auto_start=False)
    first, second, third = (cluster.ask(name) for name in "abc")
    assert state_of(cluster, third) is RequestState.QUEUED
    assert cluster.engines["engine-0"].waiting == [first, second]
    assert dispatched(cluster.start(second)) == [(third, "engine-0")]


def test_with_a_limit_an_engine_gets_no_more_than_its_batch_holds() -> None:
    cluster = FakeCluster("vllm+max_waiting_per_engine=2", max_num_seqs=1)
    first, second = cluster.ask("a"), cluster.ask("b")
    assert state_of(cluster, second) is RequestState.QUEUED
    assert dispatched(cluster.finish(first)) == [(second, "engine-0")]


def test_a_queue_is_served_in_the_order_of_the_policy() -> None:
    cluster = FakeCluster("vllm+max_waiting_per_engine=1+ordering=depth_first", max_num_seqs=1)
    step(cluster, "deep", 1_000)
    running = cluster.ask("running")
    cluster.ask("fresh")
    deep = cluster.ask("deep")
    assert dispatched(cluster.finish(running)) == [(deep, "engine-0")]


def test_what_routing_holds_back_is_asked_for_again_every_epoch() -> None:
    cluster = FakeCluster(bundle("hesitant"))
    request = cluster.ask("s")
    assert reason_of(cluster, request) == "held by routing"
    assert cluster.wake is not None and 0 < cluster.wake <= 100_000
    assert not dispatched(cluster.advance(149_999))
    assert dispatched(cluster.advance(200_000)) == [(request, "engine-0")]


def test_affinity_keeps_a_session_at_its_home() -> None:
    cluster = FakeCluster("vllm_apc_affinity", engines=3)
    for number in range(3):
        cluster.ask(f"busy-{number}")
    step(cluster, "s", 1_000)
    home = session(cluster, "s").home
    assert home is not None
    for number in range(6):  # others make it the most loaded one
        cluster.ask(f"more-{number}")
    for _ in range(3):
        cluster.actions.clear()
        step(cluster, "s", 2_000)
        assert dispatched(cluster.actions)[0][1] == home.id


def test_a_home_too_loaded_is_left_and_its_kv_moves_or_is_released() -> None:
    for move_kv in (True, False):
        routing = "{policy: affinity_threshold, theta: 0.0, margin: -1, placement: sessions}"
        cluster = FakeCluster(
            f"saga+routing={routing}+routing.move_kv={str(move_kv).lower()}", engines=1
        )
        step(cluster, "s", 1_000)
        cluster.engine_up("engine-1")
        cluster.actions.clear()
        request = cluster.ask("s", 1_200)
        (retain,) = only(cluster.actions, act.Retain)
        assert retain.engine == "engine-0"
        assert dispatched(cluster.actions) == [(request, "engine-1")]
        moves = [(move.source, move.target) for move in only(cluster.actions, act.Move)]
        releases = [release.engine for release in only(cluster.actions, act.Release)]
        assert moves == ([("engine-0", "engine-1")] if move_kv else [])
        assert releases == ([] if move_kv else ["engine-0"])
        engines = cluster.scheduler.state.engines
        assert session(cluster, "s").home is engines["engine-1"]
        assert engines["engine-0"].resident_tokens == 0
        assert engines["engine-1"].resident_tokens == 1_200


# ---- what becomes of KV


def test_a_gap_retains_kv_until_the_usual_return() -> None:
    cluster = FakeCluster("saga_paper")
    step_request = cluster.ask("s", mean_steps=5)
    (retain,) = only(cluster.finish(step_request, tool="shell"), act.Retain)
    assert retain.until == 300 * SECOND, "a tool that was never seen: the longest TTL"
    assert retain.score == pytest.approx(0.8)
    cluster.advance(7 * SECOND)
    (retain,) = only(cluster.finish(cluster.ask("s"), tool="shell"), act.Retain)
    assert retain.until == cluster.now + 7 * SECOND, "now it was seen once"
    (retain,) = only(cluster.finish(cluster.ask("s"), tool=None), act.Retain)
    assert retain.until == cluster.now, "no tool called: scored only"


def test_nothing_is_retained_while_the_graph_is_neither_declared_nor_learned() -> None:
    cluster = FakeCluster("saga_paper")
    assert not only(cluster.finish(cluster.ask("s"), tool="shell"), act.Retain)


@pytest.mark.parametrize(("preset", "released"), [("saga", ["engine-0"]), ("saga_paper", [])])
def test_a_finished_session_is_released_where_the_policy_wants_it(
    preset: str, released: list[str]
) -> None:
    cluster = FakeCluster(preset)
    step(cluster, "s", 1_000)
    actions = cluster.tell(ev.SessionClosed(at=cluster.now, session="s"))
    assert [release.engine for release in only(actions, act.Release)] == released
    assert cluster.scheduler.state.engines["engine-0"].resident_tokens == 0


def test_kv_of_a_queued_request_stays_until_it_runs() -> None:
    cluster = FakeCluster("saga")
    step(cluster, "s", 1_000)
    cluster.actions.clear()
    cluster.ask("s")
    assert [type(action) for action in cluster.actions] == [act.Retain, act.Dispatch]
    (retain,) = only(cluster.actions, act.Retain)
    assert retain.until == FOREVER


def test_kv_of_a_rejected_request_is_not_retained() -> None:
    cluster = FakeCluster("saga", kv_capacity_tokens=10_000)
    step(cluster, "s", 1_000)
    cluster.actions.clear()
    cluster.ask("s", 20_000)
    assert [type(action) for action in cluster.actions] == [act.Reject]


def test_kv_is_counted_at_home_only() -> None:
    cluster = FakeCluster("vllm", engines=2)
    step(cluster, "s", 1_000)
    home = session(cluster, "s").home
    assert home is not None
    other = next(name for name in cluster.engines if name != home.id)
    tell = cluster.tell
    tell(ev.BlocksRemoved(at=cluster.now, engine=other, session="s", num_tokens=0))
    assert home.resident_tokens == 1_100
    tell(ev.BlocksRemoved(at=cluster.now, engine=home.id, session="s", num_tokens=400))
    assert home.resident_tokens == session(cluster, "s").resident_tokens == 400
    tell(ev.BlocksStored(at=cluster.now, engine=home.id, session="s", num_tokens=900))
    assert home.resident_tokens == 900
    tell(ev.BlocksRemoved(at=cluster.now, engine=home.id, session="unheard of", num_tokens=0))
    assert home.resident_tokens == 900


def test_a_report_is_as_old_as_it_says() -> None:
    cluster = FakeCluster("vllm")
    cluster.now = 5_000
    cluster.tell(ev.EngineReport(at=5_000, engine="engine-0", kv_used_fraction=0.4, age_us=2_000))
    engine = cluster.scheduler.state.engines["engine-0"]
    assert (engine.kv_used_fraction, engine.reported) == (0.4, 3_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadAll:
    """Keep or move to host memory? Always move."""

    store: bool = True

    def offload_now(self, session: SessionView, cluster: ClusterView) -> bool:
        return True


def test_offloading_at_the_end_of_a_step() -> None:
    cluster = FakeCluster(replace(load_preset("vllm").policies, offload=OffloadAll()))
    (offload,) = only(cluster.finish(cluster.ask("s")), act.Offload)
    assert (offload.engine, offload.session) == ("engine-0", "s")


def returning(cluster: FakeCluster, return_us: int) -> None:
    """A session whose tool returned once, after ``return_us``, and now runs again."""
    step(cluster, "s", 1_000, tool="shell")
    cluster.advance(return_us)
    step(cluster, "s", 2_000, tool="shell")


def test_evicted_kv_is_prefetched_shortly_before_the_usual_return() -> None:
    cluster = FakeCluster("saga_paper")
    returning(cluster, 10 * SECOND)
    assert cluster.wake == 19 * SECOND, "one second ahead of the median"
    cluster.tell(ev.BlocksRemoved(at=cluster.now, engine="engine-0", session="s", num_tokens=100))
    assert not only(cluster.advance(9 * SECOND - 1), act.Prefetch)
    (prefetch,) = only(cluster.advance(1), act.Prefetch)
    assert (prefetch.engine, prefetch.session) == ("engine-0", "s")
    assert session(cluster, "s").num_prefetches == 1
    assert cluster.wake is None
    cluster.finish(cluster.ask("s", 2_500))
    assert session(cluster, "s").num_prefetches == 0, "counted gap by gap"


def test_a_plan_for_an_earlier_gap_is_forgotten() -> None:
    cluster = FakeCluster("saga_paper")
    returning(cluster, 10 * SECOND)  # plans for 19 s
    cluster.advance(2 * SECOND)
    step(cluster, "s", 3_000, tool="shell")  # plans for 13 s
    cluster.tell(ev.BlocksRemoved(at=cluster.now, engine="engine-0", session="s", num_tokens=100))
    assert len(only(cluster.advance(SECOND), act.Prefetch)) == 1
    assert not only(cluster.advance(20 * SECOND), act.Prefetch)


@pytest.mark.parametrize("why", ["all is there", "it is back already", "it is gone"])
def test_no_prefetch_where_none_is_needed(why: str) -> None:
    cluster = FakeCluster("saga_paper")
    returning(cluster, 10 * SECOND)
    if why != "all is there":
        cluster.tell(
            ev.BlocksRemoved(at=cluster.now, engine="engine-0", session="s", num_tokens=100)
        )
    if why == "it is back already":
        cluster.auto_start = False
        cluster.ask("s", 2_500)
    if why == "it is gone":
        cluster.tell(ev.SessionClosed(at=cluster.now, session="s"))
    assert not only(cluster.advance(20 * SECOND), act.Prefetch)


# ---- admission and rejection


def crowded() -> tuple[FakeCluster, str, str]:
    """An engine whose KV memory one workflow fills, and two that wait, the younger one first."""
    cluster = FakeCluster("saga+admission.growth_tokens=3500", kv_capacity_tokens=10_000)
    cluster.finish(cluster.ask("first", 4_000))
    for name in ("second", "third"):
        cluster.advance(1)
        cluster.tell(ev.WorkflowSubmitted(at=cluster.now, workflow=name, tenant="tenant"))
    third = cluster.ask("third", 4_000)
    second = cluster.ask("second", 4_000)
    return cluster, second, third


def test_admission_lets_wait_and_then_admits_in_order() -> None:
    cluster, second, third = crowded()
    assert len(dispatched(cluster.actions)) == 1
    assert reason_of(cluster, second) == "no engine has KV memory for its working set"
    assert "not admitted" in reason_of(cluster, third) or "KV memory" in reason_of(cluster, third)
    assert session(cluster, "third").state is SessionState.WAITING
    actions = cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="first"))
    assert dispatched(actions) == [(second, "engine-0")], "the older workflow first"
    actions = cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="second"))
    assert dispatched(actions) == [(third, "engine-0")]


def test_an_admitted_workflow_is_not_asked_again() -> None:
    cluster, second, _ = crowded()
    request = cluster.ask("first", 6_000)
    assert state_of(cluster, request) is RequestState.RUNNING
    assert state_of(cluster, second) is RequestState.QUEUED


def test_a_prompt_that_can_never_fit_is_rejected_with_the_numbers() -> None:
    cluster = FakeCluster("vllm", kv_capacity_tokens=10_000)
    cluster.ask("s", 20_000)
    (reject,) = cluster.actions
    assert isinstance(reject, act.Reject)
    assert "20000" in reject.reason and "10000" in reject.reason
    assert reject.retry_after_us is None
    assert session(cluster, "s").state is SessionState.ACTING
    assert cluster.scheduler.state.num_ended == {RequestState.REJECTED: 1}


def test_what_fits_some_engine_is_not_rejected() -> None:
    cluster = FakeCluster("saga", kv_capacity_tokens=10_000)
    cluster.engine_up("large", kv_capacity_tokens=50_000)
    cluster.ask("s", 20_000)
    assert not only(cluster.actions, act.Reject)


def test_a_long_prompt_is_judged_once_an_engine_is_up() -> None:
    cluster = FakeCluster("vllm", engines=0)
    cluster.ask("s", 20_000)
    assert not cluster.actions or not only(cluster.actions, act.Reject)
    assert only(cluster.engine_up("small", kv_capacity_tokens=10_000), act.Reject)


# ---- engines come and go


def test_a_lost_engine_loses_no_request() -> None:
    cluster = FakeCluster("saga", engines=1, max_num_seqs=2)
    step(cluster, "a", 1_000)
    requests = []
    for name in ("a", "b", "c", "d"):
        cluster.advance(10)
        requests.append(cluster.ask(name))
    states = [state_of(cluster, request) for request in requests]
    assert states == [RequestState.RUNNING] * 2 + [RequestState.QUEUED] * 2
    tenant = cluster.scheduler.state.tenants["tenant"]
    cluster.tell(ev.EngineDown(at=cluster.now, engine="engine-0"))
    assert all(state_of(cluster, request) is RequestState.QUEUED for request in requests)
    assert all(reason_of(cluster, request) == "no engine is up" for request in requests)
    assert session(cluster, "a").home is None
    assert session(cluster, "a").resident_tokens == 0
    assert session(cluster, "a").state is SessionState.WAITING
    assert tenant.num_queued == 4
    assert tenant.service_us == 1_000 * 250 + 100 * 2_500, "only the finished one is charged"
    actions = cluster.engine_up("engine-1", max_num_seqs=8)
    order = [request for request, _ in dispatched(actions)]
    assert order == requests, "in order of arrival"
    cluster.settle()
    assert cluster.scheduler.state.num_ended == {RequestState.FINISHED: 5}


def test_what_an_engine_lost_is_queued_again_in_order_of_arrival() -> None:
    cluster = FakeCluster("batch_optimal+admission=null+max_waiting_per_engine=1", max_num_seqs=2)
    requests = []
    for name in ("a", "b", "c", "d"):
        cluster.advance(10)
        requests.append(cluster.ask(name))
    cluster.tell(ev.EngineDown(at=cluster.now, engine="engine-0"))
    actions = cluster.engine_up("engine-1")
    assert [request for request, _ in dispatched(actions)] == requests


def test_a_lost_engine_leaves_its_work_to_the_others() -> None:
    cluster = FakeCluster("vllm_apc_affinity", engines=2)
    request = cluster.ask("s")
    lost = cluster.scheduler.state.requests[request].engine
    assert lost is not None
    (other,) = set(cluster.engines) - {lost.id}
    actions = cluster.tell(ev.EngineDown(at=cluster.now, engine=lost.id))
    assert dispatched(actions) == [(request, other)]


def test_an_engine_that_comes_back_is_empty() -> None:
    cluster = FakeCluster("vllm_apc_affinity")
    step(cluster, "s", 1_000)
    cluster.tell(ev.EngineDown(at=cluster.now, engine="engine-0"))
    cluster.engine_up("engine-0")
    engine = cluster.scheduler.state.engines["engine-0"]
    assert engine.resident_tokens == engine.committed_tokens == engine.num_sessions == 0
    step(cluster, "s", 1_000)
    assert session(cluster, "s").home is engine


def test_a_draining_engine_finishes_and_gets_nothing_new() -> None:
    cluster = FakeCluster("vllm_apc_affinity+max_waiting_per_engine=1", max_num_seqs=1)
    running = cluster.ask("a")
    queued = cluster.ask("b")
    cluster.tell(ev.EngineDraining(at=cluster.now, engine="engine-0"))
    assert state_of(cluster, running) is RequestState.RUNNING
    assert reason_of(cluster, queued) == "no engine is up"
    assert dispatched(cluster.engine_up("engine-1")) == [(queued, "engine-1")]
    assert not dispatched(cluster.finish(running))
    cluster.actions.clear()
    again = cluster.ask("a", 2_000)
    assert dispatched(cluster.actions) == [(again, "engine-1")], "although its home is draining"


def test_the_end_of_draining_is_announced_like_a_start() -> None:
    cluster = FakeCluster("vllm", kv_capacity_tokens=10_000)
    cluster.tell(ev.EngineDraining(at=cluster.now, engine="engine-0"))
    request = cluster.ask("s")
    actions = cluster.engine_up("engine-0", kv_capacity_tokens=10_000)
    assert dispatched(actions) == [(request, "engine-0")]


# ---- stealing and preemption


def pinned() -> tuple[FakeCluster, str]:
    """A queued request of a session whose home is busy, while the other engine idles."""
    cluster = FakeCluster("saga+routing=session_affinity+admission=null", engines=1, max_num_seqs=1)
    step(cluster, "s", 1_000)
    cluster.ask("long")
    cluster.engine_up("engine-1", max_num_seqs=1)
    return cluster, cluster.ask("s", 1_500)


def test_an_idle_engine_steals_the_session_with_its_kv() -> None:
    cluster, request = pinned()
    assert state_of(cluster, request) is RequestState.QUEUED
    actions = cluster.advance(300_000)
    kinds = [type(action) for action in actions if not isinstance(action, act.WakeAt)]
    assert kinds == [act.Move, act.Dispatch]
    (move,) = only(actions, act.Move)
    assert (move.session, move.source, move.target) == ("s", "engine-0", "engine-1")
    assert dispatched(actions) == [(request, "engine-1")]
    assert cluster.scheduler.state.num_steals == 1
    assert session(cluster, "s").home is cluster.scheduler.state.engines["engine-1"]
    assert cluster.scheduler.state.engines["engine-0"].resident_tokens == 1_000, "of the other"


def test_a_stolen_session_without_kv_needs_no_move() -> None:
    cluster, _ = pinned()
    cluster.tell(ev.BlocksRemoved(at=cluster.now, engine="engine-0", session="s", num_tokens=0))
    actions = cluster.advance(300_000)
    assert len(dispatched(actions)) == 1
    assert not only(actions, act.Move)


def test_an_urgent_tenant_preempts_after_waiting_for_long_enough() -> None:
    cluster = FakeCluster("saga+admission=null", max_num_seqs=2)

    def ask(name: str, deadline: int) -> str:
        cluster.tell(
            ev.WorkflowSubmitted(
                at=cluster.now, workflow=name, tenant=name, mean_steps=10, deadline=deadline
            )
        )
        return cluster.ask(name)

    relaxed = ask("relaxed", 10_000 * SECOND)
    calm = ask("calm", 1_000 * SECOND)
    urgent = ask("urgent", 10 * SECOND)
    cluster.now = 500_000
    cluster.ask("later", tenant="very late")
    assert not only(cluster.actions, act.Preempt)
    cluster.now = 600_000
    cluster.actions.clear()
    cluster.ask("latest", tenant="very late")
    (preempt,) = only(cluster.actions, act.Preempt)
    assert (preempt.request, preempt.engine) == (relaxed, "engine-0")
    assert dispatched(cluster.actions) == [(urgent, "engine-0")]
    engine = cluster.engines["engine-0"]
    assert (engine.running, engine.waiting) == ([calm, urgent], [relaxed])
    cluster.finish(urgent)
    assert relaxed in engine.running, "the engine resumes it"
    cluster.finish(relaxed)
    assert cluster.scheduler.state.num_ended == {RequestState.FINISHED: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class StealEverything:
    """Which sessions should move? All of the first engine's, to the last; and more, in vain."""

    def steals(self, cluster: ClusterView) -> Sequence[Steal]:
        target = cluster.engines[-1]
        waiting = [cluster.oldest_queued(engine) for engine in cluster.engines]
        return [Steal(request, target, "for fun") for request in [*waiting, *waiting] if request]


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressed:
    """Which engine? The one whose number the session's name ends with."""

    def route(self, request: RequestView, cluster: ClusterView) -> Route:
        return Route(cluster.engines[int(request.session.id[-1])], "by name")


def test_a_stolen_request_goes_first_and_is_stolen_once() -> None:
    policies = replace(
        load_preset("vllm").policies,
        routing=Addressed(),
        stealing=StealEverything(),
        max_waiting_per_engine=1,
    )
    cluster = FakeCluster(policies, engines=2, max_num_seqs=1)
    cluster.ask("running-0")
    running = cluster.ask("running-1")
    queued = cluster.ask("queued-1")
    stolen = cluster.ask("queued-0")
    cluster.tell(ev.Tick(at=0))
    assert cluster.scheduler.state.num_steals == 1, "not what is there already, and not twice"
    assert reason_of(cluster, stolen) == "for fun"
    assert dispatched(cluster.finish(running)) == [(stolen, "engine-1")]
    assert dispatched(cluster.finish(stolen)) == [(queued, "engine-1")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which tenant? Any; it notes down when it was asked for a preemption."""

    at: list[int] = field(default_factory=list)

    def urgency(self, workflow: WorkflowView, cluster: ClusterView) -> float:
        return 1.0

    def share(self, tenant: TenantView, urgency: float) -> float:
        return 1.0

    def preempt(
        self, head: RequestView, running: Sequence[RequestView], cluster: ClusterView
    ) -> RequestView | None:
        assert head.dispatched is None
        self.at.append(cluster.now)
        return None


def test_preemption_is_considered_once_per_epoch_while_somebody_waits() -> None:
    fairness = Asked()
    policies = replace(load_preset("vllm+max_waiting_per_engine=1").policies, fairness=fairness)
    cluster = FakeCluster(policies, max_num_seqs=1)
    cluster.ask("running")
    for now in (0, 10_000, 90_000, 120_000, 130_000, 250_000):
        cluster.now = now
        cluster.ask(f"waits since {now}")
    assert fairness.at == [0, 120_000, 250_000]


# ---- how requests end


@pytest.mark.parametrize("where", ["unadmitted", "unplaced", "queued", "dispatched", "running"])
def test_a_request_can_be_cancelled_wherever_it_is(where: str) -> None:
    cluster = FakeCluster(
        "saga+admission.growth_tokens=3500",
        engines=0 if where == "unplaced" else 1,
        kv_capacity_tokens=10_000,
        max_num_seqs=1,
        auto_start=False,
    )
    if where == "unadmitted":
        cluster.finish(cluster.ask("other", 4_000))
    elif where == "queued":
        cluster.ask("s", 100)
    request = cluster.ask("s", 4_000)
    if where == "running":
        cluster.start(request)
    on_engine = where in ("dispatched", "running")
    assert (state_of(cluster, request) is RequestState.QUEUED) == (not on_engine)
    actions = cluster.tell(ev.RequestCancelled(at=cluster.now, request=request))
    cancels = [(cancel.request, cancel.engine) for cancel in only(actions, act.Cancel)]
    assert cancels == ([(request, "engine-0")] if on_engine else [])
    assert cluster.scheduler.state.num_ended[RequestState.CANCELLED] == 1
    assert request not in cluster.scheduler.state.requests
    with pytest.raises(UnknownIdError, match=request):
        cluster.tell(ev.RequestCancelled(at=cluster.now, request=request))


def test_a_failed_request_ends_or_is_sent_again() -> None:
    cluster = FakeCluster("saga")
    request = cluster.ask("s")
    actions = cluster.tell(
        ev.RequestFailed(at=cluster.now, request=request, reason="busy", retry=True)
    )
    assert dispatched(actions) == [(request, "engine-0")]
    assert state_of(cluster, request) is RequestState.RUNNING
    actions = cluster.tell(ev.RequestFailed(at=cluster.now, request=request, reason="broken"))
    assert not only(actions, act.Cancel), "the engine knows"
    assert cluster.scheduler.state.num_ended == {RequestState.FAILED: 1}
    assert session(cluster, "s").state is SessionState.ACTING
    assert cluster.scheduler.state.tenants["tenant"].service_us == 0


def test_only_a_request_on_an_engine_can_fail_start_or_finish() -> None:
    cluster = FakeCluster("vllm", engines=0)
    request = cluster.ask("s")
    before = everything(cluster.scheduler)
    for event in (
        ev.RequestFailed(at=cluster.now, request=request, reason="?", retry=True),
        ev.RequestFailed(at=cluster.now, request=request, reason="?"),
        ev.RequestStarted(at=cluster.now, request=request),
        ev.RequestFinished(at=cluster.now, request=request, output_tokens=1),
    ):
        with pytest.raises(UnknownIdError, match="on no engine"):
            cluster.scheduler.handle(event)
    assert everything(cluster.scheduler) == before


def test_a_host_that_cannot_see_the_start_says_only_the_end() -> None:
    cluster = FakeCluster("vllm", auto_start=False)
    request = cluster.ask("s")
    cluster.finish(request, 50)
    assert session(cluster, "s").home is cluster.scheduler.state.engines["engine-0"]
    assert session(cluster, "s").resident_tokens == 1_050


def test_a_resumed_request_starts_without_effect() -> None:
    cluster = FakeCluster("vllm")
    request = cluster.ask("s")
    before = cluster.scheduler.state.requests[request].started
    cluster.now = 500
    assert cluster.start(request, cached_tokens=7) == []
    assert cluster.scheduler.state.requests[request].started == before


def test_the_end_of_a_workflow_ends_everything_of_it() -> None:
    cluster = FakeCluster("saga", max_num_seqs=1, engines=1)
    running = cluster.ask("s")
    cluster.ask("sub-agent", workflow="s")
    actions = cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="s"))
    assert [cancel.request for cancel in only(actions, act.Cancel)] == [running]
    state = cluster.scheduler.state
    assert state.num_ended == {RequestState.CANCELLED: 2}
    assert not (state.requests or state.sessions or state.workflows or state.tenants)


def test_requests_of_one_session_may_overlap() -> None:
    """Its state says what they do at any time; the laws are checked after every event."""
    cluster = FakeCluster("vllm+max_waiting_per_engine=1", max_num_seqs=1)
    first = cluster.ask("s")
    other = cluster.ask("other")
    second = cluster.ask("s")
    assert session(cluster, "s").state is SessionState.REASONING
    cluster.finish(first)
    assert session(cluster, "s").state is SessionState.WAITING, "the other one is in its way"
    cluster.finish(other)
    assert session(cluster, "s").state is SessionState.REASONING
    third = cluster.ask("s")
    cluster.tell(ev.RequestCancelled(at=cluster.now, request=third))
    assert session(cluster, "s").state is SessionState.REASONING
    cluster.finish(second)
    assert session(cluster, "s").state is SessionState.ACTING


# ---- what is learned


def test_return_times_are_learned_by_tool() -> None:
    cluster = FakeCluster("vllm")
    step(cluster, "s", 1_000, tool="shell")
    cluster.advance(3 * SECOND)
    step(cluster, "s", 1_000, tool=None)
    cluster.advance(2 * SECOND)
    cluster.tell(ev.ToolStarted(at=cluster.now, session="s", tool="search"))
    cluster.advance(2 * SECOND)
    cluster.tell(ev.ToolFinished(at=cluster.now, session="s"))
    step(cluster, "s", 1_000)
    times = cluster.scheduler.view.return_times
    assert times.quantile("shell", 0.5) == 3 * SECOND
    assert times.quantile("search", 0.5) == 4 * SECOND, "from the end of the step"
    assert times.quantile(None, 0.5) is None
    cluster.advance(SECOND)
    cluster.ask("s")
    cluster.advance(SECOND)
    cluster.ask("s")  # overlaps the other one: no return
    assert times.quantile(None, 1.0) == SECOND


def test_the_ideal_time_of_finished_workflows_is_learned() -> None:
    """GPU time plus return times: the TCT without any queueing."""
    cluster = FakeCluster("vllm", auto_start=False)
    cluster.finish(cluster.ask("s", 1_000), 10)
    cluster.advance(3 * SECOND)
    request = cluster.ask("s", 1_000)
    cluster.advance(7 * SECOND)  # waits on its engine: that is no ideal
    cluster.finish(request, 20)
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="s"))
    ideal_us = cluster.scheduler.view.graphs["agent"].ideal_us.value(0)
    assert ideal_us == 2 * 1_000 * 250 + 30 * 2_500 + 3 * SECOND


def test_new_tokens_of_a_step_are_learned() -> None:
    """E[obs_tokens(u)] of Eq. 5: what the prompt adds to prompt and output of the step before."""
    cluster = FakeCluster("vllm")
    cluster.finish(cluster.ask("s", 1_000), 100, tool="shell")
    cluster.finish(cluster.ask("s", 1_500), 100, tool="shell")
    graph = cluster.scheduler.view.graphs["agent"]
    assert graph.nodes["shell"].observation_tokens.value(-1) == 400
    assert graph.new_tokens.value(-1) == 400
    assert graph.output_tokens.value(-1) == 100


def test_expected_output_is_the_mean_of_the_agent_type_unless_told() -> None:
    cluster = FakeCluster("vllm")
    cluster.finish(cluster.ask("s"), 300)
    cluster.finish(cluster.ask("s"), 500)
    request = cluster.scheduler.state.requests[cluster.ask("s")]
    assert request.expected_output_tokens == 400


def test_a_session_before_its_first_step_has_its_whole_way_to_go() -> None:
    """It has called no tool, like one after its last step, which has nothing left to do."""
    cluster = FakeCluster("vllm")
    for number in range(30):
        for tool in ("shell", "shell", None):
            step(cluster, f"s{number}", 1_000, tool=tool)
        cluster.tell(ev.WorkflowDone(at=cluster.now, workflow=f"s{number}"))
    cluster.ask("fresh")
    step(cluster, "ending", 1_000)
    workflows = cluster.scheduler.state.workflows
    assert workflows["ending"].remaining.steps == 0
    assert workflows["fresh"].remaining.steps == pytest.approx(2.0, abs=1e-6)


def test_the_first_request_of_a_tenant_is_charged_by_a_share_that_counts_its_work() -> None:
    cluster = FakeCluster("saga", auto_start=False)
    cluster.ask("a", tenant="old", mean_steps=10)
    cluster.ask("b", tenant="new", mean_steps=10)
    old, new = (cluster.scheduler.state.tenants[name] for name in ("old", "new"))
    assert old.share == new.share > 0.01
    assert new.virtual_time == pytest.approx(new.service_us / new.share)


def test_charges_follow_what_a_request_really_took() -> None:
    cluster = FakeCluster("vllm", auto_start=False)
    request = cluster.ask("s", 1_000)
    tenant = cluster.scheduler.state.tenants["tenant"]
    assert tenant.service_us == 1_000 * 250 + 200 * 2_500, "by forecast"
    cluster.start(request, cached_tokens=400)
    cluster.finish(request, 10)
    assert tenant.service_us == 600 * 250 + 10 * 2_500
    workflow = cluster.scheduler.state.workflows["s"]
    assert workflow.service_us == tenant.service_us
    second = cluster.ask("s", 2_000)
    cluster.tell(
        ev.RequestFinished(at=cluster.now, request=second, output_tokens=1, cached_tokens=1_010)
    )
    assert workflow.service_us == 600 * 250 + 10 * 2_500 + 990 * 250 + 2_500


def test_a_forecast_counts_on_kv_only_where_the_request_goes() -> None:
    """Output forecast after one step: the 100 tokens that were seen."""
    for routing, new_tokens in (("session_affinity", 400), ("round_robin", 1_500)):
        cluster = FakeCluster(f"vllm+routing={routing}", engines=2, auto_start=False)
        cluster.finish(cluster.ask("s", 1_000), 100)
        request = cluster.scheduler.state.requests[cluster.ask("s", 1_500)]
        assert request.charged_us == new_tokens * 250 + 100 * 2_500


def test_a_working_set_is_what_was_expected_until_it_is_known() -> None:
    cluster = FakeCluster("vllm")
    engine = cluster.scheduler.state.engines["engine-0"]
    request = cluster.ask("s", 1_000)
    assert engine.committed_tokens == 1_000 + 200
    cluster.finish(request, 50)
    assert engine.committed_tokens == 1_050
    cluster.tell(ev.SessionClosed(at=cluster.now, session="s"))
    assert (engine.committed_tokens, engine.num_sessions) == (0, 0)


# ---- time, and what is refused


def test_a_wake_up_is_asked_for_once() -> None:
    cluster = FakeCluster(bundle("hesitant"))
    cluster.ask("a")
    cluster.ask("b")
    assert len(only(cluster.actions, act.WakeAt)) == 1
    assert cluster.scheduler.handle(ev.Tick(at=0)) == []


def test_epochs_are_counted_by_ticks_an_epoch_apart() -> None:
    scheduler = Scheduler(load_preset("vllm").policies)
    for at in (0, 1, 99_999, 100_000, 150_000, 350_000, 400_000, 450_000):
        scheduler.handle(ev.Tick(at=at))
    assert scheduler.state.num_epochs == 4


REFUSED = [
    (ev.Tick(at=999), ClockError, "earlier"),
    (
        ev.EngineUp(at=2_000, engine="engine-0", kv_capacity_tokens=1),
        DuplicateIdError,
        "engine-0",
    ),
    (ev.WorkflowSubmitted(at=2_000, workflow="s", tenant="t"), DuplicateIdError, "'s'"),
    (ev.SessionOpened(at=2_000, session="s", workflow="s"), DuplicateIdError, "'s'"),
    (
        ev.RequestArrived(at=2_000, request="s#1", session="s", prompt_tokens=1),
        DuplicateIdError,
        "'s#1'",
    ),
    (ev.EngineDown(at=2_000, engine="?"), UnknownIdError, "engine '\\?'"),
    (ev.EngineDraining(at=2_000, engine="?"), UnknownIdError, "engine"),
    (ev.EngineReport(at=2_000, engine="?", kv_used_fraction=0.0), UnknownIdError, "engine"),
    (
        ev.BlocksStored(at=2_000, engine="?", session="s", num_tokens=1),
        UnknownIdError,
        "engine",
    ),
    (
        ev.BlocksRemoved(at=2_000, engine="?", session="s", num_tokens=1),
        UnknownIdError,
        "engine",
    ),
    (ev.WorkflowDone(at=2_000, workflow="?"), UnknownIdError, "workflow"),
    (ev.SessionOpened(at=2_000, session="new", workflow="?"), UnknownIdError, "workflow"),
    (ev.SessionClosed(at=2_000, session="?"), UnknownIdError, "session"),
    (ev.ToolStarted(at=2_000, session="?", tool="shell"), UnknownIdError, "session"),
    (ev.ToolFinished(at=2_000, session="?"), UnknownIdError, "session"),
    (
        ev.RequestArrived(at=2_000, request="new", session="?", prompt_tokens=1),
        UnknownIdError,
        "session",
    ),
    (ev.RequestStarted(at=2_000, request="?"), UnknownIdError, "request"),
    (ev.RequestFirstToken(at=2_000, request="?"), UnknownIdError, "request"),
    (ev.RequestFinished(at=2_000, request="?", output_tokens=1), UnknownIdError, "request"),
    (ev.RequestFailed(at=2_000, request="?", reason=""), UnknownIdError, "request"),
    (ev.RequestCancelled(at=2_000, request="?"), UnknownIdError, "request"),
]


@pytest.mark.parametrize(
    ("event", "error", "text"), REFUSED, ids=[type(event).__name__ for event, _, _ in REFUSED]
)
def test_an_event_that_cannot_be_true_changes_nothing(
    event: ev.Event, error: type[CoreError], text: str
) -> None:
    cluster = FakeCluster("saga")
    cluster.now = 1_000
    assert cluster.ask("s") == "s#1"
    before = everything(cluster.scheduler)
    with pytest.raises(error, match=text):
        cluster.scheduler.handle(event)
    assert everything(cluster.scheduler) == before
    cluster.scheduler.handle(ev.Tick(at=1_000))  # its time has not changed either
