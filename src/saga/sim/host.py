"""The simulator: drives the scheduler and simulated engines in virtual time.

Events are ordered by (time, rank, engine, sequence). The host plays workflow scripts, turns what
engines tell into scheduler events and executes the scheduler's actions.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial

from saga.core import actions as act
from saga.core import events as ev
from saga.core.graph import GraphStore
from saga.core.policy import Policies
from saga.core.scheduler import Scheduler
from saga.report.records import EngineUsage, Outcome, RunRecord
from saga.report.sampler import Sampler
from saga.sim.counts import Counts
from saga.sim.engine import LONGEST_JUMP, EngineLimits, Job, Moment
from saga.sim.engine_model import EngineModel, EngineSetup, MakeEngine, light_engine
from saga.sim.hardware import ClusterSpec
from saga.sim.latency import StepTime
from saga.sim.lineage import Content, Lineage, Span, reusable_tokens
from saga.sim.plan import EngineLoss, Plan, spacing_us
from saga.sim.recorder import Recorder
from saga.traces.script import SessionScript, StepScript, WorkflowScript


class Rank(IntEnum):
    """Who goes first at equal times."""

    ENGINE = 0
    CLUSTER = 1
    CLIENT = 2
    SCHEDULER = 3


@dataclass(slots=True, eq=False)
class _Call:
    """One request on its way through the cluster."""

    id: str
    session: _Session
    step: StepScript
    path: tuple[Span, ...]
    reusable_tokens: int
    arrived: int
    started: int | None = None
    first_token: int | None = None
    job: Job | None = None


@dataclass(slots=True, eq=False)
class _Session:
    """A session being played."""

    id: str
    workflow: _Workflow
    script: SessionScript
    index: int
    lineage: Lineage
    next_step: int = 0
    call: _Call | None = None
    outstanding: int = 0
    """Sub-agents that its next step waits for."""
    finished_at: int = 0
    arriving_at: int = 0
    """When the KV that is being moved for it arrives."""
    ghost: tuple[EngineModel, str] | None = None
    """Where its prefetch under way runs, and as which job."""


@dataclass(slots=True, eq=False)
class _Workflow:
    script: WorkflowScript
    sessions: dict[int, _Session] = field(default_factory=dict)
    num_open: int = 0
    num_planned: int = 0
    """Sub-agents whose start lies ahead."""
    root_ended: int | None = None


class Simulation:
    """One preset on one plan. ``run`` may be called once.

    ``check``: the laws are checked after every event (slow). ``max_jump=1`` steps through every
    iteration of every engine. ``watch(finished, now)`` is called about every thousand events.
    """

    def __init__(
        self,
        plan: Plan,
        policies: Policies,
        cluster: ClusterSpec,
        *,
        step_time: StepTime | None = None,
        make_engine: MakeEngine = light_engine,
        graphs: GraphStore | None = None,
        preset: str = "",
        seed: int = 0,
        check: bool = False,
        max_jump: int = LONGEST_JUMP,
        reserve_full_prompt: bool = False,
        watch: Callable[[int, int], None] | None = None,
        observe: Callable[[ev.Event, list[act.Action]], None] | None = None,
    ) -> None:
        self.plan = plan
        self.policies = policies
        self.cluster = cluster
        self.preset = preset
        self.seed = seed
        self.now = 0
        self.scheduler = Scheduler(policies, graphs=graphs, check=check)
        self.recorder = Recorder()
        tenants = {script.tenant for script in plan.scripts}
        self.sampler = Sampler(self.scheduler, tenants, spacing_us(plan))
        self.engines: dict[str, EngineModel] = {}
        self.num_events = 0
        self.num_moves = 0
        self.num_prefetches = 0
        self._check = check
        self._watch = watch
        self._observe = observe
        self._make_engine = make_engine
        self._step_time = step_time or StepTime.of(cluster.engine)
        self._limits = EngineLimits(
            block_size=cluster.engine.block_size,
            max_num_batched_tokens=cluster.engine.max_num_batched_tokens,
            max_num_seqs=cluster.engine.max_num_seqs,
            reserve_full_prompt=reserve_full_prompt,
            max_jump=max_jump,
        )
        self._heap: list[tuple[int, Rank, str, int, Callable[[], None]]] = []
        self._sequence = 0
        self._planned: dict[str, int] = {}
        """By engine: the time of its wake-up in the heap."""
        self._prefixes: dict[str, Content] = {}
        self._sessions: dict[str, _Session] = {}
        self._calls: dict[str, _Call] = {}
        self._network_free: dict[str, int] = {}
        self._numbers = 0
        self._next_script = 0
        self._finished = 0
        self._ended = 0
        self._all_engines: list[EngineModel] = []
        """Lost ones included."""
        self._num_warmup = int(plan.warmup * len(plan.scripts))
        self._window: tuple[int, int | None] = (0, None)
        """Start and, once known, end of the measured window."""
        self._usage: list[EngineUsage] = []
        self._counts = Counts()
        self._finished_in_window = 0

    # ---- the loop

    def run(self) -> RunRecord:
        """Plays the plan until every workflow has ended, or nothing can happen any more."""
        began = time.perf_counter()
        for number in range(self.cluster.num_engines):
            self._engine_up(f"engine-{number:02d}")
        for loss in self.plan.losses:
            self._schedule_loss(loss)
        self._schedule_arrivals()
        while self._heap:
            at, _, _, _, call = heapq.heappop(self._heap)
            if self.sampler.next_us <= at:
                self.sampler.take(at)
            self.now = at
            self.num_events += 1
            call()
            if self._watch is not None and self.num_events % 1000 == 0:
                self._watch(self._ended, self.now)
            if self._ended == len(self.plan.scripts):
                break
        return self._record(time.perf_counter() - began)

    def _at(self, at: int, rank: Rank, call: Callable[[], None], engine: str = "") -> None:
        """``engine``: whose wake-up it is; their order must not depend on when they were planned,
        which a jump changes."""
        self._sequence += 1
        heapq.heappush(self._heap, (at, rank, engine, self._sequence, call))

    def _tell(self, event: ev.Event) -> None:
        actions = self.scheduler.handle(event)
        if self._observe is not None:
            self._observe(event, actions)
        for action in actions:
            self._execute(action)

    # ---- engines

    def _engine_up(self, name: str) -> None:
        step_time = self._step_time
        setup = EngineSetup(
            name=name,
            spec=self.cluster.engine,
            limits=self._limits,
            step_time=step_time,
            policies=self.policies,
            tell=lambda moment, job: self._moment(name, moment, job),
            up_since=self.now,
        )
        self.engines[name] = self._make_engine(setup)
        self._all_engines.append(self.engines[name])
        chunk, batch = self._limits.max_num_batched_tokens, 16
        self._tell(
            ev.EngineUp(
                at=self.now,
                engine=name,
                kv_capacity_tokens=self.engines[name].capacity_tokens,
                max_num_seqs=self._limits.max_num_seqs,
                prefill_us_per_token=step_time.prefill_ps(0, chunk, chunk) / chunk / 1e6,
                decode_us_per_token=step_time.step_ps(batch, batch, batch * 16_384, 0)
                / batch
                / 1e6,
                retains=self.engines[name].retains,
                prefetches=self.engines[name].prefetches,
                shared_kv="cluster" if self.engines[name].adopts else None,
            )
        )

    def _wake_engine(self, name: str) -> None:
        """Runs the engine if it is due; called for every planned wake-up, also outdated ones."""
        engine = self.engines.get(name)
        if engine is None or self._planned.get(name) != self.now:
            return
        del self._planned[name]
        if engine.next_event_us is not None and engine.next_event_us <= self.now:
            engine.wake(self.now)
        self._after(engine)

    def _after(self, engine: EngineModel) -> None:
        """The engine was called: plan its next wake-up, and pass on what it evicted."""
        at = engine.next_event_us
        if at is not None and self._planned.get(engine.name) != at:
            self._planned[engine.name] = at
            self._at(at, Rank.ENGINE, lambda: self._wake_engine(engine.name), engine.name)
        if self._check:
            engine.check()
        while (gone := engine.used_up()) is not None:
            session, blocks = gone
            tokens = blocks * self._limits.block_size
            if session in self._sessions:
                self._tell(
                    ev.BlocksRemoved(
                        at=self.now, engine=engine.name, session=session, num_tokens=tokens
                    )
                )

    def _schedule_loss(self, loss: EngineLoss) -> None:
        name = f"engine-{loss.engine:02d}"
        if loss.engine >= self.cluster.num_engines:
            raise ValueError(f"engine {loss.engine} of {self.cluster.num_engines} cannot be lost")
        self._at(loss.at, Rank.CLUSTER, lambda: self._lose(name))
        if loss.back is not None:
            self._at(loss.back, Rank.CLUSTER, lambda: self._engine_up(name))

    def _lose(self, name: str) -> None:
        """The engine is gone with its KV; the scheduler queues its requests again."""
        lost = self.engines.pop(name)
        lost.settle(self.now)
        if self._window[1] is None:
            self._usage.append(self._engine_usage(lost))
        self._planned.pop(name, None)
        self._tell(ev.EngineDown(at=self.now, engine=name))

    def _moment(self, engine: str, moment: Moment, job: Job) -> None:
        if job.ghost:
            if moment is Moment.FINISHED:
                self._prefetched(engine, job)
            return
        call = self._calls.get(job.id)
        if call is None or call.job is not job:
            return  # cancelled, or sent again after its engine was lost
        if moment is Moment.STARTED:
            call.started = self.now if call.started is None else call.started
            cached = job.hit_tokens + job.host_tokens
            self._tell(ev.RequestStarted(at=self.now, request=job.id, cached_tokens=cached))
        elif moment is Moment.FIRST_TOKEN:
            call.first_token = self.now if call.first_token is None else call.first_token
            self._tell(ev.RequestFirstToken(at=self.now, request=job.id))
        elif moment is Moment.FINISHED:
            self._request_finished(call, job)
        else:
            reason = f"does not fit the KV capacity of {engine}"
            self._tell(ev.RequestFailed(at=self.now, request=job.id, reason=reason))
            self._end_workflow(call.session.workflow, Outcome.REJECTED)

    def _prefetched(self, engine: str, ghost: Job) -> None:
        session = self._sessions.get(ghost.session)
        if session is not None and session.ghost is not None and session.ghost[1] == ghost.id:
            session.ghost = None
            self._tell(
                ev.BlocksStored(
                    at=self.now, engine=engine, session=session.id, num_tokens=ghost.prompt_tokens
                )
            )

    # ---- workflows

    def _schedule_arrivals(self) -> None:
        scripts, arrivals = self.plan.scripts, self.plan.arrivals
        if arrivals is not None:
            if scripts:
                self._at(int(arrivals[0]), Rank.CLIENT, self._arrive)
            return
        agents = min(self.plan.agents or 0, len(scripts))
        for agent in range(agents):
            self._at(self.plan.stagger_us * agent // agents, Rank.CLIENT, self._submit_next)

    def _arrive(self) -> None:
        assert self.plan.arrivals is not None
        self._submit_next()
        if self._next_script < len(self.plan.scripts):
            self._at(int(self.plan.arrivals[self._next_script]), Rank.CLIENT, self._arrive)

    def _submit_next(self) -> None:
        number = self._next_script
        if number >= len(self.plan.scripts):
            return
        self._next_script += 1
        self._note_window(number)
        script = self.plan.scripts[number]
        self.recorder.submit(
            script,
            self.now,
            measured=number >= self._num_warmup,
            alone_us=self.plan.alone_us[number],
            expected_us=self.plan.expected_us[number],
            share_us=0 if self.plan.share_us is None else self.plan.share_us[number],
        )
        self._tell(
            ev.WorkflowSubmitted(
                at=self.now,
                workflow=script.id,
                tenant=script.tenant,
                agent_type=script.agent_type,
                weight=self.plan.weights.get(script.tenant, 1.0),
                deadline=self._deadline(number),
                mean_steps=self.plan.declared_steps.get(script.agent_type),
            )
        )
        workflow = _Workflow(script)
        self._open(workflow, 0)
        self._request(workflow.sessions[0])

    def _deadline(self, number: int) -> int | None:
        factor = self.plan.deadline_factor
        return None if factor is None else self.now + int(factor * self.plan.expected_us[number])

    def _note_window(self, number: int) -> None:
        """The measured window: from the first measured submission to the last one."""
        if number == self._num_warmup:
            self._window = (self.now, None)
            self._usage.clear()
            self._finished_in_window = 0
            for engine in self._all_engines:
                engine.reset_counts(self.now)
        elif number == len(self.plan.scripts) - 1:
            self._end_window()

    def _end_window(self) -> None:
        self._window = (self._window[0], self.now)
        self._usage += [self._engine_usage(engine) for engine in self.engines.values()]
        self._counts = sum((engine.counts for engine in self._all_engines), Counts())

    def _open(self, workflow: _Workflow, index: int) -> None:
        script = workflow.script.sessions[index]
        parent = None if script.parent is None else workflow.sessions[script.parent]
        self._numbers += 1
        session_id = workflow.script.session_id(index)
        lineage = Lineage(self._numbers, session_id, self._limits.block_size)
        if parent is not None and script.forked_tokens:
            lineage.fork(parent.lineage, script.forked_tokens)
        else:
            lineage.begin(self._prefix(script), script.prefix_tokens)
        session = _Session(session_id, workflow, script, index, lineage)
        workflow.sessions[index] = session
        workflow.num_open += 1
        self._sessions[session_id] = session
        self._tell(
            ev.SessionOpened(
                at=self.now,
                session=session_id,
                workflow=workflow.script.id,
                parent=None if parent is None else parent.id,
            )
        )

    def _prefix(self, script: SessionScript) -> Content | None:
        if script.prefix is None:
            return None
        return self._prefixes.setdefault(script.prefix, Content(0, None, None))

    def _request(self, session: _Session) -> None:
        """The session's next request arrives."""
        step = session.script.steps[session.next_step]
        path = session.lineage.advance(step)
        self._pass_on_liveness(session.lineage)
        reusable = reusable_tokens(session.script, session.next_step, self._limits.block_size)
        call = _Call(f"{session.id}/{session.next_step}", session, step, path, reusable, self.now)
        session.call = call
        self._calls[call.id] = call
        timeout = self.plan.client_timeout_us
        if timeout is not None:
            self._at(self.now + timeout, Rank.CLIENT, lambda: self._time_out(call))
        self._tell(
            ev.RequestArrived(
                at=self.now,
                request=call.id,
                session=session.id,
                prompt_tokens=step.prompt_tokens,
            )
        )

    def _pass_on_liveness(self, lineage: Lineage) -> None:
        if lineage.changed:
            for engine in self.engines.values():
                engine.liveness_changed(lineage.changed, self.now)
            lineage.changed = []

    def _request_finished(self, call: _Call, job: Job) -> None:
        session, step = call.session, call.step
        assert call.started is not None and call.first_token is not None
        cached = job.hit_tokens + job.host_tokens
        uncached = step.prompt_tokens - cached
        self.recorder.request(
            session.workflow.script.id,
            root=session.index == 0,
            arrived=call.arrived,
            started=call.started,
            first_token=call.first_token,
            finished=self.now,
            regenerated_share=max(0, call.reusable_tokens - cached) / uncached,
        )
        del self._calls[call.id]
        session.call = None
        session.next_step += 1
        session.finished_at = self.now
        self._tell(
            ev.RequestFinished(
                at=self.now,
                request=call.id,
                output_tokens=step.output_tokens,
                cached_tokens=cached,
                tool=step.tool,
            )
        )
        self._spawn(session)
        if session.next_step == len(session.script.steps):
            self._close(session)
        else:
            self._continue_when_ready(session)

    def _spawn(self, session: _Session) -> None:
        """Sub-agents that this step starts."""
        workflow = session.workflow
        for index, script in enumerate(workflow.script.sessions):
            if script.parent == session.index and script.spawn_step == session.next_step - 1:
                workflow.num_planned += 1
                session.outstanding += script.blocking
                at = self.now + script.delay_us
                self._at(at, Rank.CLIENT, partial(self._start, workflow, index))

    def _start(self, workflow: _Workflow, index: int) -> None:
        if workflow.script.id in self.recorder.live:
            workflow.num_planned -= 1
            self._open(workflow, index)
            self._request(workflow.sessions[index])

    def _continue_when_ready(self, session: _Session) -> None:
        """Begins the gap before the next request, unless sub-agents are still to be waited for."""
        if session.outstanding == 0:
            gap = session.script.steps[session.next_step - 1].gap_us
            waited = self.now - session.finished_at
            self._at(self.now + gap, Rank.CLIENT, partial(self._continue, session, gap, waited))

    def _continue(self, session: _Session, gap: int, waited: int) -> None:
        if session.id not in self._sessions:
            return
        if session.index == 0:
            self.recorder.gap(session.workflow.script.id, gap, waited)
        self._request(session)

    def _close(self, session: _Session) -> None:
        """The session's last step is over; perhaps its parent goes on, or the workflow ends."""
        workflow = session.workflow
        self._forget(session)
        self._tell(ev.SessionClosed(at=self.now, session=session.id))
        if session.index == 0:
            workflow.root_ended = self.now
        parent = session.script.parent
        if parent is not None and session.script.blocking:
            waiting = workflow.sessions[parent]
            waiting.outstanding -= 1
            if waiting.id in self._sessions and waiting.call is None:
                self._continue_when_ready(waiting)
        if workflow.num_open == 0 and workflow.num_planned == 0:
            self._end_workflow(workflow, Outcome.FINISHED)

    def _forget(self, session: _Session) -> None:
        self._cancel_prefetch(session)
        del self._sessions[session.id]
        session.workflow.num_open -= 1
        session.lineage.end()
        self._pass_on_liveness(session.lineage)

    def _end_workflow(self, workflow: _Workflow, outcome: Outcome) -> None:
        for session in list(workflow.sessions.values()):
            if session.id in self._sessions:
                if session.call is not None:
                    self._note_wait(session.call)
                    self._calls.pop(session.call.id, None)
                self._forget(session)
        self.sampler.ends(workflow.script.id)
        self._tell(ev.WorkflowDone(at=self.now, workflow=workflow.script.id))
        self.recorder.end(workflow.script.id, self.now, outcome, workflow.root_ended)
        self._ended += 1
        if outcome is Outcome.FINISHED:
            self._finished_in_window += self._window[1] is None
        if self.plan.agents is not None:
            self._at(self.now, Rank.CLIENT, self._submit_next)

    def _note_wait(self, call: _Call) -> None:
        """It will not finish; how long it waited counts all the same."""
        waited_until = self.now if call.started is None else call.started
        self.recorder.waited(call.session.workflow.script.id, waited_until - call.arrived)

    def _time_out(self, call: _Call) -> None:
        if self._calls.get(call.id) is call:
            self._end_workflow(call.session.workflow, Outcome.TIMED_OUT)

    # ---- actions

    def _execute(self, action: act.Action) -> None:
        match action:
            case act.Dispatch():
                self._dispatch(action)
            case act.WakeAt():
                self._at(action.at, Rank.SCHEDULER, lambda: self._tell(ev.Tick(at=self.now)))
            case act.Retain():
                engine = self.engines[action.engine]
                engine.retain(action.session, action.until, action.score, self.now)
                self._after(engine)
            case act.Release():
                engine = self.engines[action.engine]
                engine.release(action.session, self.now)
                self._after(engine)
            case act.Move():
                self._move(action)
            case act.Prefetch():
                self._prefetch(action)
            case act.Offload():
                session, engine = self._sessions[action.session], self.engines[action.engine]
                tokens = session.lineage.context_tokens - 1
                engine.offload(session.id, session.lineage.path, tokens, self.now)
            case act.Preempt():
                engine = self.engines[action.engine]
                engine.preempt(action.request, self.now)
                self._after(engine)
            case act.Cancel():
                engine = self.engines[action.engine]
                engine.cancel(action.request, self.now)
                self._after(engine)
            case act.Reject():
                call = self._calls[action.request]
                self._end_workflow(call.session.workflow, Outcome.REJECTED)

    def _dispatch(self, action: act.Dispatch) -> None:
        call = self._calls[action.request]
        session, step = call.session, call.step
        last = session.next_step == len(session.script.steps) - 1
        job = Job(
            id=call.id,
            session=session.id,
            path=call.path,
            prompt_tokens=step.prompt_tokens,
            output_tokens=step.output_tokens,
            reusable_tokens=call.reusable_tokens,
            priority=action.priority,
            gap_us=None if last else step.gap_us,
        )
        if call.job is not None:
            job.replace(call.job)
        call.job = job
        submit = partial(self._submit, self.engines[action.engine], call, job)
        if session.arriving_at > self.now:
            self._at(session.arriving_at, Rank.CLUSTER, submit)
        else:
            submit()

    def _submit(self, engine: EngineModel, call: _Call, job: Job) -> None:
        lost = self.engines.get(engine.name) is not engine  # it may have come back as another
        if lost or call.job is not job or call.id not in self._calls:
            return  # that, or the request was cancelled, while its KV was moving
        self._cancel_prefetch(call.session)
        engine.submit(job, self.now)
        self._after(engine)

    def _move(self, action: act.Move) -> None:
        """Copies what is resident; the request that follows waits for it."""
        session = self._sessions[action.session]
        source = self.engines[action.source]
        path = session.lineage.path
        tokens = source.resident(path, session.lineage.context_tokens, self.now)
        begin = max(self.now, self._network_free.get(action.source, 0))
        session.arriving_at = begin + self.cluster.engine.transfer_us(tokens)
        self._network_free[action.source] = session.arriving_at
        self.num_moves += 1

        def arrive() -> None:
            target = self.engines.get(action.target)
            if target is not None and session.id in self._sessions:
                target.adopt(path, tokens, self.now)
                self._after(target)
            if self.engines.get(action.source) is source:
                source.drop(session.id, self.now)
                self._after(source)

        self._at(session.arriving_at, Rank.CLUSTER, arrive)

    def _prefetch(self, action: act.Prefetch) -> None:
        session = self._sessions[action.session]
        engine = self.engines[action.engine]
        self.num_prefetches += 1
        tokens = session.lineage.context_tokens
        ghost = Job(
            id=f"{session.id}/ghost-{self.num_prefetches}",
            session=session.id,
            path=session.lineage.path,
            prompt_tokens=tokens,
            output_tokens=1,
        )
        self._cancel_prefetch(session)
        session.ghost = (engine, ghost.id)
        engine.prefetch(ghost, self.now)
        self._after(engine)

    def _cancel_prefetch(self, session: _Session) -> None:
        """The session is here, or gone: what it still wants prepared is moot."""
        if session.ghost is not None:
            engine, ghost = session.ghost
            session.ghost = None
            if self.engines.get(engine.name) is engine:
                engine.cancel(ghost, self.now)
                self._after(engine)

    # ---- the record

    def _engine_usage(self, engine: EngineModel) -> EngineUsage:
        occupancy, size = engine.settle(self.now), self._limits.block_size
        return EngineUsage(
            engine=engine.name,
            capacity_tokens=engine.capacity_tokens,
            window_us=self.now - max(self._window[0], engine.up_since),
            active=occupancy.active * size,
            waiting=occupancy.waiting * size,
            dead=occupancy.dead * size,
            later_hit=occupancy.later_hit * size,
            busy_us=engine.counts.busy_ps // 1_000_000,
        )

    def _record(self, wall_s: float) -> RunRecord:
        if self._window[1] is None:
            self._end_window()
        for call in self._calls.values():
            self._note_wait(call)
        counts, fair = self._counts, self.policies.fairness is not None
        return RunRecord(
            preset=self.preset,
            seed=self.seed,
            workflows=self.recorder.workflows,
            engines=self._usage,
            tokens=counts.tokens,
            ttft_us=self.recorder.ttft_us,
            start_us=self._window[0],
            end_us=self._window[1] or self.now,
            finished_in_window=self._finished_in_window,
            evicted_tokens=counts.evicted_blocks * self._limits.block_size,
            num_evictions=counts.num_evictions,
            num_steals=self.scheduler.state.num_steals,
            num_pauses=self.scheduler.state.num_pauses,
            num_moves=self.num_moves,
            num_preemptions=counts.num_preemptions,
            num_prefetches=self.num_prefetches,
            regenerated_gpu_us=counts.regenerated_ps // 1_000_000,
            deviation=self.scheduler.deviation if fair else None,
            series=self.sampler.finish(self.now),
            num_events=self.num_events,
            wall_s=wall_s,
        )
