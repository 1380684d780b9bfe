"""Builders of scripts, plans and clusters, and a step time that can be worked out on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import strategies as st

from saga.config import load_preset
from saga.core.actions import Action
from saga.core.events import Event
from saga.report.records import RunRecord
from saga.sim.hardware import ClusterSpec, get_cluster
from saga.sim.host import Simulation
from saga.sim.latency import StepTime
from saga.sim.plan import Plan
from saga.traces.script import SessionScript, StepScript, WorkflowScript

US = 1_000_000
"""Picoseconds in a microsecond."""
SECOND = 1_000_000
"""Microseconds in a second."""
TOOLS = {"read": 0.05, "edit": 0.8, "test": 4.0}
"""Mean return time in seconds."""

Log = list[tuple[Event, tuple[Action, ...]]]


@dataclass(frozen=True, slots=True)
class PlainTime(StepTime):
    """A step lasts ``step_us`` and ``token_us`` for each new token; context costs nothing more
    unless ``kv_ps`` or ``attn_ps`` are given."""

    step_us: int = 0
    token_us: int = 0

    def base_ps(self, num_tokens: int, num_seqs: int) -> int:
        return (self.step_us + self.token_us * num_tokens) * US


def plain_time(
    cluster: ClusterSpec, *, step_us: int, token_us: int = 0, kv_ps: int = 0, attn_ps: int = 0
) -> PlainTime:
    return PlainTime(
        engine=cluster.engine,
        kv_ps=kv_ps,
        attn_ps=attn_ps,
        layers_read_ps=0.0,
        layers_token_ps=0.0,
        head_read_ps=0.0,
        head_token_ps=0.0,
        allreduce_least_ps=0.0,
        allreduce_token_ps=0.0,
        step_us=step_us,
        token_us=token_us,
    )


def small_cluster(
    num_engines: int = 2, capacity: int | None = 6_000, **options: Any
) -> ClusterSpec:
    """The paper's engines with little KV memory, ``capacity`` tokens of it."""
    return get_cluster(
        "paper-16xa100", num_engines=num_engines, kv_capacity_tokens=capacity, **options
    )


def step(kept: int, new: int, output: int, *, tool: str | None = None, gap: int = 0) -> StepScript:
    return StepScript(kept_tokens=kept, new_tokens=new, output_tokens=output, tool=tool, gap_us=gap)


def chat(*sizes: tuple[int, int], gap: int = 0, kept: int = 0, **options: Any) -> SessionScript:
    """A session that keeps its whole context; ``sizes`` are (new, output) tokens of its steps."""
    steps = []
    for number, (new, output) in enumerate(sizes):
        last = number == len(sizes) - 1
        steps.append(step(kept, new, output, gap=0 if last else gap))
        kept += new + output
    return SessionScript(steps=tuple(steps), **options)


def workflow(name: str, *sessions: SessionScript, **options: Any) -> WorkflowScript:
    return WorkflowScript(id=name, sessions=sessions, **options)


def plan_of(
    scripts: Sequence[WorkflowScript],
    arrivals: Sequence[int] | None = None,
    *,
    warmup: float = 0.0,
    **options: Any,
) -> Plan:
    return Plan(
        scripts=scripts,
        arrivals=arrivals,
        alone_us=[1] * len(scripts),
        expected_us=[1] * len(scripts),
        warmup=warmup,
        **options,
    )


@dataclass
class Played:
    """A simulation that has run, what it decided, and its record."""

    simulation: Simulation
    record: RunRecord
    log: Log = field(default_factory=list)


def play(preset: str, plan: Plan, cluster: ClusterSpec, **options: Any) -> Played:
    """Plays a plan and keeps every event with the actions that followed."""
    log: Log = []
    simulation = Simulation(
        plan,
        load_preset(preset).policies,
        cluster,
        preset=preset,
        observe=lambda event, actions: log.append((event, tuple(actions))),
        **options,
    )
    return Played(simulation, simulation.run(), log)


# ---- random workloads


def random_session(
    random: Random, *, scale: float = 1.0, prefix: str | None = None, cuts: bool = False
) -> SessionScript:
    """An agent of a few steps; with ``cuts`` it sometimes forgets a part of its context."""
    num_steps = random.randint(1, 7)
    prefix_tokens = 128 if prefix is not None else 0
    context, steps = prefix_tokens, []
    for number in range(num_steps):
        kept = context
        if cuts and number and random.random() < 0.2:
            kept = random.randint(0, context)
        new = 1 + int(random.expovariate(1 / (900 if number == 0 else 250)) * scale)
        output = 1 + int(random.expovariate(1 / 30))
        last = number == num_steps - 1
        tool = None if last else random.choice(list(TOOLS))
        gap = 0 if tool is None else int(random.expovariate(1 / TOOLS[tool]) * SECOND)
        steps.append(step(kept, min(new, 2_500), output, tool=tool, gap=gap))
        context = kept + min(new, 2_500) + output
    return SessionScript(steps=tuple(steps), prefix=prefix, prefix_tokens=prefix_tokens)


