"""What another preset would have made of a recorded run, on simulated engines like the run's.

The recorded workflows arrive again when they did; their tools take as long. Both the recorded
preset and the other one are simulated: a simulated figure compares with simulated ones only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.report.records import RunRecord
from saga.sim.hardware import ClusterSpec, get_cluster
from saga.sim.host import Simulation
from saga.sim.latency import StepTime
from saga.sim.plan import Plan
from saga.traces import TraceError, TraceFile, read_scripts
from saga.traces.recorded import Recorded, read_recorded

Placements = dict[tuple[str, int], str]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One preset's simulated run."""

    preset: str
    record: RunRecord
    placements: Placements
    """Engine of each session's n-th request."""


@dataclass(frozen=True, slots=True)
class Replay:
    recorded: Recorded
    trace: TraceFile
    cluster: ClusterSpec
    runs: tuple[Replayed, ...]
    """First the recorded preset, then the others."""

    def num_moved(self, run: Replayed) -> int:
        """Requests that go to another engine than under the recorded preset, both simulated.

        Engines are alike, so each preset's numbering is matched to the first one's by overlap.
        """
        first = self.runs[0].placements
        names = _matching(first, run.placements)
        return sum(names[engine] != first[step] for step, engine in run.placements.items())


def replay(
    path: str | Path,
    presets: tuple[str, ...],
    *,
    cluster: str,
    strict: bool = False,
    watch: Callable[[str, int, int], None] | None = None,
) -> Replay:
    """Plays a recorded run again under its own preset and others.

    ``cluster`` names the engine's hardware; their number and KV capacity are the recorded ones.
    ``watch(preset, finished, now)`` is called now and then. Raises TraceError.
    """
    recorded, trace = read_recorded(path), read_scripts(path, strict=strict)
    if not trace.scripts:
        raise TraceError(f"{path}: no workflow in it came to an end")
    spec = get_cluster(
        cluster,
        num_engines=len(recorded.engines),
        kv_capacity_tokens=min(recorded.engines.values()),
    )
    names = dict.fromkeys((recorded.preset or "saga", *presets))
    runs = tuple(_play(name, trace, spec, watch) for name in names)
    return Replay(recorded, trace, spec, runs)


def _play(
    preset: str,
    trace: TraceFile,
    cluster: ClusterSpec,
    watch: Callable[[str, int, int], None] | None,
) -> Replayed:
    scripts = sorted(trace.scripts, key=lambda script: script.submitted_us or 0)
    step_time = StepTime.of(cluster.engine)
    alone = [step_time.alone_us(script) for script in scripts]
    placements: Placements = {}
    steps: dict[str, tuple[str, int]] = {}
    counts: dict[str, int] = {}

    def observe(event: ev.Event, actions: list[act.Action]) -> None:
        if isinstance(event, ev.RequestArrived):
            number = counts.get(event.session, 0)
            counts[event.session] = number + 1
            steps[event.request] = event.session, number
        for action in actions:
            if isinstance(action, act.Dispatch):
                placements[steps[action.request]] = action.engine

    plan = Plan(
        scripts=scripts,
        arrivals=[script.submitted_us or 0 for script in scripts],
        alone_us=alone,
        expected_us=alone,
        warmup=0.0,
    )
    simulation = Simulation(
        plan,
        load_preset(preset).policies,
        cluster,
        step_time=step_time,
        preset=preset,
        observe=observe,
        watch=None if watch is None else lambda ended, now: watch(preset, ended, now),
    )
    return Replayed(preset, simulation.run(), placements)


def _matching(first: Placements, other: Placements) -> dict[str, str]:
    """The other run's engines by the first run's, those that share most requests first."""
    shared: dict[tuple[str, str], int] = {}
    for step, engine in other.items():
        if step in first:
            pair = engine, first[step]
            shared[pair] = shared.get(pair, 0) + 1
    names: dict[str, str] = {}
    for engine, name in sorted(shared, key=lambda pair: (-shared[pair], pair)):
        if engine not in names and name not in names.values():
            names[engine] = name
    return {engine: names.get(engine, "") for engine in other.values()}
