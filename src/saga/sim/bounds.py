"""How far eviction policies are from the offline optimum, on a frozen timeline.

In a closed loop a bad policy changes the very timeline it is judged on. So one run with ample KV
fixes when every session pauses and returns; then each policy, and the optimum, decides what to keep
of that idle KV in a pool of a given size. A *gap* is the KV of one session from the end of a step
to the start of its next one; what is not kept at its end is regenerated.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.cache import FOREVER, KVEntry, RetentionIndex
from saga.core.policy import Policies
from saga.core.scheduler import Scheduler
from saga.sim.hardware import ClusterSpec
from saga.sim.host import Simulation
from saga.sim.lineage import reusable_tokens
from saga.sim.plan import Plan

POOL_FRACTIONS = (0.3, 0.5, 0.7, 0.9)
"""Pool sizes, relative to the mean idle KV of the timeline."""
AMPLE_TOKENS = 1 << 34
TIMELINE_PRESET = "vllm_apc_affinity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the timeline, on the engine of its session."""

    session: str
    workflow: str
    tenant: str
    agent_type: str
    engine: str
    arrived: int
    started: int
    finished: int
    prompt_tokens: int
    output_tokens: int
    tool: str | None
    last: bool
    """Last of its session."""
    kept_tokens: int
    """KV that the session's next step can reuse; 0 for the last."""
    next_start: int
    """When that step starts; FOREVER for the last."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps by engine, in order of their ends."""

    steps: dict[str, list[Step]]
    declared_steps: dict[str, float]

    def mean_idle_tokens(self, engine: str) -> float:
        """Mean over time of the KV in gaps."""
        steps = self.steps[engine]
        begin = min(step.finished for step in steps)
        end = max(step.finished for step in steps)
        held = sum(s.kept_tokens * (s.next_start - s.finished) for s in steps if not s.last)
        return held / max(1, end - begin)


def record_timeline(plan: Plan, cluster: ClusterSpec) -> Timeline:
    """Plays the plan under affinity with KV memory for everything."""
    ample = replace(cluster, engine=replace(cluster.engine, kv_capacity_override=AMPLE_TOKENS))
    scripts = {script.id: script for script in plan.scripts}
    arrived: dict[str, int] = {}
    started: dict[str, int] = {}
    engines: dict[str, str] = {}
    ended: list[tuple[str, int]] = []

    def observe(event: ev.Event, actions: list[act.Action]) -> None:
        for action in actions:
            if isinstance(action, act.Dispatch):
                engines[action.request] = action.engine
        if isinstance(event, ev.RequestArrived):
            arrived[event.request] = event.at
        elif isinstance(event, ev.RequestStarted):
            started[event.request] = event.at
        elif isinstance(event, ev.RequestFinished):
            ended.append((event.request, event.at))

    Simulation(plan, load_preset(TIMELINE_PRESET).policies, ample, observe=observe).run()
    steps: dict[str, list[Step]] = defaultdict(list)
    size = cluster.engine.block_size
    for request, finished in ended:
        session, _, number = request.rpartition("/")
        workflow, _, index = session.rpartition("/")
        script = scripts[workflow].sessions[int(index)]
        step, last = script.steps[int(number)], int(number) == len(script.steps) - 1
        kept = 0 if last else reusable_tokens(script, int(number) + 1, size) - script.prefix_tokens
        steps[engines[request]].append(
            Step(
                session=session,
                workflow=workflow,
                tenant=scripts[workflow].tenant,
                agent_type=scripts[workflow].agent_type,
                engine=engines[request],
                arrived=arrived[request],
                started=started[request],
                finished=finished,
                prompt_tokens=step.prompt_tokens,
                output_tokens=step.output_tokens,
                tool=step.tool,
                last=last,
                kept_tokens=max(0, kept),
                next_start=FOREVER if last else started[f"{session}/{int(number) + 1}"],
            )
        )
    return Timeline(dict(steps), dict(plan.declared_steps))


def optimal_regenerated(steps: Sequence[Step], pool_tokens: int) -> int:
    """Fewest regenerated tokens that any policy can reach, knowing the timeline.

    Belady with partial eviction and bypass: whenever the pool overflows, drop from the gap that
    ends last. Exact, since the constraints form an interval matrix and all tokens weigh the same
    (theory: greedy equals the linear programme). O(G log G).
    """
    gaps = (s for s in steps if s.finished < s.next_start < FOREVER)
    by_start = sorted(gaps, key=lambda step: step.finished)
    latest: list[tuple[int, int, int]] = []
    ends: list[tuple[int, int]] = []
    kept: list[int] = []
    used = dropped = 0
    for number, step in enumerate(by_start):
        while ends and ends[0][0] <= step.finished:
            used -= kept[heapq.heappop(ends)[1]]
        kept.append(step.kept_tokens)
        used += step.kept_tokens
        heapq.heappush(ends, (step.next_start, number))
        heapq.heappush(latest, (-step.next_start, number, number))
        while used > pool_tokens:
            victim = latest[0][2]
            loss = min(kept[victim], used - pool_tokens)
            kept[victim] -= loss
            used -= loss
            dropped += loss
            if not kept[victim]:
                heapq.heappop(latest)
    return dropped


