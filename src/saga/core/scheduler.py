"""``Scheduler.handle(event) -> list[Action]``: the only door.

The scheduler holds the mechanics: who waits where, what is sent, what is counted. Every opinion
comes from a policy. It reads no clock: time is the ``at`` of the event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from saga.core import actions as act
from saga.core import events as ev
from saga.core.admission import Admission
from saga.core.errors import ClockError, DuplicateIdError, RangeError, UnknownIdError
from saga.core.fairness import ServiceLedger
from saga.core.graph import GraphStore, RemainingWork
from saga.core.model import (
    ClusterState,
    Engine,
    Request,
    RequestState,
    Session,
    SessionState,
    Tenant,
    Workflow,
)
from saga.core.policy import FairnessPolicy, Policies
from saga.core.queues import FairQueue
from saga.core.return_times import owner_of
from saga.core.session_kv import SessionKV
from saga.core.turns import Turns
from saga.core.view import View

STORY_LENGTH = 32
"""Events kept for the story of a broken law."""
QUIET_EPOCHS = 5
"""Epochs without a look at an engine's queue after which a tick looks."""


class Scheduler:
    """Turns events into actions under one bundle of policies.

    Raises a ``CoreError`` for an event that cannot be true (time going back, unknown or duplicate
    ids); such an event has changed nothing. With ``check`` every event is followed by
    ``invariants.check``. ``graphs`` learns and foretells; an empty one by default.
    """

    def __init__(
        self, policies: Policies, *, graphs: GraphStore | None = None, check: bool = False
    ) -> None:
        self.policies = policies
        self.state = ClusterState()
        self.queues: dict[str, FairQueue] = {}
        """By engine: placed requests that wait for room there."""
        self.unplaced: dict[str, Request] = {}
        """Admitted requests that no engine can take now."""
        self.story: deque[ev.Event] = deque(maxlen=STORY_LENGTH)
        self.ledger = ServiceLedger(policies.fairness, policies.epoch_us)
        self.view = View(self.state, self.queues, graphs)
        self.turns = Turns(policies.ordering, self.view)
        self.kv = SessionKV(policies, self.state, self.view, self._do)
        self.admission = Admission(
            policies, self.state, self.view, self.ledger, self.kv, self._place
        )
        self.unadmitted = self.admission.queue
        """Requests whose session may not use memory now."""
        self._check = check
        self._actions: list[act.Action] = []
        self._stirred: dict[str, Engine] = {}
        """Engines whose queue may move after this event."""
        self._lost_deviation = 0.0
        """In queues of engines that are gone."""
        self._num_placed = 0
        """Requests in the queues of engines."""
        self.max_capacity = 0
        """KV tokens of the largest engine that takes requests."""
        self._wake: int | None = None
        self._next_epoch = 0
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ev.EngineUp: self._engine_up,
            ev.EngineDown: self._engine_down,
            ev.EngineDraining: self._engine_draining,
            ev.EngineReport: self._engine_report,
            ev.BlocksStored: self._blocks_changed,
            ev.BlocksRemoved: self._blocks_changed,
            ev.WorkflowSubmitted: self._workflow_submitted,
            ev.WorkflowDone: self._workflow_done,
            ev.SessionOpened: self._session_opened,
            ev.SessionClosed: self._session_closed,
            ev.RequestArrived: self._request_arrived,
            ev.RequestStarted: self._request_started,
            ev.RequestFirstToken: self._request_first_token,
            ev.RequestFinished: self._request_finished,
            ev.RequestFailed: self._request_failed,
            ev.RequestCancelled: self._request_cancelled,
            ev.ToolStarted: self._tool_started,
            ev.ToolFinished: self._tool_finished,
            ev.Tick: self._tick,
        }

    def handle(self, event: ev.Event) -> list[act.Action]:
        """What to do now that ``event`` has happened, in the order in which to do it."""
        if event.at < self.state.now:
            raise ClockError(f"{event} is earlier than the last event, at {self.state.now}")
        self._actions = []
        before = self.state.now
        self.state.now = event.at
        try:
            self._handlers[type(event)](event)
        except (UnknownIdError, DuplicateIdError, RangeError):
            self.state.now = before
            raise
        self.story.append(event)
        self._settle_down()
        if self._check:
            from saga.core.invariants import check

            check(self)
        return self._actions

    # ---- engines

    def _engine_up(self, event: ev.EngineUp) -> None:
        engine = self.state.engines.get(event.engine)
        if engine is not None and not engine.draining:
            raise DuplicateIdError(f"engine {event.engine!r} is up already")
        if engine is not None:
            engine.draining = False
            self._stir(engine)  # something pinned may have come meanwhile
        else:
            engine = Engine(
                id=event.engine,
                kv_capacity_tokens=event.kv_capacity_tokens,
                max_num_seqs=event.max_num_seqs,
                prefill_us_per_token=event.prefill_us_per_token,
                decode_us_per_token=event.decode_us_per_token,
                retains=event.retains,
                prefetches=event.prefetches,
                shared_kv=event.shared_kv,
                idle_since=event.at,
            )
            self.state.engines[engine.id] = engine
            fairness = self.policies.fairness
            self.queues[engine.id] = FairQueue(None if fairness is None else fairness.limit)
        self._engines_changed()
        self._place_again(list(self.unplaced.values()))

    def _engine_down(self, event: ev.EngineDown) -> None:
        engine = self._engine(event.engine)
        del self.state.engines[engine.id]
        queue = self.queues.pop(engine.id)
        self._lost_deviation = max(self._lost_deviation, queue.deviation)
        stranded = queue.requests()
        self._num_placed -= len(stranded)
        for request in engine.requests.values():
            self.ledger.settle(request, 0.0, None)
            request.move(RequestState.QUEUED)
            request.session.workflow.tenant.num_queued += 1
            request.started = request.dispatched = None
            request.session.move(SessionState.WAITING)
            stranded.append(request)
        for session in self.state.sessions.values():
            if session.home is engine:
                session.home = None
                session.resident_tokens = 0
            if session.assigned is engine:
                self.kv.assign(session, None, 0)
        self._stirred.pop(engine.id, None)
        self._engines_changed()
        for request in stranded:
            request.engine = None
        self._place_again(sorted(stranded, key=lambda request: (request.arrived, request.id)))

    def _engine_draining(self, event: ev.EngineDraining) -> None:
        engine = self._engine(event.engine)
        engine.draining = True
        self._engines_changed()
        waiting = self.queues[engine.id].requests()
        for request in waiting:
            self._leave_queue(request)
        self._place_again(waiting)

    def _engine_report(self, event: ev.EngineReport) -> None:
        engine = self._engine(event.engine)
        engine.kv_used_fraction = event.kv_used_fraction
        engine.reported = event.at - event.age_us

    def _blocks_changed(self, event: ev.BlocksStored | ev.BlocksRemoved) -> None:
        engine = self._engine(event.engine)
        session = self.state.sessions.get(event.session)
        if session is None:
            return
        if session.home is None and isinstance(event, ev.BlocksStored):  # left by an earlier life
            session.home = engine
        if session.home is engine:
            self.kv.set_resident(session, event.num_tokens)

    def _engines_changed(self) -> None:
        self.view.engines = engines = self.state.open_engines
        self.view.capacity_tokens = sum(engine.kv_capacity_tokens for engine in engines)
        self.view.share_memory()
        self.view.loads.reset(engines)
        self.max_capacity = max((engine.kv_capacity_tokens for engine in engines), default=0)

    # ---- workflows and sessions

    def _workflow_submitted(self, event: ev.WorkflowSubmitted) -> None:
        if event.workflow in self.state.workflows:
            raise DuplicateIdError(f"workflow {event.workflow!r} exists already")
        if not (event.priority > 0 and event.weight > 0):
            raise RangeError(
                f"workflow {event.workflow!r} has priority {event.priority} and weight "
                f"{event.weight}: both must be above 0"
            )
        tenant = self.state.tenants.get(event.tenant)
        if tenant is None:
            tenant = self.state.tenants[event.tenant] = Tenant(id=event.tenant)
            self.state.total_weight += tenant.weight
        self.state.total_weight += event.weight - tenant.weight
        tenant.weight = event.weight
        workflow = Workflow(
            id=event.workflow,
            tenant=tenant,
            agent_type=event.agent_type,
            submitted=event.at,
            ranked_at=event.at,
            deadline=event.deadline,
            mean_steps=event.mean_steps,
            priority=event.priority,
        )
        tenant.workflows.add(workflow.id)
        self.state.workflows[workflow.id] = workflow
        self.view.share_memory()
        self.ledger.enter(workflow, self.view)

    def _workflow_done(self, event: ev.WorkflowDone) -> None:
        workflow = self.state.workflows.get(event.workflow)
        if workflow is None:
            raise UnknownIdError(f"workflow {event.workflow!r} is not known")
        for session in list(workflow.sessions.values()):
            self._close(session)
        if workflow.num_steps:
            ideal = workflow.service_us + workflow.gap_us
            graph = self.view.graphs.learn(workflow.agent_type)
            graph.ideal_us.add(ideal)
            tct_us = workflow.last_step - (workflow.begun or 0)
            graph.durations_us.observe(min(int(ideal), tct_us))
            graph.cost_us.add(workflow.cost_us)
        self.ledger.leave(workflow)
        self.ledger.end(workflow, self.unadmitted)
        workflow.tenant.workflows.discard(workflow.id)
        if not workflow.tenant.workflows:
            self.state.total_weight -= workflow.tenant.weight
            del self.state.tenants[workflow.tenant.id]
        del self.state.workflows[workflow.id]
        self.view.share_memory()

    def _session_opened(self, event: ev.SessionOpened) -> None:
        if event.session in self.state.sessions:
            raise DuplicateIdError(f"session {event.session!r} exists already")
        workflow = self.state.workflows.get(event.workflow)
        if workflow is None:
            raise UnknownIdError(f"workflow {event.workflow!r} is not known")
        session = Session(
            id=event.session,
            workflow=workflow,
            parent=event.parent,
            acting_since=event.at,
            admitted=self.policies.admission is None,
        )
        self.state.sessions[session.id] = workflow.sessions[session.id] = session
        self._expect(workflow)
        self.ledger.reassess(workflow, self.view)

    def _session_closed(self, event: ev.SessionClosed) -> None:
        self._close(self._session(event.session))

    def _close(self, session: Session) -> None:
        for request in list(session.requests.values()):
            self._end(request, RequestState.CANCELLED, "its session was closed")
        session.move(SessionState.DONE)
        if session.num_steps:
            graph = self.view.graphs.learn(session.workflow.agent_type)
            graph.observe_end(session.tool, session.num_steps)
        self.kv.leave_home(session, "its session ended")
        self.kv.assign(session, None, 0)
        del self.state.sessions[session.id]
        del session.workflow.sessions[session.id]

    def _tool_started(self, event: ev.ToolStarted) -> None:
        self._session(event.session).tool = event.tool

    def _tool_finished(self, event: ev.ToolFinished) -> None:
        self._session(event.session)

    # ---- requests

    def _request_arrived(self, event: ev.RequestArrived) -> None:
        if event.request in self.state.requests:
            raise DuplicateIdError(f"request {event.request!r} exists already")
        session = self._session(event.session)
        graph = self.view.graphs[session.workflow.agent_type]
        if session.num_steps and session.state is SessionState.ACTING and not session.returned:
            session.returned = True  # one that is cancelled and sent again returns once
            gap_us = event.at - session.acting_since
            owner = owner_of(session.workflow.agent_type)
            self.view.return_times.observe(session.tool, gap_us, owner=owner)
            session.workflow.gap_us += gap_us
        expected = event.expected_output_tokens
        request = Request(
            id=event.request,
            session=session,
            arrived=event.at,
            prompt_tokens=event.prompt_tokens,
            new_tokens=max(0, event.prompt_tokens - session.context_tokens),
            expected_output_tokens=(
                int(graph.output_tokens.value(200.0)) if expected is None else expected
            ),
            pinned=event.engine,
        )
        self.state.num_arrived += 1
        self.state.requests[request.id] = session.requests[request.id] = request
        session.workflow.tenant.num_queued += 1
        if session.state is SessionState.ACTING:
            session.move(SessionState.WAITING)
        self.turns.arrive(request)
        if refusal := self.admission.deadlines.refusal(request):
            self._refuse(request, refusal, code="deadline_unreachable")
        elif session.admitted and not self.admission.must_pause(request):
            self._place(request)
        elif not self._is_too_long(request):
            request.reason = request.reason or "it is not admitted yet"
            self.admission.wait(request)
        if session.admitted and request.state is RequestState.QUEUED:
            self.kv.protect_queued(session)

    def _request_started(self, event: ev.RequestStarted) -> None:
        request = self._request(event.request)
        if request.state is RequestState.RUNNING:
            return  # resumed after a preemption inside the engine
        engine = self._engine_of(request)
        request.move(RequestState.RUNNING)
        request.started = event.at
        request.cached_tokens = min(event.cached_tokens, request.prompt_tokens)
        engine.num_waiting -= 1
        engine.num_running += 1
        engine.running[request.id] = request
        self._stir(engine)
        self.kv.settle_home(request.session, engine, request.prompt_tokens)

    def _request_first_token(self, event: ev.RequestFirstToken) -> None:
        self._request(event.request)

    def _request_finished(self, event: ev.RequestFinished) -> None:
        request = self._request(event.request)
        if request.state is RequestState.DISPATCHED:  # a host that cannot see the start
            self._request_started(ev.RequestStarted(at=event.at, request=request.id))
        engine, session = self._engine_of(request), request.session
        if event.cached_tokens is not None:
            request.cached_tokens = min(event.cached_tokens, request.prompt_tokens)
        self.ledger.finish(request, event.output_tokens, engine, self.queues[engine.id])
        uncached = request.prompt_tokens - request.cached_tokens
        session.workflow.service_us += engine.cost_us(uncached, event.output_tokens)
        self.turns.finish(request, event.output_tokens)
        self._learn_step(request, event)
        self._end(request, RequestState.FINISHED, "")
        session.num_steps += 1
        session.workflow.num_steps += 1
        session.workflow.last_step = event.at
        session.tool = event.tool
        session.acting_since = event.at
        session.returned = False
        session.num_prefetches = 0
        self._expect(session.workflow)
        session.context_tokens = request.prompt_tokens + event.output_tokens
        if session.home is engine:
            self.kv.set_resident(session, session.context_tokens)
        self.ledger.go_on(session.workflow, self.unadmitted)
        self.kv.assign(session, session.assigned, session.context_tokens)
        if session.state is SessionState.ACTING:
            self.kv.begin_gap(session)

    def _request_failed(self, event: ev.RequestFailed) -> None:
        request = self._request(event.request)
        if request.state is RequestState.QUEUED:
            raise UnknownIdError(f"request {request.id!r} is on no engine")
        if not event.retry:
            self._end(request, RequestState.FAILED, event.reason)
            return
        engine = self._engine_of(request)
        request.avoid.add(engine.id)
        self._leave_engine(request)
        self.ledger.settle(request, 0.0, self.queues[engine.id])
        request.move(RequestState.QUEUED)
        request.session.workflow.tenant.num_queued += 1
        request.session.move(SessionState.WAITING)
        request.started = request.dispatched = None
        self._place(request)

    def _request_cancelled(self, event: ev.RequestCancelled) -> None:
        self._end(self._request(event.request), RequestState.CANCELLED, "the client went away")

    def _learn_step(self, request: Request, event: ev.RequestFinished) -> None:
        session = request.session
        graph = self.view.graphs.learn(session.workflow.agent_type)
        graph.output_tokens.add(event.output_tokens)
        if session.num_steps:
            graph.observe_step(session.tool, event.tool, new_tokens=request.new_tokens)
        else:
            graph.observe_start(event.tool)

    def _expect(self, workflow: Workflow) -> None:
        """Brings the workflow's expected remaining work up to date."""
        graphs = self.view.graphs
        parts = [graphs.remaining(session) for session in workflow.sessions.values()]
        workflow.remaining = parts[0] if len(parts) == 1 else sum(parts, RemainingWork())

    def _end(self, request: Request, state: RequestState, reason: str) -> None:
        """The request leaves the system; its session is in a gap if it has no other."""
        if request.state is RequestState.QUEUED:
            self._leave_queue(request)
            request.session.workflow.tenant.num_queued -= 1
        else:
            engine = self._engine_of(request)
            if state is RequestState.CANCELLED:
                self._do(act.Cancel(request=request.id, engine=engine.id, reason=reason))
            paid = state is RequestState.CANCELLED and request.state is RequestState.RUNNING
            self._leave_engine(request)
            if state is not RequestState.FINISHED:  # a client that cancels pays for what ran
                cost = request.charged if paid else 0.0
                self.ledger.settle(request, cost, self.queues[engine.id])
        request.move(state)
        self.state.num_ended[state] += 1
        del self.state.requests[request.id]
        session = request.session
        del session.requests[request.id]
        left = {other.state for other in session.requests.values()}
        if not left:
            session.move(SessionState.ACTING)
            session.acting_since = self.state.now
            if state is not RequestState.FINISHED:
                self.kv.begin_absence(session)
            if session.retained and session.home is not None:
                self.kv.retain(session, session.home, self.state.now, 1.0, "its request went away")
                session.retained = False
        elif left == {RequestState.QUEUED}:
            session.move(SessionState.WAITING)
        else:
            session.move(SessionState.REASONING)

    # ---- placement and dispatch

    def _place(self, request: Request) -> None:
        """Puts an admitted request into the queue of an engine, or aside while there is none."""
        engines = self.view.engines
        if request.pinned is not None:
            self._place_pinned(request, request.pinned)
            return
        if self._is_too_long(request):
            return
        route = self.policies.routing.route(request, self.view) if engines else None
        if route is None:
            request.reason = "held by routing" if engines else "no engine is up"
            self.unplaced[request.id] = request
            return
        engine, request.reason = self.state.engines[route.engine.id], route.reason
        request.move_kv = route.move_kv
        too_long = request.prompt_tokens >= engine.kv_capacity_tokens
        if too_long or engine.id in request.avoid:
            other = self._another(request)
            if other is not engine:
                why = "it is too long for" if too_long else "not served by"
                request.reason = f"{route.reason}, but {why} {engine.id}"
                engine = other
        self._enqueue(request, engine, self.policies.ordering.key(request, self.view))

    def _place_pinned(self, request: Request, name: str) -> None:
        engine = self.state.engines.get(name)
        if engine is None:
            self._refuse(request, f"engine {name}, which holds the state it refers to, is gone")
            return
        request.reason = "only this engine holds the state it refers to"
        self._enqueue(request, engine, self.policies.ordering.key(request, self.view))

    def _another(self, request: Request) -> Engine:
        """The emptiest engine that it fits, if possible one that has not failed to serve it.

        One that fails at once looks idle, and would draw everything to itself.
        """
        fits = [
            engine
            for engine in self.state.open_engines
            if request.prompt_tokens < engine.kv_capacity_tokens
        ]
        untried = [engine for engine in fits if engine.id not in request.avoid]
        return min(untried or fits, key=lambda engine: engine.committed_tokens)

    def _is_too_long(self, request: Request) -> bool:
        """Refuses it if it fits no engine."""
        if not self.view.engines or request.prompt_tokens < self.max_capacity:
            return False
        self._refuse(
            request,
            f"prompt of {request.prompt_tokens} tokens does not fit "
            f"the KV capacity of {self.max_capacity}",
        )
        return True

    def _refuse(self, request: Request, reason: str, code: act.RefusalCode | None = None) -> None:
        self._do(act.Reject(request=request.id, reason=reason, code=code))
        self.unplaced[request.id] = request
        self._end(request, RequestState.REJECTED, reason)

    def _enqueue(self, request: Request, engine: Engine, key: float) -> None:
        request.engine = engine
        engine.num_queued += 1
        self._num_placed += 1
        engine.idle_since = None
        tokens = request.prompt_tokens + request.expected_output_tokens
        self.kv.assign(request.session, engine, tokens)
        self.queues[engine.id].push(request, key)
        self._stir(engine)

    def _place_again(self, requests: list[Request]) -> None:
        for request in requests:
            self.unplaced.pop(request.id, None)
            self._place(request)

    def _leave_queue(self, request: Request) -> None:
        """Takes a queued request out of wherever it waits."""
        if request.engine is not None:
            self.queues[request.engine.id].remove(request)
            request.engine.num_queued -= 1
            self._num_placed -= 1
            self._note_idle(request.engine)
            request.engine = None
        elif request in self.unadmitted:
            self.unadmitted.remove(request)
        else:
            del self.unplaced[request.id]

    def _leave_engine(self, request: Request) -> None:
        engine = self._engine_of(request)
        if request.state is RequestState.RUNNING:
            engine.num_running -= 1
            del engine.running[request.id]
        else:
            engine.num_waiting -= 1
        del engine.requests[request.id]
        request.engine = None
        self._note_idle(engine)
        self._stir(engine)

    @property
    def deviation(self) -> float:
        """The largest so far of a tenant's service from its share, over the bound; at most 1."""
        here = max(queue.deviation for queue in (self.unadmitted, *self.queues.values()))
        return max(here, self._lost_deviation)

    def has_room(self, engine: Engine) -> bool:
        """Whether one more request may be sent there now."""
        limit = self.policies.max_waiting_per_engine
        if engine.draining or limit is None:
            return not engine.draining
        return (
            engine.num_waiting < limit
            and engine.num_waiting + engine.num_running < engine.max_num_seqs
        )

    def _dispatch(self, request: Request, engine: Engine) -> None:
        session = request.session
        engine.num_queued -= 1
        self._num_placed -= 1
        engine.num_waiting += 1
        engine.requests[request.id] = request
        request.move(RequestState.DISPATCHED)
        request.dispatched = self.state.now
        moved = (
            request.move_kv
            and session.resident_tokens > 0
            and session.home not in (None, engine)
            and session.home.shared_kv == engine.shared_kv is not None
        )
        reusable = session.resident_tokens if moved or session.home is engine else 0
        uncached = max(0, request.prompt_tokens - reusable)
        self.ledger.charge(request, uncached, engine, self.queues[engine.id])
        session.move(SessionState.REASONING)
        if moved and session.home is not None:
            self._do(
                act.Move(
                    session=session.id,
                    source=session.home.id,
                    target=engine.id,
                    reason=request.reason,
                )
            )
            self.kv.set_resident(session, 0)
        priority = 0
        if self.policies.max_waiting_per_engine is None:  # the engine orders its own queue
            priority = int(self.policies.ordering.key(request, self.view))
        self._do(
            act.Dispatch(
                request=request.id, engine=engine.id, reason=request.reason, priority=priority
            )
        )

    # ---- after every event

    def _tick(self, event: ev.Tick) -> None:
        if self._wake is not None and event.at >= self._wake:
            self._wake = None
        if event.at < self._next_epoch:
            return
        self._next_epoch = event.at + self.policies.epoch_us
        self.state.num_epochs += 1
        self._place_again(list(self.unplaced.values()))
        if self.policies.fairness is not None:
            self._stir_the_quiet()
        if self.policies.stealing is not None and len(self.view.engines) > 1:
            for steal in self.policies.stealing.steals(self.view):
                self._steal(
                    self.state.requests[steal.request.id],
                    self.state.engines[steal.target.id],
                    steal.reason,
                )

    def _stir_the_quiet(self) -> None:
        """Engines with a queue where nothing has happened for some epochs: a preemption may be due
        though no event says so."""
        epoch = self.state.now // self.policies.epoch_us
        for engine in self.state.engines.values():
            if engine.num_queued and epoch - engine.preempt_checked >= QUIET_EPOCHS:
                self._stir(engine)

    def _steal(self, request: Request, target: Engine, reason: str) -> None:
        if request.state is not RequestState.QUEUED or request.engine in (None, target):
            return
        if request.pinned is not None or request.prompt_tokens >= target.kv_capacity_tokens:
            return
        self._leave_queue(request)
        self.state.num_steals += 1
        request.move_kv = True
        request.reason = reason
        self._enqueue(request, target, float("-inf"))

    def _settle_down(self) -> None:
        """Everything that may follow from what just changed."""
        unadmitted, now = self.unadmitted.members, self.state.now
        if (self._num_placed or unadmitted) and len(self.state.tenants) > 1:
            self.ledger.refresh(self.view)
        prefetches, lapses = self.kv.prefetches, self.kv.lapses
        if prefetches and prefetches[0][0] <= now:
            self.kv.prefetch_due()
        if lapses and lapses[0][0] <= now:
            self.kv.lapse_due()
        if unadmitted:
            self.admission.let_in()
        while self._stirred:
            _, engine = self._stirred.popitem()
            queue = self.queues[engine.id]
            while queue.members and self.has_room(engine):
                self._dispatch(self.turns.head(queue), engine)
            if queue.members and self.policies.fairness is not None:
                self._consider_preemption(engine, queue, self.policies.fairness)
        if prefetches or self._num_placed or self.unplaced or unadmitted:
            self._ask_to_wake()

    def _consider_preemption(
        self, engine: Engine, queue: FairQueue, fairness: FairnessPolicy
    ) -> None:
        """Once per epoch, while somebody waits: may the head of the queue push a request out?"""
        epoch = self.state.now // self.policies.epoch_us
        if engine.preempt_checked == epoch:
            return
        engine.preempt_checked = epoch
        head = self.turns.head(queue)
        victim = fairness.preempt(head, tuple(engine.running.values()), self.view)
        if victim is None:
            return
        request = self.state.requests[victim.id]
        self._do(
            act.Preempt(
                request=request.id, engine=engine.id, reason=f"gives way to request {head.id}"
            )
        )
        request.move(RequestState.DISPATCHED)
        engine.num_running -= 1
        del engine.running[request.id]
        engine.num_waiting += 1
        self.view.loads.touch(engine)
        self._dispatch(head, engine)

    def _ask_to_wake(self) -> None:
        prefetches = self.kv.prefetches
        at: int | None = prefetches[0][0] if prefetches else None
        held = self.unplaced and self.view.engines  # without engines, only an EngineUp can help
        looks = self.policies.stealing is not None or self.policies.fairness is not None
        if held or (self._num_placed and looks):
            epoch = max(self._next_epoch, self.state.now + 1)
            at = epoch if at is None else min(at, epoch)
        if self.unadmitted and self.kv.lapses:  # then there may be room for them
            at = self.kv.lapses[0][0] if at is None else min(at, self.kv.lapses[0][0])
        if at is None:
            return
        at = max(at, self.state.now + 1)
        if self._wake is None or at < self._wake:
            self._wake = at
            self._do(act.WakeAt(at=at, reason="epoch or prefetch"))

    # ---- small things

    def _do(self, action: act.Action) -> None:
        self._actions.append(action)

    def _stir(self, engine: Engine) -> None:
        """Its queue or its room changed."""
        self.view.loads.touch(engine)
        self._stirred[engine.id] = engine

    def _note_idle(self, engine: Engine) -> None:
        """It has fewer requests."""
        self.view.loads.touch(engine)
        if not (engine.num_queued or engine.num_waiting or engine.num_running):
            engine.idle_since = self.state.now

    def _engine(self, engine_id: str) -> Engine:
        engine = self.state.engines.get(engine_id)
        if engine is None:
            raise UnknownIdError(f"engine {engine_id!r} is not known")
        return engine

    def _engine_of(self, request: Request) -> Engine:
        if request.engine is None or request.state is RequestState.QUEUED:
            raise UnknownIdError(f"request {request.id!r} is on no engine")
        return request.engine

    def _session(self, session_id: str) -> Session:
        session = self.state.sessions.get(session_id)
        if session is None:
            raise UnknownIdError(f"session {session_id!r} is not known")
        return session

    def _request(self, request_id: str) -> Request:
        request = self.state.requests.get(request_id)
        if request is None:
            raise UnknownIdError(f"request {request_id!r} is not known")
        return request
