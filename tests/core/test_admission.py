"""Who is let in, who has to wait again after a tool, and what becomes of its memory."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.errors import RangeError
from saga.core.model import Request, RequestState
from saga.core.policy import ClusterView, Policies, RequestView, Verdict
from saga.policies.working_set import WorkingSet
from saga.testing import FakeCluster

SECOND = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Obeys(WorkingSet):
    """May this session start, or go on? As its name says."""

    def admit(self, request: RequestView, cluster: ClusterView) -> Verdict:
        return Verdict("stranger" not in request.session.id, "no strangers")

    def stay(self, request: RequestView, cluster: ClusterView) -> Verdict:
        return Verdict("outgrown" not in request.session.id, "it has outgrown the engine")

    def outstay(self, request: RequestView, first: RequestView, cluster: ClusterView) -> Verdict:
        return Verdict("polite" not in request.session.id, f"after you, {first.session.id}")


def bundle(admission: WorkingSet) -> Policies:
    return replace(load_preset("saga").policies, admission=admission)


def told(cluster: FakeCluster, request: str) -> Request:
    return cluster.scheduler.state.requests[request]


def returning(cluster: FakeCluster, session: str, prompt_tokens: int = 2_000) -> Request:
    """It has done a step, and comes back from its tool."""
    cluster.finish(cluster.ask(session), tool="shell")
    cluster.advance(SECOND)
    return told(cluster, cluster.ask(session, prompt_tokens))


def test_a_session_goes_on_unless_the_policy_says_otherwise() -> None:
    cluster = FakeCluster(bundle(Obeys()))
    assert returning(cluster, "usual").state is RequestState.RUNNING
    assert cluster.scheduler.state.num_pauses == 0


def test_a_session_that_may_not_stay_waits_like_a_newcomer() -> None:
    cluster = FakeCluster(bundle(Obeys()))
    outside = returning(cluster, "outgrown")
    assert outside.state is RequestState.RUNNING, "let in again at once: nothing else was asked"
    assert outside.session.admitted_at == cluster.now
    assert cluster.scheduler.state.num_pauses == 1


def test_who_gives_way_stands_back_until_the_other_one_is_in_or_gone() -> None:
    cluster = FakeCluster(bundle(Obeys()))
    stranger = cluster.ask("stranger", tenant="other")
    polite = returning(cluster, "polite")
    assert polite in cluster.scheduler.unadmitted
    cluster.tell(ev.RequestCancelled(at=cluster.now, request=stranger))
    assert polite.state is RequestState.RUNNING


def test_a_paused_session_leaves_the_working_set_and_its_kv_goes_first() -> None:
    cluster = FakeCluster(bundle(WorkingSet(kappa=1.0, reserve=0.0)))
    cluster.finish(cluster.ask("old", 40_000), tool="shell")
    cluster.finish(cluster.ask("young", 40_000), tool="shell")
    cluster.advance(SECOND)
    engine = cluster.scheduler.state.engines["engine-0"]
    young = told(cluster, cluster.ask("young", 70_000))
    assert young in cluster.scheduler.unadmitted
    assert (young.session.assigned, list(engine.sessions)) == (None, ["old"])
    last = [action for action in cluster.actions if isinstance(action, act.Retain)][-1]
    assert (last.session, last.until, last.score) == ("young", cluster.now, 0.0)
    assert last.reason == "contexts on engine-0 have outgrown its KV memory"
    assert young.session.home is engine, "where its KV still is, if nobody needs the room"


def test_it_is_let_in_again_when_there_is_room() -> None:
    cluster = FakeCluster(bundle(WorkingSet(kappa=1.0, reserve=0.0)))
    cluster.finish(cluster.ask("old", 40_000), tool="shell")
    cluster.finish(cluster.ask("young", 40_000), tool="shell")
    young = told(cluster, cluster.ask("young", 70_000))
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="old"))
    assert young.state is RequestState.RUNNING
    assert young.session.assigned is cluster.scheduler.state.engines["engine-0"]


def test_who_gives_way_waits_behind_those_who_came_meanwhile() -> None:
    cluster = FakeCluster(bundle(Obeys()))
    cluster.ask("stranger", tenant="other")
    cluster.finish(cluster.ask("polite"), tool="shell")
    cluster.advance(SECOND)
    workflow = cluster.scheduler.state.workflows["polite"]
    assert workflow.ranked_at == workflow.submitted
    cluster.ask("polite", 2_000)
    assert workflow.ranked_at == cluster.now > workflow.submitted
    (turn,) = cluster.scheduler.state.engines["engine-0"].turns
    assert turn[0] == cluster.now and turn[1] > 0, "computing it again has a price"


def test_nobody_gives_way_while_nobody_waits() -> None:
    cluster = FakeCluster(bundle(Obeys()))
    returning(cluster, "polite")
    assert cluster.scheduler.state.num_pauses == 0


def test_a_session_with_another_request_under_way_goes_on() -> None:
    """It keeps its memory anyway."""
    cluster = FakeCluster(bundle(Obeys()))
    cluster.finish(cluster.ask("outgrown"), tool="shell")
    first, second = (told(cluster, cluster.ask("outgrown", 2_000)) for _ in range(2))
    assert cluster.scheduler.state.num_pauses == 1, "the first one"
    assert first.state is second.state is RequestState.RUNNING


def test_the_first_request_of_a_session_is_no_return() -> None:
    cluster = FakeCluster(bundle(Obeys()))
    assert told(cluster, cluster.ask("outgrown")).state is RequestState.RUNNING
    assert cluster.scheduler.state.num_pauses == 0


def test_a_paused_workflow_is_charged_once() -> None:
    cluster = FakeCluster(bundle(WorkingSet(kappa=1.0, reserve=0.0)))
    for name in ("old", "young"):
        cluster.finish(cluster.ask(name, 40_000, tenant=name), tool="shell")
    young = told(cluster, cluster.ask("young", 70_000))
    charged = young.session.workflow.charged_us
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="old"))
    cluster.settle()
    workflow = cluster.scheduler.state.workflows["young"]
    assert charged is not None and workflow.charged_us is not None
    assert workflow.charged_us >= charged
    assert cluster.scheduler.unadmitted.lanes["young"].num_in_flight == 1
    cluster.tell(ev.WorkflowDone(at=cluster.now, workflow="young"))
    assert not cluster.scheduler.unadmitted.lanes


@given(
    prompts=st.lists(st.integers(1_000, 60_000), min_size=1, max_size=30),
    patience_s=st.floats(0.5, 20.0),
)
def test_everybody_is_served_in_the_end(prompts: list[int], patience_s: float) -> None:
    """However often memory is outgrown and turns are taken; the laws hold after every event."""
    admission = WorkingSet(patience_s=patience_s, turning=1.0)
    cluster = FakeCluster(bundle(admission), engines=2, max_num_seqs=4)
    names = [f"session {number % 7}" for number in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        session = cluster.scheduler.state.sessions.get(name)
        if session is None or not session.requests:
            cluster.ask(name, prompt, tenant=name[-1])
        cluster.advance(SECOND)
        running = [one for engine in cluster.engines.values() for one in engine.running]
        if len(running) > 2:
            cluster.finish(running[0], tool="shell")
    while cluster.scheduler.state.requests:
        before = len(cluster.scheduler.state.requests)
        cluster.settle()
        for session in list(cluster.scheduler.state.sessions.values()):
            if not session.requests:
                cluster.tell(ev.WorkflowDone(at=cluster.now, workflow=session.workflow.id))
        assert len(cluster.scheduler.state.requests) < before


# ---- turns that are worth their price


PATIENT = WorkingSet(kappa=1.0, reserve=0.0, patience_s=10.0, turning=1.0)


def full_house(cluster: FakeCluster, sizes: dict[str, int], *, each: bool = False) -> None:
    """Sessions in their tools, whose contexts together leave no room for growth."""
    for name, tokens in sizes.items():
        cluster.finish(cluster.ask(name, tokens, tenant=name if each else "tenant"), tool="shell")


def test_who_gave_way_does_not_go_before_whom_it_gave_way_to() -> None:
    """Though its deadline would put it first: the room would be used by whom it was taken from."""
    cluster = FakeCluster(bundle(PATIENT))
    cluster.tell(ev.WorkflowSubmitted(at=0, workflow="urgent", tenant="tenant", deadline=10**9))
    full_house(cluster, {"urgent": 60_000})
    waits = told(cluster, cluster.ask("waits", 60_000))
    assert waits in cluster.scheduler.unadmitted
    cluster.advance(4 * SECOND)
    cluster.finish(cluster.ask("urgent", 60_000), tool="shell")
    assert waits in cluster.scheduler.unadmitted, "its patience is not over"
    cluster.advance(4 * SECOND)
    cluster.finish(cluster.ask("urgent", 60_000), tool="shell")
    cluster.advance(4 * SECOND)
    urgent = told(cluster, cluster.ask("urgent", 60_000))
    assert (waits.state, urgent.state) == (RequestState.RUNNING, RequestState.QUEUED)
    assert cluster.scheduler.state.num_pauses == 1


def test_room_for_a_large_one_adds_up() -> None:
    """Those that gave way for it stand back, whichever tenant they are of."""
    cluster = FakeCluster(bundle(PATIENT))
    names = "abcdef"
    full_house(cluster, dict.fromkeys(names, 13_000), each=True)
    large = told(cluster, cluster.ask("large", 50_000, tenant="large"))
    rounds = 0
    while large in cluster.scheduler.unadmitted and rounds < 12:
        name = names[rounds % len(names)]
        if not cluster.scheduler.state.sessions[name].requests:
            cluster.advance(2 * SECOND)
            request = told(cluster, cluster.ask(name, 13_100))
            if request.state is RequestState.RUNNING:
                cluster.finish(request.id, tool="shell")
        rounds += 1
    assert large.state is RequestState.RUNNING
    cluster.settle()
    assert not cluster.scheduler.state.requests, "nobody stands back for ever"


def test_parents_do_not_hold_the_memory_that_their_sub_agents_wait_for() -> None:
    cluster = FakeCluster(bundle(WorkingSet(kappa=1.0, reserve=0.1, absent_floor_s=3_600.0)))
    full_house(cluster, dict.fromkeys("abcd", 22_000))
    for name in "abcd":
        child = ev.SessionOpened(at=cluster.now, session=f"{name}/sub", workflow=name, parent=name)
        cluster.tell(child)
    children = [told(cluster, cluster.ask(f"{name}/sub", 15_000)) for name in "abcd"]
    assert [child.state for child in children] == [RequestState.RUNNING] * 4


def test_lineages_in_a_circle_end() -> None:
    cluster = FakeCluster(bundle(WorkingSet(kappa=1.0, reserve=0.0)))
    full_house(cluster, {"full": 95_000})
    cluster.tell(ev.WorkflowSubmitted(at=0, workflow="w", tenant="tenant"))
    for name, parent in (("one", "two"), ("two", "one")):
        cluster.tell(ev.SessionOpened(at=0, session=name, workflow="w", parent=parent))
    assert told(cluster, cluster.ask("one", 50_000)) in cluster.scheduler.unadmitted


def test_an_engine_that_is_open_again_takes_what_was_pinned_to_it() -> None:
    cluster = FakeCluster("saga+fairness=null")
    cluster.tell(ev.EngineDraining(at=0, engine="engine-0"))
    for event in (
        ev.WorkflowSubmitted(at=0, workflow="w", tenant="t"),
        ev.SessionOpened(at=0, session="s", workflow="w"),
        ev.RequestArrived(at=0, request="r", session="s", prompt_tokens=100, engine="engine-0"),
    ):
        cluster.tell(event)
    cluster.engine_up("engine-0")
    assert told(cluster, "r").state is RequestState.RUNNING


@pytest.mark.parametrize("wrong", [{"priority": 0.0}, {"priority": float("nan")}, {"weight": 0.0}])
def test_numbers_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    cluster = FakeCluster("saga")
    with pytest.raises(RangeError, match="must be above 0"):
        cluster.tell(ev.WorkflowSubmitted(at=5, workflow="w", tenant="t", **wrong))
    assert not cluster.scheduler.state.workflows
    assert cluster.scheduler.state.now == 0
