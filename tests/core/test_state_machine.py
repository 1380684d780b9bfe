"""All events in all orders, under many bundles of policies: the laws hold after every event."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.core.bundles import BUNDLES, bundle

from saga.core import events as ev
from saga.core.actions import Action
from saga.core.loads import MEASURES
from saga.core.model import Engine, Request, RequestState, Session
from saga.core.queues import FairQueue, Lane
from saga.core.scheduler import Scheduler
from saga.testing import FakeCluster, snapshot

T = TypeVar("T")

PICK = st.integers(0, 999)
"""Which of those that are there; taken modulo their number."""
TOOL = st.sampled_from([None, "search", "shell"])
ENGINE_SIZE = st.sampled_from([(6_000, 1), (60_000, 2), (200_000, 3)])
TOKENS = st.sampled_from([1, 500, 3_000, 5_999, 30_000])
OLD_ENOUGH = 1_000_000_000
"""Longer than everything that policies plan ahead."""


def there_are(what: str) -> Callable[..., Any]:
    """The rule applies while the machine has some of these."""
    return precondition(lambda machine: bool(getattr(machine, what)))


def choose(pick: int, things: Iterable[T]) -> T:
    chosen = list(things)
    return chosen[pick % len(chosen)]


class SchedulerMachine(RuleBasedStateMachine):
    """A host that says anything that can be true, and engines that obey when they like."""

    @initialize(name=st.sampled_from(BUNDLES), engines=st.integers(0, 3), size=ENGINE_SIZE)
    def begin(self, name: str, engines: int, size: tuple[int, int]) -> None:
        self.name = name
        self.cluster = FakeCluster(bundle(name), engines=0, auto_start=False)
        self.scheduler = self.cluster.scheduler
        self.log: list[tuple[ev.Event, list[Action]]] = []
        self.homes: dict[str, Engine] = {}
        """By session: who last accepted a request of it."""
        self.clocks: list[tuple[FairQueue | Lane, float]] = []
        """Queues and their lanes, and their virtual times after the last event."""
        self.number = 0
        for _ in range(engines):
            self.engine_up(size)

    @property
    def now(self) -> int:
        return self.cluster.now

    @property
    def engines(self) -> list[Engine]:
        return list(self.scheduler.state.engines.values())

    @property
    def sessions(self) -> list[Session]:
        return list(self.scheduler.state.sessions.values())

    @property
    def requests(self) -> list[Request]:
        return list(self.scheduler.state.requests.values())

    @property
    def dispatched(self) -> list[Request]:
        return [r for r in self.requests if r.state is RequestState.DISPATCHED]

    @property
    def on_engines(self) -> list[Request]:
        return [r for r in self.requests if r.state is not RequestState.QUEUED]

    def new(self, kind: str) -> str:
        self.number += 1
        return f"{kind}-{self.number}"

    def tell(self, event: ev.Event) -> None:
        self.log.append((event, self.cluster.tell(event)))

    # ---- engines

    def engine_up(self, size: tuple[int, int]) -> None:
        self.tell(
            ev.EngineUp(
                at=self.now,
                engine=self.new("engine"),
                kv_capacity_tokens=size[0],
                max_num_seqs=size[1],
            )
        )

    @rule(pick=PICK, size=ENGINE_SIZE, down=st.booleans())
    def engine_comes_or_goes(self, pick: int, size: tuple[int, int], down: bool) -> None:
        if len(self.engines) < 2:
            self.engine_up(size)
            return
        engine = choose(pick, self.engines)
        if down:
            self.tell(ev.EngineDown(at=self.now, engine=engine.id))
            self.homes = {name: home for name, home in self.homes.items() if home is not engine}
        elif not engine.draining:
            self.tell(ev.EngineDraining(at=self.now, engine=engine.id))
        else:
            self.tell(
                ev.EngineUp(
                    at=self.now,
                    engine=engine.id,
                    kv_capacity_tokens=engine.kv_capacity_tokens,
                    max_num_seqs=engine.max_num_seqs,
                )
            )

    @there_are("engines")
    @there_are("sessions")
    @rule(pick=PICK, tokens=st.integers(0, 5_000), stored=st.booleans(), at_home=st.booleans())
    def blocks_changed(self, pick: int, tokens: int, stored: bool, at_home: bool) -> None:
        session, engine = choose(pick, self.sessions), choose(pick, self.engines)
        if at_home and session.home is not None:
            engine = session.home
        kind = ev.BlocksStored if stored else ev.BlocksRemoved
        if stored:
            self.homes.setdefault(session.id, engine)
        self.tell(kind(at=self.now, engine=engine.id, session=session.id, num_tokens=tokens))

    @rule(pick=PICK)
    def somebody_tells_what_changes_nothing(self, pick: int) -> None:
        events: list[ev.Event] = [ev.Tick(at=self.now)]
        for engine in self.engines:
            events.append(ev.EngineReport(at=self.now, engine=engine.id, kv_used_fraction=0.5))
        for session in self.sessions:
            events.append(ev.ToolStarted(at=self.now, session=session.id, tool="shell"))
            events.append(ev.ToolFinished(at=self.now, session=session.id))
        for request in self.on_engines:
            events.append(ev.RequestFirstToken(at=self.now, request=request.id))
        self.tell(choose(pick, events))

    # ---- workflows and sessions

    @precondition(lambda machine: len(machine.scheduler.state.workflows) < 6)
    @rule(
        tenant=st.sampled_from("abc"),
        agent_type=st.sampled_from(["coder", "browser"]),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        slack_us=st.sampled_from([None, 0, 2_000_000, 60_000_000]),
        mean_steps=st.sampled_from([None, 1.0, 8.0]),
        prompt_tokens=TOKENS,
    )
    def workflow_submitted(
        self,
        tenant: str,
        agent_type: str,
        weight: float,
        slack_us: int | None,
        mean_steps: float | None,
        prompt_tokens: int,
    ) -> None:
        workflow, session = self.new("workflow"), self.new("session")
        self.tell(
            ev.WorkflowSubmitted(
                at=self.now,
                workflow=workflow,
                tenant=tenant,
                agent_type=agent_type,
                weight=weight,
                deadline=None if slack_us is None else self.now + slack_us,
                mean_steps=mean_steps,
            )
        )
        self.tell(ev.SessionOpened(at=self.now, session=session, workflow=workflow))
        self.arrive(session, prompt_tokens, None)

    @there_are("sessions")
    @rule(pick=PICK)
    def sub_agent_opened(self, pick: int) -> None:
        parent = choose(pick, self.sessions)
        self.tell(
            ev.SessionOpened(
                at=self.now,
                session=self.new("session"),
                workflow=parent.workflow.id,
                parent=parent.id,
            )
        )

    @there_are("sessions")
    @rule(pick=PICK, whole=st.booleans())
    def session_or_workflow_ends(self, pick: int, whole: bool) -> None:
        session = choose(pick, self.sessions)
        if whole:
            for name in session.workflow.sessions:
                self.homes.pop(name, None)
            self.tell(ev.WorkflowDone(at=self.now, workflow=session.workflow.id))
        else:
            self.homes.pop(session.id, None)
            self.tell(ev.SessionClosed(at=self.now, session=session.id))

    # ---- requests

    @there_are("sessions")
    @rule(pick=PICK, prompt_tokens=TOKENS, expected=st.sampled_from([None, 1, 2_000]))
    def request_arrived(self, pick: int, prompt_tokens: int, expected: int | None) -> None:
        self.arrive(choose(pick, self.sessions).id, prompt_tokens, expected)

    def arrive(self, session: str, prompt_tokens: int, expected: int | None) -> None:
        self.tell(
            ev.RequestArrived(
                at=self.now,
                request=self.new("request"),
                session=session,
                prompt_tokens=prompt_tokens,
                expected_output_tokens=expected,
            )
        )

    @there_are("dispatched")
    @rule(pick=PICK, cached=st.floats(0, 1))
    def request_started(self, pick: int, cached: float) -> None:
        self.start(choose(pick, self.dispatched), cached)

    @there_are("dispatched")
    @rule()
    def all_start(self) -> None:
        for request in self.dispatched:
            if request.state is RequestState.DISPATCHED:
                self.start(request, 0.5)

    def start(self, request: Request, cached: float) -> None:
        self.accepted(request)
        cached_tokens = int(cached * request.prompt_tokens)
        self.tell(ev.RequestStarted(at=self.now, request=request.id, cached_tokens=cached_tokens))

    @there_are("on_engines")
    @rule(pick=PICK, tool=TOOL, output_tokens=st.integers(0, 3_000))
    def request_finished(self, pick: int, tool: str | None, output_tokens: int) -> None:
        """Also one whose start the host could not see."""
        self.finish(choose(pick, self.on_engines), tool, output_tokens)

    @there_are("sessions")
    @rule(pick=PICK, tool=TOOL, return_us=st.sampled_from([10_000, 3_000_000]))
    def a_few_steps(self, pick: int, tool: str | None, return_us: int) -> None:
        session = choose(pick, self.sessions)
        for _ in range(3):
            self.arrive(session.id, session.context_tokens + 200, None)
            for request in list(session.requests.values()):
                if request.state is not RequestState.QUEUED:
                    self.finish(request, tool, 100)
            self.time_passes(return_us)

    def finish(self, request: Request, tool: str | None, output_tokens: int) -> None:
        if request.state is RequestState.DISPATCHED:
            self.accepted(request)
        self.tell(
            ev.RequestFinished(
                at=self.now, request=request.id, output_tokens=output_tokens, tool=tool
            )
        )

    @there_are("requests")
    @rule(pick=PICK, how=st.sampled_from(["fails", "is tried again", "is cancelled"]))
    def request_goes_wrong(self, pick: int, how: str) -> None:
        request = choose(pick, self.requests)
        if how == "is cancelled":
            self.tell(ev.RequestCancelled(at=self.now, request=request.id))
        elif request.state is not RequestState.QUEUED:
            retry = how == "is tried again"
            self.tell(ev.RequestFailed(at=self.now, request=request.id, reason="test", retry=retry))

    def accepted(self, request: Request) -> None:
        assert request.engine is not None
        self.homes[request.session.id] = request.engine

    # ---- time

    @rule(us=st.sampled_from([1, 120_000, 700_000, 5_000_000]))
    def time_passes(self, us: int) -> None:
        end = self.now + us
        while self.cluster.wake is not None and self.cluster.wake <= end:
            at, self.cluster.wake = self.cluster.wake, None
            self.tell(ev.Tick(at=at))
        self.cluster.now = end

    # ---- what holds after every rule, besides the laws that the scheduler checks itself

    @invariant()
    def engines_hold_what_the_scheduler_thinks(self) -> None:
        for engine in self.engines:
            fake = self.cluster.engines[engine.id]
            by_state: dict[RequestState, set[str]] = {
                RequestState.RUNNING: set(),
                RequestState.DISPATCHED: set(),
            }
            for request in engine.requests.values():
                by_state[request.state].add(request.id)
            assert by_state[RequestState.RUNNING] == set(fake.running)
            assert by_state[RequestState.DISPATCHED] == set(fake.waiting)
            assert engine.draining == fake.draining

    @invariant()
    def home_is_who_last_accepted_or_first_had_kv(self) -> None:
        for session in self.sessions:
            assert session.home is self.homes.get(session.id)

    @invariant()
    def idle_engines_say_since_when(self) -> None:
        for engine in self.engines:
            has_work = engine.num_queued + engine.num_waiting + engine.num_running > 0
            assert (engine.idle_since is None) == has_work

    @invariant()
    def loads_are_up_to_date(self) -> None:
        view = self.scheduler.view
        for measure, load in MEASURES.items():
            expected = [load(engine) for engine in self.scheduler.state.open_engines]
            assert list(view.loads.table(measure)) == expected

    @invariant()
    def virtual_times_never_decrease(self) -> None:
        for thing, virtual_time in self.clocks:
            assert thing.virtual_time >= virtual_time
        things: list[FairQueue | Lane] = []
        for queue in (self.scheduler.unadmitted, *self.scheduler.queues.values()):
            things += [queue, *queue.lanes.values()]
        self.clocks = [(thing, thing.virtual_time) for thing in things]

    @invariant()
    def nobody_waits_for_an_admission_that_nobody_asks_for(self) -> None:
        if self.scheduler.policies.admission is None:
            assert not self.scheduler.unadmitted

    @invariant()
    def nothing_of_a_refused_workflow_is_let_in(self) -> None:
        for workflow in self.scheduler.state.workflows.values():
            if workflow.refusal:
                assert workflow.deadline is not None
                assert self.scheduler.policies.admission is not None
                assert not any(session.admitted for session in workflow.sessions.values())
                assert not any(session.requests for session in workflow.sessions.values())

    # ---- the end

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        self.same_events_same_actions()
        self.everything_ends()
        self.nothing_is_left()

    def same_events_same_actions(self) -> None:
        """Laws 8 and 13: determinism, whoever drives."""
        other = Scheduler(bundle(self.name))
        for event, actions in self.log:
            assert other.handle(event) == actions

    def everything_ends(self) -> None:
        """Law 12: with an engine up, clients that finish, and time, every request ends."""
        state, cluster = self.scheduler.state, self.cluster
        cluster.auto_start = True
        if not state.open_engines:
            self.engine_up((60_000, 3))
        cluster.tell(ev.Tick(at=self.now))
        while state.requests:
            before = state.num_ended.total(), len(state.workflows)
            cluster.settle()
            for workflow in list(state.workflows.values()):
                if not any(session.requests for session in workflow.sessions.values()):
                    cluster.tell(ev.WorkflowDone(at=self.now, workflow=workflow.id))
            stuck = {request.id: request.reason for request in state.requests.values()}
            now = state.num_ended.total(), len(state.workflows)
            assert now != before, f"stuck under {self.name}: {stuck}"
        for workflow in list(state.workflows.values()):
            cluster.tell(ev.WorkflowDone(at=self.now, workflow=workflow.id))
        assert state.num_arrived == state.num_ended.total()

    def nothing_is_left(self) -> None:
        """A finished workflow leaves nothing behind that could be reached from the scheduler."""
        self.cluster.advance(OLD_ENOUGH)
        assert self.cluster.wake is None, "somebody still wants to be woken"
        kinds = {entry[0] for entry in snapshot(self.scheduler)[1:]}
        assert not kinds & {"Request", "Session", "Workflow", "Tenant"}
        for engine in self.engines:
            assert not engine.requests
            assert engine.resident_tokens == engine.committed_tokens == engine.num_sessions == 0
            assert engine.num_queued == engine.num_waiting == engine.num_running == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=100, stateful_step_count=50)
