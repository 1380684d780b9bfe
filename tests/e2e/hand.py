"""Engines of the simulator by themselves, of whatever model, and what is played on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.sim.factory import plan_of, random_arrivals, random_scripts, small_cluster

from saga.config import load_preset
from saga.sim.engine import EngineLimits, Job
from saga.sim.engine_model import EngineSetup, MakeEngine
from saga.sim.latency import StepTime
from saga.sim.lineage import Lineage, Span
from saga.sim.plan import Plan

PRESET = "vllm_apc_affinity"
TASKS = 40


def plan(seed: int, *, rich: bool, **options: Any) -> Plan:
    scripts = random_scripts(seed, TASKS, rich=rich)
    times = random_arrivals(seed, TASKS, per_second=1.5)
    return replace(plan_of(scripts, times), **options)


class Hand:
    """One engine of one model, woken when it is due."""

    def __init__(self, make: MakeEngine, preset: str = PRESET, **options: Any) -> None:
        spec = small_cluster(1, **options).engine
        self.told: list[tuple[str, str]] = []
        self.engine = make(
            EngineSetup(
                name="engine",
                spec=spec,
                limits=EngineLimits(max_num_seqs=spec.max_num_seqs),
                step_time=StepTime.of(spec),
                policies=load_preset(preset).policies,
                tell=lambda moment, job: self.told.append((job.id, moment.value)),
            )
        )
        self.now = 0
        self._paths: dict[str, Sequence[Span]] = {}

    def submit(self, name: str, prompt: int, output: int, **options: Any) -> None:
        """The first request of a session of this name."""
        lineage = Lineage(1, name, 16)
        lineage.begin(None, 0)
        self._paths[name] = lineage.path
        job = Job(
            id=name,
            session=name,
            path=lineage.path,
            prompt_tokens=prompt,
            output_tokens=output,
            **options,
        )
        self.engine.submit(job, self.now)

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.engine.next_event_us is None:
                break
            self.now = self.engine.next_event_us
            self.engine.wake(self.now)
            self.engine.check()

    def resident(self, name: str) -> int:
        """Tokens of the session that are in the cache, at most 100,000."""
        return self.engine.resident(self._paths[name], 100_000, self.now)
