"""Whole runs with feedback on both engine models, over loads that cross the collapse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import mean
from typing import Any

from saga.report.records import RunRecord
from saga.sim.engine import SimEngine
from saga.sim.engine_model import EngineSetup, MakeEngine, light_engine
from saga.sim.experiment import Experiment

SEEDS = (1, 2, 3)
COLLAPSED = 0.10
"""Share of the prompt tokens that is regenerated behind the collapse."""
SLOW = 2.0
"""TCT over that at the lowest load, behind the collapse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is played, on two of the paper's engines with less KV memory: it takes minutes."""

    workload: str
    loads: tuple[float, ...]
    tasks: int
    kv_capacity_tokens: int
    preset: str = "vllm_apc_affinity"
    reserve_full_prompt: bool = True

    @property
    def less(self) -> Setting:
        """For a quick look."""
        return replace(self, loads=self.loads[::3], tasks=self.tasks // 3)

    def experiment(self, load: float, make_engine: MakeEngine) -> Experiment:
        return Experiment(
            presets=(self.preset,),
            workload=self.workload,
            cluster="paper-16xa100",
            load=load,
            tasks=self.tasks,
            seeds=SEEDS,
            knobs={
                "num_engines": 2,
                "kv_capacity_tokens": self.kv_capacity_tokens,
                "reserve_full_prompt": self.reserve_full_prompt,
            },
            make_engine=make_engine,
        )


SWEEP = Setting(
    workload="webarena",
    loads=(0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
    tasks=150,
    kv_capacity_tokens=250_000,
)
OTHERS = (
    Setting(workload="swe-agent", loads=(1.0,), tasks=40, kv_capacity_tokens=250_000),
    Setting(workload="claude-code", loads=(0.5,), tasks=12, kv_capacity_tokens=450_000),
    Setting(workload="browser", loads=(1.2,), tasks=60, kv_capacity_tokens=80_000),
    replace(SWEEP, loads=(0.9,), reserve_full_prompt=False),
)
"""Other shapes: agents that cut their context, and vLLM before it reserved whole prompts."""
RETAINING = tuple(
    replace(SWEEP, preset=preset, loads=loads, tasks=100)
    for preset, loads in (("saga", (0.9, 1.1)), ("saga_paper", (0.8, 0.9, 1.0, 1.1)))
)
"""``saga`` admits what fits, so that its engines are seldom short of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's figures."""

    preset: str
    workload: str
    load: float
    seed: int
    model: str
    hit_rate: float
    regenerated: float
    tct_s: float
    """Mean of the measured workflows that finished."""
    evicted_tokens: int
    num_preemptions: int


def play(setting: Setting, load: float, seed: int, model: str, make_engine: MakeEngine) -> Run:
    record = setting.experiment(load, make_engine).run_one(setting.preset, seed)
    tokens = record.tokens
    return Run(
        preset=setting.preset,
        workload=setting.workload,
        load=load,
        seed=seed,
        model=model,
        hit_rate=tokens.hit / tokens.prompt,
        regenerated=tokens.regenerated / tokens.prompt,
        tct_s=mean(_tcts(record)) / 1e6,
        evicted_tokens=record.evicted_tokens,
        num_preemptions=record.num_preemptions,
    )


def _tcts(record: RunRecord) -> Iterable[int]:
    return [one.tct_us for one in record.workflows if one.measured and one.tct_us is not None]


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Where a line through the points first reaches a level; None if it does not."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < level <= y1:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return None


def collapse(runs: Sequence[Run]) -> dict[str, float | None]:
    """The loads at which the mean over seeds crosses what a collapse is."""
    loads = sorted({run.load for run in runs})
    by_load = [[run for run in runs if run.load == load] for load in loads]
    regenerated = [mean(run.regenerated for run in some) for some in by_load]
    tct_s = [mean(run.tct_s for run in some) for some in by_load]
    return {
        "regenerated": crossing(list(zip(loads, regenerated, strict=True)), COLLAPSED),
        "tct": crossing(list(zip(loads, tct_s, strict=True)), SLOW * tct_s[0]),
    }


def sweep(vllm_engine: MakeEngine, *, quick: bool) -> dict[str, Any]:
    """Over the collapse; where it is, in both models."""
    runs = list(_play_all([SWEEP], {"light": light_engine, "vllm": vllm_engine}, quick))
    models = sorted({run.model for run in runs})
    positions = {model: collapse([run for run in runs if run.model == model]) for model in models}
    print("collapse at load:", positions)
    return {"runs": [asdict(run) for run in runs], "collapse": positions}


def others(vllm_engine: MakeEngine, *, quick: bool) -> dict[str, Any]:
    runs = _play_all(OTHERS, {"light": light_engine, "vllm": vllm_engine}, quick)
    return {"runs": [asdict(run) for run in runs]}


def plugin(plugin_engine: MakeEngine, *, quick: bool) -> dict[str, Any]:
    """Presets that retain, on engines that keep KV for sessions and do no more."""
    runs = _play_all(RETAINING, {"light": retaining_engine, "plugin": plugin_engine}, quick)
    return {"runs": [asdict(run) for run in runs]}


def retaining_engine(setup: EngineSetup) -> SimEngine:
    """A light one that can be asked for no more than the plugin."""
    engine = light_engine(setup)
    engine.prefetches = engine.adopts = False
    return engine


def _play_all(
    settings: Iterable[Setting], models: Mapping[str, MakeEngine], quick: bool
) -> Iterator[Run]:
    """Prints a row for each run as it goes."""
    print(
        "preset            workload    load seed model   hit rate  regenerated   TCT s"
        "     evicted  preempted"
    )
    seeds = SEEDS[:1] if quick else SEEDS
    settings = [one.less if quick else one for one in settings]
    plays = [(one, load, seed) for one in settings for load in one.loads for seed in seeds]
    for setting, load, seed in plays:
        for model, make_engine in models.items():
            run = play(setting, load, seed, model, make_engine)
            print(
                f"{run.preset:17} {run.workload:11} {load:4} {seed:4} {model:6} {run.hit_rate:9.4%}"
                f"{run.regenerated:12.4%} {run.tct_s:8.1f} {run.evicted_tokens:11,}"
                f" {run.num_preemptions:6}",
                flush=True,
            )
            yield run
