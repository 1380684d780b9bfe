"""What the scheduler does with KV, and with those who sit on it: retain, move, steal, preempt."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from tests.core.steps import SECOND, dispatched, only, reason_of, session, state_of, step

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.cache import FOREVER
from saga.core.fairness import WeightedShares
from saga.core.model import RequestState
from saga.core.policy import ClusterView, RequestView, Route, SessionView, Steal
from saga.testing import FakeCluster

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
    cluster = FakeCluster("saga_paper+ordering=program_fcfs", max_num_seqs=2)

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
class Asked(WeightedShares):
    """Which tenant? Any; it notes down when it was asked for a preemption."""

    at: list[int] = field(default_factory=list)

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


def test_kv_from_before_a_session_was_opened_gives_it_a_home() -> None:
    cluster = FakeCluster("saga", engines=3)
    tell = cluster.tell
    tell(ev.WorkflowSubmitted(at=0, workflow="w", tenant="t"))
    tell(ev.SessionOpened(at=0, session="w", workflow="w"))
    tell(ev.BlocksRemoved(at=0, engine="engine-1", session="w", num_tokens=7))
    assert session(cluster, "w").home is None
    tell(ev.BlocksStored(at=0, engine="engine-2", session="w", num_tokens=5_000))
    assert session(cluster, "w").home is cluster.scheduler.state.engines["engine-2"]
    request = cluster.ask("w", 6_000)
    assert dispatched(cluster.actions)[-1] == (request, "engine-2")


STRICT = "saga+admission.kappa=1.0+admission.reserve=0.0"


def test_who_stays_away_for_long_makes_room_for_others() -> None:
    """One engine of 13,000 tokens, of which each session takes nearly 4,000 with its growth."""
    cluster = FakeCluster(STRICT, engines=1, kv_capacity_tokens=13_000)
    for name in ("a", "b", "c"):
        cluster.finish(cluster.ask(name, 2_000), output_tokens=0, tool="shell")
    engine = cluster.scheduler.state.engines["engine-0"]
    waiting = cluster.ask("d", 2_000)
    assert state_of(cluster, waiting) is RequestState.QUEUED
    assert cluster.wake == 60_000_000, "a shell that was never seen to return"
    cluster.now = 30_000_000
    cluster.finish(cluster.ask("a", 2_400), output_tokens=0, tool="edit")
    cluster.advance(29_000_000)
    assert (engine.num_sessions, state_of(cluster, waiting)) == (3, RequestState.QUEUED)
    cluster.advance(2_000_000)
    assert state_of(cluster, waiting) is RequestState.RUNNING
    assert engine.num_sessions == 2, "a and d; b and c count no more"
    back = cluster.ask("b", 2_000)
    assert state_of(cluster, back) is RequestState.RUNNING, "its workflow was admitted"
    assert engine.num_sessions == 3
    assert session(cluster, "b").committed_tokens == 2_000


def test_a_session_whose_only_request_failed_makes_room_too() -> None:
    """Otherwise every refused request would take memory from others until its session is closed."""
    cluster = FakeCluster(STRICT, engines=1, kv_capacity_tokens=17_000)
    for name in ("a", "b", "c"):
        request = cluster.ask(name, 2_000)
        cluster.tell(ev.RequestFailed(at=cluster.now, request=request, reason="bad body"))
    waiting = cluster.ask("d", 2_000)
    assert state_of(cluster, waiting) is RequestState.QUEUED
    cluster.advance(6_000_000)
    assert state_of(cluster, waiting) is RequestState.RUNNING
