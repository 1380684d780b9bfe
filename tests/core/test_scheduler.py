"""One example per event and rule: how requests arrive, wait, run and end."""

import pytest
from tests.core.bundles import bundle
from tests.core.steps import dispatched, everything, only, reason_of, session, state_of, step

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.errors import ClockError, CoreError, DuplicateIdError, UnknownIdError
from saga.core.model import RequestState, SessionState
from saga.core.scheduler import Scheduler
from saga.testing import FakeCluster

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


# ---- admission and rejection


def crowded() -> tuple[FakeCluster, str, str]:
    """An engine whose KV memory one workflow fills, and two that wait, the younger one first."""
    cluster = FakeCluster("saga", kv_capacity_tokens=10_000)
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


def test_a_prompt_goes_where_it_fits_whatever_routing_says() -> None:
    cluster = FakeCluster("vllm", engines=0)
    for name, capacity in (("small", 1_000), ("large", 5_000), ("also-large", 5_000)):
        cluster.engine_up(name, kv_capacity_tokens=capacity)
    requests = [cluster.ask(f"s{number}", 2_000) for number in range(6)]
    engines = [cluster.scheduler.state.requests[request].engine for request in requests]
    assert {engine.id for engine in engines if engine} == {"large", "also-large"}
    reasons = {cluster.scheduler.state.requests[request].reason for request in requests}
    assert any("too long for small" in reason for reason in reasons)


def test_a_long_prompt_is_judged_once_an_engine_is_up() -> None:
    cluster = FakeCluster("vllm", engines=0)
    cluster.ask("s", 20_000)
    assert not cluster.actions or not only(cluster.actions, act.Reject)
    assert only(cluster.engine_up("small", kv_capacity_tokens=10_000), act.Reject)


# ---- engines come and go


def test_a_lost_engine_loses_no_request() -> None:
    cluster = FakeCluster("saga+ordering=program_fcfs", engines=1, max_num_seqs=2)
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
    assert tenant.service == 1_000 * 250 + 100 * 2_500, "only the finished one is charged"
    actions = cluster.engine_up("engine-1", max_num_seqs=8)
    order = [request for request, _ in dispatched(actions)]
    assert order == requests, "by age"
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


# ---- how requests end


@pytest.mark.parametrize("where", ["unadmitted", "unplaced", "queued", "dispatched", "running"])
def test_a_request_can_be_cancelled_wherever_it_is(where: str) -> None:
    cluster = FakeCluster(
        "saga",
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
    assert cluster.scheduler.state.tenants["tenant"].service == 0


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


def test_a_request_that_is_cancelled_and_sent_again_is_one_return() -> None:
    cluster = FakeCluster("saga", engines=1)
    cluster.finish(cluster.ask("s"), tool="shell")
    cluster.now += 2_000_000
    first = cluster.ask("s", 1_200)
    cluster.now += 60_000_000
    cluster.tell(ev.RequestCancelled(at=cluster.now, request=first))
    cluster.now += 500_000
    cluster.ask("s", 1_200)
    times = cluster.scheduler.view.return_times
    assert times.quantile("shell", 0.5) == pytest.approx(2_000_000, rel=0.2)
    assert cluster.scheduler.state.workflows["s"].gap_us == 2_000_000


def test_a_pinned_request_goes_to_its_engine_or_nowhere() -> None:
    cluster = FakeCluster("saga", engines=3, max_num_seqs=1)

    def ask(name: str, engine: str) -> None:
        cluster.tell(ev.WorkflowSubmitted(at=cluster.now, workflow=name, tenant="t"))
        cluster.tell(ev.SessionOpened(at=cluster.now, session=name, workflow=name))
        cluster.tell(
            ev.RequestArrived(
                at=cluster.now, request=name, session=name, prompt_tokens=1_000, engine=engine
            )
        )

    for name in ("a", "b", "c"):
        ask(name, "engine-1")
    assert dispatched(cluster.actions) == [("a", "engine-1")]
    cluster.advance(2_000_000)
    assert dispatched(cluster.actions) == [("a", "engine-1")], "the others idle, and do not steal"
    cluster.tell(ev.EngineDown(at=cluster.now, engine="engine-1"))
    refused = [action for action in cluster.actions if isinstance(action, act.Reject)]
    assert [action.request for action in refused] == ["a", "b", "c"]
    assert "engine-1" in refused[0].reason


def test_what_fits_no_engine_is_refused_although_its_workflow_waits() -> None:
    cluster = FakeCluster("saga", engines=1, kv_capacity_tokens=20_000)
    cluster.ask("large", 19_000)
    waiting = cluster.ask("small", 1_000)
    assert state_of(cluster, waiting) is RequestState.QUEUED
    cluster.ask("huge", 20_000)
    (reject,) = only(cluster.actions, act.Reject)
    assert "does not fit" in reject.reason


def test_what_an_engine_failed_to_serve_goes_elsewhere() -> None:
    cluster = FakeCluster("saga", engines=3)
    request = cluster.ask("s")
    tried = []
    for _ in range(4):
        engine = cluster.scheduler.state.requests[request].engine
        assert engine is not None
        tried.append(engine.id)
        cluster.tell(
            ev.RequestFailed(at=cluster.now, request=request, reason="refused", retry=True)
        )
    assert len(set(tried[:3])) == 3, "each once"
    assert tried[3] in tried[:3], "and then again: it is not for the scheduler to give up"
