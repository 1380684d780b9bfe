"""The same requests at the same times on both engine models: which decisions differ?

Nothing feeds back: what an engine does does not move an arrival, so that the first difference is
seen for what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.sim.engine import EngineLimits, Job, Moment
from saga.sim.engine_model import EngineModel, EngineSetup, MakeEngine, light_engine
from saga.sim.experiment import Experiment
from saga.sim.hardware import ClusterSpec
from saga.sim.host import Simulation
from saga.sim.latency import StepTime
from saga.sim.lineage import Content, Lineage, Span, reusable_tokens
from saga.sim.plan import Plan
from saga.traces.script import WorkflowScript

PRESET = "vllm_apc_affinity"
SNAPSHOT_STEPS = 100
"""How often it is looked up what of each idle session is resident."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a schedule."""

    at: int
    name: str
    session: str
    path: tuple[Span, ...]
    prompt_tokens: int
    output_tokens: int
    reusable_tokens: int

    def job(self) -> Job:
        return Job(
            id=self.name,
            session=self.session,
            path=self.path,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            reusable_tokens=self.reusable_tokens,
        )


@dataclass(slots=True)
class Decisions:
    """What an engine decided, step by step."""

    batches: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    """When each step began, and how many tokens of which request it computed."""
    hits: dict[str, int] = field(default_factory=dict)
    """Prompt tokens that were found in the cache, by request."""
    resident: list[dict[str, int]] = field(default_factory=list)
    """Every so many steps: tokens of each idle session that are in the cache."""
    evicted_blocks: int = 0
    num_preemptions: int = 0


def record(plan: Plan, cluster: ClusterSpec, *, reserve_full_prompt: bool) -> list[Arrival]:
    """When requests arrive while the plan is played on the light model of one engine."""
    times: list[tuple[int, str]] = []

    def note(event: ev.Event, actions: list[act.Action]) -> None:
        times.extend((event.at, one.request) for one in actions if isinstance(one, act.Dispatch))

    one = replace(cluster, num_engines=1)
    Simulation(
        plan,
        load_preset(PRESET).policies,
        one,
        reserve_full_prompt=reserve_full_prompt,
        observe=note,
    ).run()
    return list(with_paths(times, plan.scripts, cluster.engine.block_size))


def with_paths(
    times: Sequence[tuple[int, str]], scripts: Sequence[WorkflowScript], block_size: int
) -> Iterator[Arrival]:
    """Plays the lineages of all sessions in the order in which their requests arrive.

    Requests are named ``workflow/session/step``, by their numbers in the scripts.
    """
    by_id = {script.id: script for script in scripts}
    prefixes: dict[str, Content] = {}
    lineages: dict[str, Lineage] = {}
    for at, name in times:
        session, _, step = name.rpartition("/")
        workflow, _, number = session.rpartition("/")
        script = by_id[workflow].sessions[int(number)]
        if session not in lineages:
            lineage = lineages[session] = Lineage(len(lineages) + 1, session, block_size)
            if script.parent is not None and script.forked_tokens:
                lineage.fork(lineages[f"{workflow}/{script.parent}"], script.forked_tokens)
            else:
                prefix = script.prefix and prefixes.setdefault(
                    script.prefix, Content(0, None, None)
                )
                lineage.begin(prefix or None, script.prefix_tokens)
        one = script.steps[int(step)]
        yield Arrival(
            at=at,
            name=name,
            session=session,
            path=lineages[session].advance(one),
            prompt_tokens=one.prompt_tokens,
            output_tokens=one.output_tokens,
            reusable_tokens=reusable_tokens(script, int(step), block_size),
        )


