"""The live view: what it remembers of events, that it forgets, and that it keeps tenants apart."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from saga.core import actions as act
from saga.core import events as ev
from saga.core.model import SessionState
from saga.gateway.live import MAX_ANSWERS, MAX_FINISHED, MAX_FOLLOWED, MAX_NOTE, MAX_SPANS, LiveView
from saga.gateway.sessions import LiveSession, LiveWorkflow
from saga.testing import FakeCluster, snapshot

SECOND = 1_000_000


class Watched(FakeCluster):
    """A cluster that a live view watches; the engines' counts of prompt tokens can be told."""

    def __init__(self, preset: str = "saga", **options: Any) -> None:
        super().__init__(preset, engines=0, **options)
        self.counted: dict[str, LiveSession] = {}
        self.view = LiveView(self.scheduler.state, self.counted)
        self.engine_up("e0")

    def _handle(self, event: ev.Event) -> list[act.Action]:
        actions = super()._handle(event)
        self.view.note(event, actions)
        return actions

    def count(self, session: str, prompt_tokens: int) -> None:
        workflow = LiveWorkflow(session, session.partition("/")[0], "", "", 0)
        self.counted[session] = LiveSession(session, workflow, prompt_tokens=prompt_tokens)

    def run(self, session: str, us: int = SECOND, **finish: Any) -> None:
        """One step that takes so long."""
        request = self.ask(session)
        self.advance(us)
        self.finish(request, **finish)

    def close(self, workflow: str) -> None:
        self.tell(ev.WorkflowDone(at=self.now, workflow=workflow))

    def lane(self, session: str) -> list[tuple[int, str, str | None, str]]:
        """The spans of one session, with its tenant."""
        tenant, _, name = session.partition("/")
        [lane] = [one for one in self.view.lanes(tenant, self.now) if one["session"] == name]
        return [(at, str(state), engine, note) for at, state, engine, note in lane["spans"]]


def test_a_lane_tells_what_a_session_did_when_where_and_why() -> None:
    cluster = Watched()
    cluster.run("blue/one", tool="bash")
    cluster.advance(3 * SECOND)
    cluster.run("blue/one")
    cluster.close("blue/one")
    lane = cluster.lane("blue/one")
    assert [(at, state, engine) for at, state, engine, _ in lane] == [
        (0, "reasoning", "e0"),
        (1 * SECOND, "acting", "e0"),
        (4 * SECOND, "reasoning", "e0"),
        (5 * SECOND, "acting", "e0"),
        (5 * SECOND, "done", None),
    ]
    first, tool, second, last, _ = (note for *_, note in lane)
    assert (tool, last) == ("bash", "")
    dispatches = [a.reason for a in cluster.actions if isinstance(a, act.Dispatch)]
    assert [first, second] == dispatches


def test_who_waits_is_shown_with_the_reason() -> None:
    cluster = Watched()
    cluster.tell(ev.EngineDown(at=0, engine="e0"))
    cluster.ask("blue/one")
    (at, state, engine, note) = cluster.lane("blue/one")[-1]
    assert (at, state, engine) == (0, "waiting", None)
    assert note == cluster.scheduler.state.requests["blue/one#1"].reason


def test_a_lost_engine_and_a_retry_send_sessions_back_to_waiting() -> None:
    cluster = Watched(auto_start=False)
    request = cluster.ask("blue/one")
    cluster.tell(ev.EngineDown(at=0, engine="e0"))
    assert cluster.lane("blue/one")[-1] == (0, "waiting", None, "engine e0 was lost")
    cluster.engine_up("e1")
    assert cluster.lane("blue/one")[-1][1:3] == ("reasoning", "e1")
    cluster.tell(ev.EngineDraining(at=0, engine="e1"))
    cluster.tell(ev.RequestFailed(at=0, request=request, reason="answered 503", retry=True))
    assert cluster.lane("blue/one")[-1] == (0, "waiting", None, "answered 503")


