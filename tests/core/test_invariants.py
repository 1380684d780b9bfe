"""Every law can fail: the state is corrupted by hand and the check names the law."""

from collections.abc import Callable

import pytest
from tests.core.test_queues import make_request

from saga.core import events as ev
from saga.core.errors import InvariantError
from saga.core.invariants import check
from saga.core.model import Engine, Request, RequestState, Session, SessionState
from saga.core.scheduler import STORY_LENGTH, Scheduler
from saga.testing import FakeCluster


class Scene:
    """A busy scheduler that obeys every law, and handles on its parts.

    Tenant a: one session running, one dispatched, one queued on the engine, one in a tool with KV;
    tenant b: one not admitted.
    """

    def __init__(self) -> None:
        cluster = FakeCluster(
            "saga+max_waiting_per_engine=1",
            kv_capacity_tokens=30_000,
            auto_start=False,
        )
        cluster.finish(cluster.ask("acting", tenant="a"), tool="shell")
        cluster.start(cluster.ask("running", tenant="a"))
        cluster.ask("dispatched", tenant="a")
        cluster.ask("queued", tenant="a")
        cluster.ask("outside", 20_000, tenant="b")
        self.scheduler: Scheduler = cluster.scheduler
        self.engine: Engine = cluster.scheduler.state.engines["engine-0"]
        self.other = Engine(
            id="other",
            kv_capacity_tokens=1,
            max_num_seqs=1,
            prefill_us_per_token=1.0,
            decode_us_per_token=1.0,
        )

    def session(self, name: str) -> Session:
        return self.scheduler.state.sessions[name]

    def request(self, name: str) -> Request:
        (request,) = self.session(name).requests.values()
        return request


def test_the_scene_is_what_it_says_and_obeys_every_law() -> None:
    scene = Scene()
    states = {
        name: scene.request(name).state for name in ("running", "dispatched", "queued", "outside")
    }
    assert states == {
        "running": RequestState.RUNNING,
        "dispatched": RequestState.DISPATCHED,
        "queued": RequestState.QUEUED,
        "outside": RequestState.QUEUED,
    }
    assert scene.request("queued").engine is scene.engine
    assert scene.request("outside") in scene.scheduler.unadmitted
    assert scene.session("acting").state is SessionState.ACTING
    assert scene.session("acting").resident_tokens > 0
    check(scene.scheduler)


def a_request_is_lost(scene: Scene) -> None:
    del scene.scheduler.state.requests[scene.request("running").id]


def a_request_is_counted_twice(scene: Scene) -> None:
    scene.scheduler.state.num_ended[RequestState.FINISHED] += 1


def an_arrival_is_not_counted(scene: Scene) -> None:
    scene.scheduler.state.num_arrived -= 1


def a_queued_request_is_nowhere(scene: Scene) -> None:
    scene.scheduler.unadmitted.remove(scene.request("outside"))


def a_queued_request_is_in_two_places(scene: Scene) -> None:
    scene.scheduler.unplaced["again"] = scene.request("outside")


def a_dispatched_request_waits_in_a_queue(scene: Scene) -> None:
    scene.scheduler.queues["engine-0"].push(scene.request("dispatched"), 0.0)


def two_requests_changed_places(scene: Scene) -> None:
    scene.scheduler.unadmitted.remove(scene.request("outside"))
    scene.scheduler.unadmitted.push(scene.request("running"), 0.0)


def a_queued_request_is_on_an_engine_instead(scene: Scene) -> None:
    request = scene.request("outside")
    scene.scheduler.unadmitted.remove(request)
    scene.engine.requests[request.id] = request


def an_engine_lost_a_request_and_its_count(scene: Scene) -> None:
    del scene.engine.requests[scene.request("running").id]
    scene.engine.num_running -= 1


def an_engine_miscounts_what_waits(scene: Scene) -> None:
    scene.engine.num_waiting += 1


def an_engine_miscounts_what_runs(scene: Scene) -> None:
    scene.engine.num_running -= 1


def an_engine_lists_what_does_not_run(scene: Scene) -> None:
    scene.engine.running.clear()


def an_engine_miscounts_its_queue(scene: Scene) -> None:
    scene.engine.num_queued += 1


def an_engine_holds_a_request_that_nobody_knows(scene: Scene) -> None:
    stranger = make_request("stranger", scene.session("acting").workflow.tenant)
    stranger.state = RequestState.RUNNING
    scene.engine.requests["stranger"] = stranger


def a_session_acts_while_it_runs(scene: Scene) -> None:
    scene.session("running").state = SessionState.ACTING


def a_session_waits_for_nothing(scene: Scene) -> None:
    scene.session("acting").state = SessionState.WAITING


def a_session_waits_while_it_runs(scene: Scene) -> None:
    scene.session("running").state = SessionState.WAITING


def a_session_reasons_in_a_queue(scene: Scene) -> None:
    scene.session("queued").state = SessionState.REASONING


def a_finished_session_is_kept(scene: Scene) -> None:
    scene.session("acting").state = SessionState.DONE


def a_session_runs_that_is_not_admitted(scene: Scene) -> None:
    scene.session("running").admitted = False


def a_session_that_is_not_admitted_counts_in_a_working_set(scene: Scene) -> None:
    scene.session("acting").admitted = False


def an_engine_miscounts_its_kv(scene: Scene) -> None:
    scene.engine.resident_tokens += 1