class _Replay:
    """Plays a schedule on one engine."""

    def __init__(self, make: MakeEngine, cluster: ClusterSpec, reserve_full_prompt: bool) -> None:
        spec = cluster.engine
        self.decisions = Decisions()
        self._idle: dict[str, Job] = {}
        """The last request of each session that is not here."""
        self._engine: EngineModel = make(
            EngineSetup(
                name="engine",
                spec=spec,
                limits=EngineLimits(
                    block_size=spec.block_size,
                    max_num_batched_tokens=spec.max_num_batched_tokens,
                    max_num_seqs=spec.max_num_seqs,
                    reserve_full_prompt=reserve_full_prompt,
                    max_jump=1,
                ),
                step_time=StepTime.of(spec),
                policies=load_preset(PRESET).policies,
                tell=self._tell,
            )
        )

    def run(self, schedule: Sequence[Arrival]) -> Decisions:
        waiting = list(reversed(schedule))
        while waiting or self._engine.next_event_us is not None:
            due = self._engine.next_event_us
            if due is not None and (not waiting or due <= waiting[-1].at):
                self._engine.wake(due)
                self._note_step(due)
            else:
                arrival = waiting.pop()
                self._idle.pop(arrival.session, None)
                self._engine.submit(arrival.job(), arrival.at)
        self.decisions.evicted_blocks = self._engine.counts.evicted_blocks
        self.decisions.num_preemptions = self._engine.counts.num_preemptions
        return self.decisions

    def _tell(self, moment: Moment, job: Job) -> None:
        if moment is Moment.STARTED:
            self.decisions.hits.setdefault(job.id, job.hit_tokens)
        elif moment is Moment.FINISHED:
            self._idle[job.session] = job

    def _note_step(self, now: int) -> None:
        batch = self._engine.batch
        if not batch:
            return
        self.decisions.batches.append((now, batch))
        if len(self.decisions.batches) % SNAPSHOT_STEPS == 0:
            at_work = {_workflow(name.rpartition("/")[0]) for name in batch}
            self.decisions.resident.append(
                {
                    name: self._engine.resident(job.path, job.computed, now)
                    for name, job in self._idle.items()
                    if _workflow(name) not in at_work  # what a relative computes is not yet whole
                }
            )


def _workflow(session: str) -> str:
    return session.rpartition("/")[0]


def replay(
    make: MakeEngine,
    schedule: Sequence[Arrival],
    cluster: ClusterSpec,
    *,
    reserve_full_prompt: bool,
) -> Decisions:
    return _Replay(make, cluster, reserve_full_prompt).run(schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How often two engines decided differently, of how many decisions."""

    requests: int
    hits: int
    """Requests that found more or less in the cache."""
    hit_tokens: tuple[int, int]
    steps: int
    batches: int
    """Steps of another composition, or at another time."""
    snapshots: int
    residents: int
    """Snapshots in which another part of some idle session was resident."""
    evicted_blocks: tuple[int, int]
    num_preemptions: tuple[int, int]


def compare(one: Decisions, other: Decisions) -> Difference:
    return Difference(
        requests=len(one.hits),
        hits=sum(one.hits[name] != other.hits.get(name) for name in one.hits),
        hit_tokens=(sum(one.hits.values()), sum(other.hits.values())),
        steps=len(one.batches),
        batches=_unequal(one.batches, other.batches),
        snapshots=len(one.resident),
        residents=_unequal(one.resident, other.resident),
        evicted_blocks=(one.evicted_blocks, other.evicted_blocks),
        num_preemptions=(one.num_preemptions, other.num_preemptions),
    )


def _unequal(ones: Sequence[object], others: Sequence[object]) -> int:
    longer = abs(len(ones) - len(others))
    return longer + sum(a != b for a, b in zip(ones, others, strict=False))


SCHEDULES = {
    "webarena": (60, 150_000),
    "swe-agent": (16, 200_000),
    "claude-code": (6, 450_000),
    "browser": (40, 80_000),
}
"""Tasks and KV memory by workload: agents that only append, and ones that cut their context."""


def main(vllm_engine: MakeEngine, *, quick: bool) -> dict[str, Any]:
    """Prints a row for each workload and for both ways to admit a prompt."""
    print("workload     reserve  requests  hits differ  steps  differ  snapshots  differ  evicted")
    rows = []
    for workload, (tasks, capacity) in SCHEDULES.items():
        for reserve in (True,) if quick else (True, False):
            experiment = Experiment(
                presets=(PRESET,),
                workload=workload,
                cluster="paper-16xa100",
                load=1.0,
                tasks=tasks // 3 if quick else tasks,
                knobs={"num_engines": 1, "kv_capacity_tokens": capacity},
            )
            plan, _ = experiment.plan(seed=1)
            spec = experiment.cluster_spec
            schedule = record(plan, spec, reserve_full_prompt=reserve)
            light, vllm = (
                replay(make, schedule, spec, reserve_full_prompt=reserve)
                for make in (light_engine, vllm_engine)
            )
            row = compare(light, vllm)
            rows.append({"workload": workload, "reserve_full_prompt": reserve, **asdict(row)})
            print(
                f"{workload:12} {reserve!s:7} {row.requests:9} {row.hits:12} {row.steps:6}"
                f"{row.batches:8} {row.snapshots:10} {row.residents:7}  {row.evicted_blocks}",
                flush=True,
            )
    return {"schedules": rows}