def test_requests_that_end_otherwise_leave_their_session_acting() -> None:
    cluster = Watched("vllm", auto_start=False)
    cluster.tell(ev.RequestCancelled(at=0, request=cluster.ask("blue/gone")))
    failed = cluster.ask("blue/failed")
    cluster.start(failed)
    cluster.tell(ev.RequestFailed(at=0, request=failed, reason="broke"))
    cluster.ask("blue/long", prompt_tokens=10**9)  # no engine has room for that
    last = {name: cluster.lane(f"blue/{name}")[-1] for name in ("gone", "failed", "long")}
    assert {state for _, state, _, _ in last.values()} == {"acting"}
    assert last["gone"][3] == "its request was cancelled"
    assert last["failed"][3] == "broke"
    assert "does not fit" in last["long"][3]


def test_a_session_that_comes_back_goes_on_in_its_lane() -> None:
    cluster = Watched()
    cluster.run("blue/a", us=SECOND)
    cluster.ask("blue/b", workflow="blue/a")
    cluster.tell(ev.SessionClosed(at=cluster.now, session="blue/a"))
    assert cluster.lane("blue/a")[-1][1] == "done"
    cluster.tell(ev.SessionOpened(at=cluster.now, session="blue/a", workflow="blue/a"))
    cluster.ask("blue/a")
    assert [state for _, state, _, _ in cluster.lane("blue/a")] == [
        "reasoning", "acting", "done", "reasoning",
    ]  # fmt: skip
    cluster.close("blue/a")
    assert cluster.lane("blue/a")[-1][1] == cluster.lane("blue/b")[-1][1] == "done"


def test_task_completion_is_from_the_first_arrival_to_the_last_answer() -> None:
    cluster = Watched()
    for number, seconds in enumerate((1, 2, 3, 4, 10)):
        cluster.run(f"blue/{number}", us=seconds * SECOND)
        cluster.advance(100 * SECOND)  # until somebody notices that it is over
        cluster.close(f"blue/{number}")
    cluster.tell(ev.RequestCancelled(at=cluster.now, request=cluster.ask("blue/unanswered")))
    cluster.close("blue/unanswered")
    assert cluster.view.completion("blue") == {
        "workflows": 5,
        "mean_s": 4.0,
        "p50_s": 3.0,
        "p95_s": 8.8,
    }
    assert cluster.view.completion("red")["workflows"] == 0


def test_one_workflow_has_quantiles_too() -> None:
    cluster = Watched()
    cluster.run("blue/one", us=2 * SECOND)
    cluster.close("blue/one")
    told = cluster.view.completion(None)
    assert (told["mean_s"], told["p50_s"], told["p95_s"]) == (2.0, 2.0, 2.0)


def test_rates_are_of_the_last_minute_and_hits_of_what_was_counted() -> None:
    cluster = Watched()
    cluster.count("blue/one", 1_000)
    cluster.run("blue/one", output_tokens=900)  # forgotten a minute later
    cluster.advance(100 * SECOND)
    for session, cached in (("blue/one", 600), ("red/one", 100), ("blue/silent", None)):
        if cached is not None:
            cluster.count(session, 1_000)
        request = cluster.ask(session)
        finished = ev.RequestFinished(
            at=cluster.now, request=request, output_tokens=60, cached_tokens=cached
        )
        cluster.tell(finished)
    everybody, blue = (cluster.view.rates(owner, cluster.now) for owner in (None, "blue"))
    assert (everybody["answers"], blue["answers"]) == (3, 2)
    assert everybody["output_tokens_per_s"] == 3.0
    assert (everybody["hit_rate"], blue["hit_rate"]) == (0.35, 0.6)
    assert cluster.view.rates("green", cluster.now)["hit_rate"] is None


def test_rates_say_how_much_time_they_cover_when_there_is_much_to_remember() -> None:
    cluster = Watched(check=False)
    for _ in range(MAX_ANSWERS + 10):
        cluster.run("blue/one", us=1_000, output_tokens=5)
    told = cluster.view.rates(None, cluster.now)
    assert told["answers"] == MAX_ANSWERS
    assert told["seconds"] < 5
    assert 4_900 < told["output_tokens_per_s"] < 5_100


