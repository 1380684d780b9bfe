"""Who is let in, who has to wait again after a tool, and what becomes of its memory."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
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


@pytest.mark.parametrize("name", ["outgrown", "polite"])
def test_a_session_that_may_not_stay_waits_like_a_newcomer(name: str) -> None:
    cluster = FakeCluster(bundle(Obeys()))
    cluster.ask("stranger", tenant="other")
    outside = returning(cluster, name)
    assert outside.state is RequestState.RUNNING, "let in again at once: nothing else was asked"
    assert outside.session.admitted_at == cluster.now
    assert cluster.scheduler.state.num_pauses == 1


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