def a_session_has_more_kv_than_counted(scene: Scene) -> None:
    scene.session("acting").resident_tokens += 1


def an_engine_miscounts_its_working_set(scene: Scene) -> None:
    scene.engine.committed_tokens -= 1


def an_engine_miscounts_its_sessions(scene: Scene) -> None:
    del scene.engine.sessions[scene.session("acting").id]


def a_session_forgets_where_it_was_assigned(scene: Scene) -> None:
    scene.session("acting").assigned = None


def a_session_lives_on_an_engine_that_is_gone(scene: Scene) -> None:
    session = scene.session("running")
    scene.engine.resident_tokens -= session.resident_tokens
    session.home = scene.other


def a_session_is_assigned_to_an_engine_that_is_gone(scene: Scene) -> None:
    session = scene.session("queued")
    scene.engine.committed_tokens -= session.committed_tokens
    del scene.engine.sessions[session.id]
    session.assigned = scene.other


def a_session_lives_on_a_former_engine_of_that_name(scene: Scene) -> None:
    scene.other.id = scene.engine.id
    scene.session("running").home = scene.other


def a_session_without_home_has_kv(scene: Scene) -> None:
    scene.session("queued").resident_tokens = 7


def a_request_waits_beside_room(scene: Scene) -> None:
    engine, request = scene.engine, scene.request("dispatched")
    request.state = RequestState.RUNNING
    engine.num_waiting -= 1
    engine.num_running += 1
    engine.running[request.id] = request


def a_request_waits_for_no_reason(scene: Scene) -> None:
    scene.request("outside").reason = ""


def a_tenant_miscounts_its_queue(scene: Scene) -> None:
    scene.scheduler.state.tenants["a"].num_queued += 1


def tenants_are_mixed_up(scene: Scene) -> None:
    scene.scheduler.state.tenants["a"].num_queued -= 1
    scene.scheduler.state.tenants["b"].num_queued += 1


Corruption = Callable[[Scene], None]

CORRUPTIONS: dict[str, tuple[Corruption, ...]] = {
    "1 Conservation": (
        a_request_is_lost,
        a_request_is_counted_twice,
        an_arrival_is_not_counted,
        a_queued_request_is_nowhere,
        a_queued_request_is_in_two_places,
        a_dispatched_request_waits_in_a_queue,
        two_requests_changed_places,
        a_queued_request_is_on_an_engine_instead,
        an_engine_lost_a_request_and_its_count,
        an_engine_miscounts_what_waits,
        an_engine_miscounts_what_runs,
        an_engine_miscounts_its_queue,
        an_engine_lists_what_does_not_run,
        an_engine_holds_a_request_that_nobody_knows,
    ),
    "2 Lifecycle": (
        a_session_acts_while_it_runs,
        a_session_waits_for_nothing,
        a_session_waits_while_it_runs,
        a_session_reasons_in_a_queue,
        a_finished_session_is_kept,
        a_session_runs_that_is_not_admitted,
        a_session_that_is_not_admitted_counts_in_a_working_set,
    ),
    "4 KV": (
        an_engine_miscounts_its_kv,
        a_session_has_more_kv_than_counted,
        an_engine_miscounts_its_working_set,
        an_engine_miscounts_its_sessions,
        a_session_forgets_where_it_was_assigned,
    ),
    "6 One home": (
        a_session_lives_on_an_engine_that_is_gone,
        a_session_is_assigned_to_an_engine_that_is_gone,
        a_session_lives_on_a_former_engine_of_that_name,
        a_session_without_home_has_kv,
    ),
    "7 Work conservation": (a_request_waits_beside_room, a_request_waits_for_no_reason),
    "11 Service": (a_tenant_miscounts_its_queue, tenants_are_mixed_up),
}


@pytest.mark.parametrize(
    ("law", "corrupt"),
    [(law, corrupt) for law, corruptions in CORRUPTIONS.items() for corrupt in corruptions],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_broken_law_is_named(law: str, corrupt: Corruption) -> None:
    scene = Scene()
    corrupt(scene)
    with pytest.raises(InvariantError, match=f"^law {law}"):
        check(scene.scheduler)


def test_a_broken_law_tells_the_story() -> None:
    scene = Scene()
    scene.engine.num_running += 1
    with pytest.raises(InvariantError) as caught:
        check(scene.scheduler)
    text = str(caught.value)
    assert "'engine-0' counts (waiting, running, queued) (1, 2, 1), has (1, 1, 1)" in text
    events = text.split("last events:\n")[1].splitlines()
    assert [line.strip() for line in events] == [str(event) for event in scene.scheduler.story]
    assert "RequestArrived" in events[-1]


def test_the_story_has_an_end() -> None:
    cluster = FakeCluster("vllm")
    for at in range(STORY_LENGTH + 5):
        cluster.tell(ev.Tick(at=at))
    story = list(cluster.scheduler.story)
    assert len(story) == STORY_LENGTH
    assert story[-1] == ev.Tick(at=STORY_LENGTH + 4)


@pytest.mark.parametrize("checked", [True, False])
def test_a_scheduler_checks_itself_where_asked_to(checked: bool) -> None:
    cluster = FakeCluster("vllm", check=checked)
    cluster.scheduler.state.num_arrived += 1
    if checked:
        with pytest.raises(InvariantError):
            cluster.scheduler.handle(ev.Tick(at=0))
    else:
        cluster.scheduler.handle(ev.Tick(at=0))