class _Pool:
    """Idle KV of one engine under a policy bundle, on the frozen timeline."""

    def __init__(self, policies: Policies, pool_tokens: int, timeline: Timeline) -> None:
        self._policies = policies
        self._size = pool_tokens
        self._declared = timeline.declared_steps
        self._index = RetentionIndex(policies.eviction)
        self._entries: dict[str, KVEntry] = {}
        self._used = 0
        self._scheduler = Scheduler(
            replace(policies, admission=None, stealing=None, prefetch=None, offload=None)
        )
        self.regenerated = 0

    def replay(self, steps: Sequence[Step]) -> int:
        """Tokens that must be computed again. Memory pressure counts the running KV too."""
        capacity = max(
            self._size + self._mean_active(steps), 1 + max(s.prompt_tokens for s in steps)
        )
        self._tell(ev.EngineUp(at=0, engine="pool", kv_capacity_tokens=capacity))
        moments: list[tuple[int, int, int, Step]] = []
        for number, step in enumerate(steps):
            moments.append((step.finished, 0, number, step))
            moments.append((step.started, 1, number, step))
        for at, same_time in groupby(sorted(moments), key=itemgetter(0)):
            for _, is_start, _, step in same_time:
                self._start(step, at) if is_start else self._finish(step, at)
            self._shrink(at)  # what starts makes room for what ends at the same time
        return self.regenerated

    def _mean_active(self, steps: Sequence[Step]) -> int:
        length = max(s.finished for s in steps) - min(s.started for s in steps)
        return sum(s.prompt_tokens * (s.finished - s.started) for s in steps) // max(1, length)

    def _start(self, step: Step, now: int) -> None:
        state = self._scheduler.state
        if step.workflow not in state.workflows:
            self._tell(
                ev.WorkflowSubmitted(
                    at=now,
                    workflow=step.workflow,
                    tenant=step.tenant,
                    agent_type=step.agent_type,
                    mean_steps=self._declared.get(step.agent_type),
                )
            )
        if step.session not in state.sessions:
            self._tell(ev.SessionOpened(at=now, session=step.session, workflow=step.workflow))
        entry = self._entries.pop(step.session, None)
        if entry is not None:
            self._index.discard(entry)
            self._used -= entry.tokens
            self.regenerated -= entry.tokens
        request = f"{step.session}@{step.started}"
        self._tell(
            ev.RequestArrived(
                at=now, request=request, session=step.session, prompt_tokens=step.prompt_tokens
            )
        )
        self._tell(ev.RequestStarted(at=now, request=request))

    def _finish(self, step: Step, now: int) -> None:
        tokens = step.kept_tokens if not step.last else step.prompt_tokens + step.output_tokens
        entry = KVEntry(
            session=step.session, tokens=tokens, last_access=now, next_use=step.next_start
        )
        self._entries[step.session] = entry
        self._used += tokens
        self.regenerated += step.kept_tokens  # taken back at the return, as far as it is kept
        self._index.add(entry, now)
        self._tell(
            ev.RequestFinished(
                at=now,
                request=f"{step.session}@{step.started}",
                output_tokens=step.output_tokens,
                tool=step.tool,
            )
        )
        if step.last:
            self._tell(ev.SessionClosed(at=now, session=step.session))
            if not self._scheduler.state.workflows[step.workflow].sessions:
                self._tell(ev.WorkflowDone(at=now, workflow=step.workflow))

    def _shrink(self, now: int) -> None:
        while self._used > self._size:
            victim = self._index.victim(now)
            assert victim is not None
            excess = self._used - self._size
            loss = victim.tokens if self._policies.eviction.whole_entry else excess
            loss = min(loss, victim.tokens)
            victim.tokens -= loss
            self._used -= loss
            if not victim.tokens:
                self._index.discard(victim)

    def _tell(self, event: ev.Event) -> None:
        for action in self._scheduler.handle(event):
            if isinstance(action, act.Retain | act.Release):
                entry = self._entries.get(action.session)
                if entry is None:
                    continue
                if isinstance(action, act.Retain):
                    entry.retained_until, entry.p_reuse = action.until, action.score
                else:
                    entry.released = True
                self._index.update(entry, event.at)


def ratios_to_optimum(
    timelines: Sequence[Timeline], policies: Policies, fractions: Sequence[float] = POOL_FRACTIONS
) -> dict[float, float | None]:
    """By pool fraction: regenerated tokens over the optimum's, summed over engines and timelines.

    None where the optimum regenerates next to nothing (below 0.1 % of what is reused).
    """
    ratios: dict[float, float | None] = {}
    for fraction in fractions:
        ours = optimum = reusable = 0
        for timeline in timelines:
            for engine, steps in timeline.steps.items():
                pool = int(fraction * timeline.mean_idle_tokens(engine))
                ours += _Pool(policies, pool, timeline).replay(steps)
                optimum += optimal_regenerated(steps, pool)
                reusable += sum(step.kept_tokens for step in steps)
        ratios[fraction] = ours / optimum if optimum > 0.001 * reusable else None
    return ratios


def regenerated_share(
    timelines: Sequence[Timeline], fractions: Sequence[float] = POOL_FRACTIONS
) -> dict[float, float]:
    """By pool fraction: the optimum's regenerated share of all reusable tokens."""
    shares = {}
    for fraction in fractions:
        optimum = reusable = 0
        for timeline in timelines:
            for engine, steps in timeline.steps.items():
                pool = int(fraction * timeline.mean_idle_tokens(engine))
                optimum += optimal_regenerated(steps, pool)
                reusable += sum(step.kept_tokens for step in steps)
        shares[fraction] = optimum / max(1, reusable)
    return shares