def random_workflow(random: Random, name: str, *, rich: bool = True) -> WorkflowScript:
    """With ``rich``: shared prefixes, sub-agents, forks, cuts and three tenants."""
    prefix = random.choice([None, "system"]) if rich else None
    root = random_session(random, prefix=prefix, cuts=rich)
    sessions = [root]
    if rich and random.random() < 0.3:
        sessions += [random_child(random, root) for _ in range(random.randint(1, 2))]
    tenant = f"tenant-{random.randrange(3)}" if rich else "default"
    return WorkflowScript(id=name, sessions=tuple(sessions), tenant=tenant)


def random_child(random: Random, root: SessionScript) -> SessionScript:
    spawn = random.randrange(len(root.steps))
    parent = root.steps[spawn]
    context = parent.prompt_tokens + parent.output_tokens
    forked = random.choice([0, context, random.randint(1, context)])
    first = step(forked, random.randint(1, 200), random.randint(1, 40), tool="read", gap=50_000)
    kept = first.prompt_tokens + first.output_tokens
    return SessionScript(
        steps=(first, step(kept, random.randint(1, 200), random.randint(1, 40))),
        parent=0,
        spawn_step=spawn,
        delay_us=random.choice([0, 1_000, 700_000]),
        forked_tokens=forked,
        blocking=random.random() < 0.7,
    )


def random_scripts(seed: int, count: int, *, rich: bool = True) -> list[WorkflowScript]:
    random = Random(seed)
    return [random_workflow(random, f"w{number:04d}", rich=rich) for number in range(count)]


def random_arrivals(seed: int, count: int, per_second: float) -> list[int]:
    random, now, times = Random(f"arrivals {seed}"), 0.0, []
    for _ in range(count):
        now += random.expovariate(per_second)
        times.append(int(now * SECOND))
    return times


# ---- hypothesis

SIZES = st.tuples(st.integers(1, 700), st.integers(1, 60), st.integers(0, 3 * SECOND))
"""New tokens, output tokens and gap of a step."""


@st.composite
def small_sessions(draw: st.DrawFn, /, **origin: Any) -> SessionScript:
    """Up to five steps; now and then one keeps only a part of the context."""
    context = max(origin.get("prefix_tokens", 0), origin.get("forked_tokens", 0))
    sizes = draw(st.lists(SIZES, min_size=1, max_size=5))
    steps = []
    for number, (new, output, gap) in enumerate(sizes):
        kept = draw(st.integers(0, context)) if draw(st.integers(0, 5)) == 5 else context
        last = number == len(sizes) - 1
        tool = None if last else draw(st.sampled_from(list(TOOLS)))
        steps.append(step(kept, new, output, tool=tool, gap=0 if last else gap))
        context = kept + new + output
    return SessionScript(steps=tuple(steps), **origin)


@st.composite
def small_workflows(draw: st.DrawFn, name: str) -> WorkflowScript:
    prefixed = draw(st.booleans())
    prefix: dict[str, Any] = {"prefix": "system", "prefix_tokens": 100} if prefixed else {}
    root = draw(small_sessions(**prefix))
    sessions = [root]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        spawn = draw(st.integers(0, len(root.steps) - 1))
        parent = root.steps[spawn]
        context = parent.prompt_tokens + parent.output_tokens
        origin: dict[str, Any] = {
            "parent": 0,
            "spawn_step": spawn,
            "delay_us": draw(st.sampled_from([0, 300_000])),
            "forked_tokens": draw(st.sampled_from([0, context, context // 2])),
            "blocking": draw(st.booleans()),
        }
        sessions.append(draw(small_sessions(**origin)))
    tenant = draw(st.sampled_from(["red", "blue"]))
    return WorkflowScript(id=name, sessions=tuple(sessions), tenant=tenant)


@st.composite
def small_workloads(draw: st.DrawFn) -> tuple[list[WorkflowScript], list[int]]:
    """Up to eight workflows and their arrival times; they often meet."""
    count = draw(st.integers(1, 8))
    scripts = [draw(small_workflows(f"w{number}")) for number in range(count)]
    gaps = draw(st.lists(st.integers(0, SECOND), min_size=count, max_size=count))
    return scripts, [sum(gaps[: number + 1]) for number in range(count)]