def test_those_under_way_come_before_those_that_wait_and_those_that_are_over() -> None:
    cluster = Watched()
    cluster.run("t/over")
    cluster.close("t/over")
    cluster.run("t/old")
    cluster.run("t/new")
    cluster.tell(ev.EngineDown(at=cluster.now, engine="e0"))
    cluster.ask("t/first")
    cluster.advance(SECOND)
    cluster.ask("t/second")
    order = [lane["session"] for lane in cluster.view.lanes(None, cluster.now)]
    assert order == ["new", "old", "first", "second", "over"]
    cluster.advance(200 * SECOND)
    order = [lane["session"] for lane in cluster.view.lanes(None, cluster.now)]
    assert order == ["first", "second"], "what has been in a tool for long is left out"


def test_nothing_grows_for_ever() -> None:
    cluster = Watched(check=False)

    def work(count: int) -> int:
        for number in range(count):
            name = f"t/{cluster.now}-{number}"
            cluster.run(name, us=1_000, tool="x" * 10_000)
            cluster.ask(name)
            cluster.tell(ev.SessionClosed(at=cluster.now, session=name))  # a request ends unheard
            cluster.close(name)
        return len(snapshot(cluster.view))

    full = work(max(MAX_FINISHED, MAX_ANSWERS) + 100)
    assert work(500) == full
    for _ in range(MAX_SPANS):
        cluster.run("t/busy", us=1_000)
    assert len(cluster.lane("t/busy")) == MAX_SPANS
    assert all(len(note) <= MAX_NOTE for lane in cluster.view.lanes(None, cluster.now)
               for *_, note in lane["spans"])  # fmt: skip


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("ask", "finish", "cancel", "close", "end", "down", "up", "wait")),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(STEPS)
def test_lanes_agree_with_the_scheduler(steps: list[tuple[str, int]]) -> None:
    cluster = Watched(max_num_seqs=2)
    state = cluster.scheduler.state
    seen: set[str] = set()
    for what, number in steps:
        session = f"t{number % 2}/{number}"
        workflow = f"t{number % 2}/w"
        known = state.sessions.get(session)
        under_way = list(state.requests.values())
        if what == "ask":
            cluster.ask(session, workflow=workflow, tenant=f"t{number % 2}")
            seen.add(session)
        elif what == "finish" and (running := [r for r in under_way if r.started is not None]):
            cluster.finish(running[number % len(running)].id)
        elif what == "cancel" and under_way:
            gone = under_way[number % len(under_way)]
            cluster.tell(ev.RequestCancelled(at=cluster.now, request=gone.id))
        elif what == "close" and known is not None:
            cluster.tell(ev.SessionClosed(at=cluster.now, session=session))
        elif what == "end" and workflow in state.workflows:
            cluster.close(workflow)
        elif what == "down" and "e0" in state.engines:
            cluster.tell(ev.EngineDown(at=cluster.now, engine="e0"))
        elif what == "up" and "e0" not in state.engines:
            cluster.engine_up("e0", max_num_seqs=2)
        elif what == "wait":
            cluster.advance(number * SECOND)
        check_lanes(cluster, seen)


def check_lanes(cluster: Watched, seen: set[str]) -> None:
    lanes = {f"{one['tenant']}/{one['session']}": one for one in cluster.view.lanes(None, 0)}
    assert lanes.keys() == seen
    assert len(lanes) <= MAX_FOLLOWED
    for name, lane in lanes.items():
        spans = lane["spans"]
        alive = cluster.scheduler.state.sessions.get(name)
        assert spans[-1][1] == (SessionState.DONE if alive is None else alive.state)
        if alive is not None and alive.state is not SessionState.REASONING:
            assert spans[-1][2] == (alive.home.id if alive.home is not None else None)
        elif alive is not None and len(alive.requests) == 1:
            [request] = alive.requests.values()
            assert request.engine is not None
            assert spans[-1][2] == request.engine.id
        assert [span[0] for span in spans] == sorted(span[0] for span in spans)
        assert all(one[1:3] != two[1:3] for one, two in pairwise(spans))
