"""Presets x seeds on one workload and cluster, paired and in parallel processes."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from saga.config import load_preset
from saga.core.actions import Action
from saga.core.events import Event
from saga.report.records import RunRecord
from saga.sim.arrivals import get_arrivals
from saga.sim.engine_model import MakeEngine, light_engine
from saga.sim.fluid import FluidPoint, Mix, expected_us, operating_point, saturation
from saga.sim.hardware import ENGINE_OPTIONS, ClusterSpec, get_cluster
from saga.sim.host import Simulation
from saga.sim.latency import StepTime
from saga.sim.oracle_graphs import OracleGraphs
from saga.sim.plan import EngineLoss, Plan
from saga.sim.workload import Workload, get_workload
from saga.traces.script import WorkflowScript

Observe = Callable[[Event, list[Action]], None]
"""Is told every event of a run with the actions that followed."""

SAMPLE = 400
"""Workflows of the sample from which the saturation rate is computed, the same for every seed."""
SLO_LOAD = 0.8
"""Load whose batch size defines the expected TCT of a task."""
GRAPHS = ("declared", "learned", "oracle")
"""How the scheduler knows what agents do: by their mean number of steps, then by what it sees; by
that alone; or as it will be."""


class ExperimentError(ValueError):
    """An option that is not allowed; says which, its value, and what is."""


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("must be above 0 and finite")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("must be 0 or above, and finite")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError("must be at least 0 and below 1")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError("must be a whole number of at least 1")
    return value


def _graphs(text: str) -> str:
    if text not in GRAPHS:
        raise ValueError(f"must be one of {', '.join(GRAPHS)}")
    return text


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _losses(text: str) -> tuple[EngineLoss, ...]:
    return tuple(_loss(part) for part in text.split(";"))


def _loss(text: str) -> EngineLoss:
    engine, at_sign, times = text.partition("@")
    down, dash, up = times.partition("-")
    if not at_sign or not down:
        raise ValueError("must look like ENGINE@SECONDS or ENGINE@SECONDS-SECONDS, joined by ';'")
    return EngineLoss(
        engine=int(engine),
        at=round(_not_negative(down) * 1e6),
        back=round(_not_negative(up) * 1e6) if dash else None,
    )


def _check_losses(losses: Sequence[EngineLoss], num_engines: int) -> None:
    """Only engines that exist are lost, and not all of them for ever."""
    for loss in losses:
        if not 0 <= loss.engine < num_engines:
            raise ExperimentError(
                f"--set lose_engine: engine {loss.engine} does not exist; "
                f"allowed: 0 to {num_engines - 1}"
            )
    if len({loss.engine for loss in losses if loss.back is None}) == num_engines:
        raise ExperimentError("--set lose_engine: no engine is left; at least one must stay")


KNOBS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "num_engines": (_whole, "engines in the cluster"),
    "host_memory_gib": (_not_negative, "host memory for KV per engine, GiB (0: none)"),
    "pcie_gbps": (_positive, "host link per GPU, GB/s"),
    "network_gbps": (_positive, "network between engines, GB/s"),
    "kv_dtype": (str, "fp16 or fp8"),
    "kv_capacity_tokens": (_whole, "KV capacity per engine, tokens, instead of the hardware's"),
    "max_num_seqs": (_whole, "requests in a batch"),
    "max_num_batched_tokens": (_whole, "token budget of an iteration"),
    "mfu": (_positive, "share of peak FLOP/s reached by matrix products"),
    "mbu": (_positive, "share of peak bandwidth reached by reading weights"),
    "tool_scale": (_positive, "factor on every return time"),
    "tool_cv": (_positive, "coefficient of variation of tool times (paper's workloads)"),
    "arrivals": (str, "poisson, bursty:CV, trace or file:PATH"),
    "burstiness": (_positive, "coefficient of variation of the time between arrivals"),
    "warmup": (_share, "share of the tasks, the first ones, that is not measured"),
    "deadline_factor": (_positive, "clients declare deadlines, this times the expected TCT"),
    "client_timeout_s": (_positive, "a client gives up when a request takes longer"),
    "graphs": (_graphs, "what is known of agents: mean steps declared, learned, or oracle: all"),
    "lose_engine": (_losses, "ENGINE@SECONDS or ENGINE@SECONDS-SECONDS, several joined by ';'"),
    "reserve_full_prompt": (_switch, "engines start a request only if its whole prompt fits"),
}
"""What ``--set KEY=VALUE`` accepts: parser and meaning."""


def parse_knobs(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts to values; ExperimentError names the key and what is allowed."""
    knobs: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if key not in KNOBS or not equals:
            raise ExperimentError(
                f"--set {pair}: not KEY=VALUE with a known key; known are {', '.join(KNOBS)}"
            )
        parse, _ = KNOBS[key]
        try:
            knobs[key] = parse(text)
        except ValueError as error:
            raise ExperimentError(f"--set {key}={text}: {error}") from error
    return knobs


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is compared. Exactly one of ``load``, ``rate_per_min`` and ``agents`` is given."""

    presets: tuple[str, ...]
    workload: str
    cluster: str
    load: float | None = None
    """Relative to the fluid saturation rate (docs/load.md)."""
    rate_per_min: float | None = None
    agents: int | None = None
    """Closed loop with so many workflows at a time, in the whole cluster."""
    tasks: int = 500
    seeds: tuple[int, ...] = (1,)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    make_engine: MakeEngine = light_engine
    """What the cluster's engines are; a function of a module, for runs in other processes."""
    strict: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        ways = {"--load": self.load, "--rate": self.rate_per_min, "--agents": self.agents}
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            raise ExperimentError(f"give exactly one of {', '.join(ways)}; got {list(given)}")
        for name, value in {**given, "--tasks": self.tasks}.items():
            if not 0 < value < float("inf"):
                raise ExperimentError(f"{name} {value}: must be above 0 and finite")
        if not self.presets:
            raise ExperimentError("--presets: at least one preset is needed")
        if len(set(self.presets)) < len(self.presets):
            raise ExperimentError(f"--presets {','.join(self.presets)}: a preset is named twice")
        if not self.seeds:
            raise ExperimentError("--seeds: at least one seed is needed")
        for preset in self.presets:
            load_preset(preset)
        if "arrivals" in self.knobs and "burstiness" in self.knobs:
            raise ExperimentError("--set arrivals and --set burstiness: give one of them")
        _check_losses(self.knobs.get("lose_engine", ()), self.cluster_spec.num_engines)

    @cached_property
    def cluster_spec(self) -> ClusterSpec:
        options = {key: self.knobs[key] for key in self.knobs if key in _CLUSTER_KNOBS}
        return get_cluster(self.cluster, **options)

    @cached_property
    def step_time(self) -> StepTime:
        return StepTime.of(self.cluster_spec.engine)

    @cached_property
    def source(self) -> Workload:
        return get_workload(
            self.workload,
            tool_scale=self.knobs.get("tool_scale", 1.0),
            tool_cv=self.knobs.get("tool_cv"),
            strict=self.strict,
        )

    @cached_property
    def sample(self) -> tuple[WorkflowScript, ...]:
        """The workflows that stand for the workload in the fluid model."""
        fitting = self._fitting(self.source.scripts(SAMPLE, seed=0))
        if not fitting:
            raise ExperimentError(
                f"workload {self.workload!r}: every session is longer than an engine's KV capacity "
                f"of {self.cluster_spec.engine.kv_capacity_tokens} tokens"
            )
        return tuple(fitting)

    @cached_property
    def mix(self) -> Mix:
        return Mix.of(self.sample, self.step_time, workload=self.workload)

    @cached_property
    def saturation(self) -> FluidPoint:
        """Of one engine."""
        return saturation(self.mix)

    @property
    def rate_per_s(self) -> float | None:
        """Arrivals per second in the whole cluster; None in a closed loop."""
        if self.load is not None:
            return self.load * self.saturation.rate_per_s * self.cluster_spec.num_engines
        return None if self.rate_per_min is None else self.rate_per_min / 60.0

    @property
    def graphs(self) -> str:
        """What the scheduler knows of agents in advance: one of ``GRAPHS``."""
        return str(self.knobs.get("graphs", "declared"))

    def _fitting(self, scripts: Sequence[WorkflowScript]) -> list[WorkflowScript]:
        capacity = self.cluster_spec.engine.kv_capacity_tokens
        return [script for script in scripts if script.max_context_tokens < capacity]

    def plan(self, seed: int) -> tuple[Plan, int]:
        """What is played for a seed, the same for every preset, and how many tasks are left out."""
        generated = self.source.scripts(self.tasks, seed=seed)
        scripts = self._fitting(generated)
        if not scripts:
            raise ExperimentError(f"workload {self.workload!r}: no session fits an engine's KV")
        slo_point = operating_point(SLO_LOAD, self.mix)
        timeout = self.knobs.get("client_timeout_s")
        declared = {} if self.graphs == "learned" else self.source.declared_mean_steps
        shares = self._shares(scripts)
        plan = Plan(
            scripts=scripts,
            arrivals=self._arrivals(len(scripts), seed),
            agents=self.agents,
            stagger_us=int(self.saturation.tct_s * 1e6),
            alone_us=[self.step_time.alone_us(script) for script in scripts],
            expected_us=[expected_us(script, slo_point, self.step_time) for script in scripts],
            share_us=[self.step_time.alone_us(script, shares[script.tenant]) for script in scripts],
            warmup=self.knobs.get("warmup", 0.15),
            declared_steps=declared or {},
            weights={tenant.name: tenant.weight for tenant in self.source.tenants},
            deadline_factor=self.knobs.get("deadline_factor"),
            client_timeout_us=None if timeout is None else round(timeout * 1e6),
            losses=self.knobs.get("lose_engine", ()),
        )
        return plan, len(generated) - len(scripts)

    def _shares(self, scripts: Sequence[WorkflowScript]) -> dict[str, float]:
        """What each tenant is entitled to while all of them that have workflows use it."""
        weights = {tenant.name: tenant.weight for tenant in self.source.tenants}
        present = {script.tenant: weights.get(script.tenant, 1.0) for script in scripts}
        total = sum(present.values())
        return {tenant: weight / total for tenant, weight in present.items()}

    def _arrivals(self, num: int, seed: int) -> list[int] | None:
        rate = self.rate_per_s
        if rate is None:
            return None
        spec = self.knobs.get("arrivals", "poisson")
        if "burstiness" in self.knobs:
            spec = f"bursty:{self.knobs['burstiness']}"
        arrivals = get_arrivals(spec, rate, workload_us=self.source.source_us)
        return [int(at) for at in arrivals.times_us(num, seed)]

    def run_one(
        self,
        preset: str,
        seed: int,
        watch: Callable[[int, int], None] | None = None,
        observe: Observe | None = None,
    ) -> RunRecord:
        """One preset with one seed, in this process."""
        plan, excluded = self.plan(seed)
        simulation = Simulation(
            plan,
            load_preset(preset).policies,
            self.cluster_spec,
            step_time=self.step_time,
            make_engine=self.make_engine,
            graphs=OracleGraphs(plan.scripts) if self.graphs == "oracle" else None,
            preset=preset,
            seed=seed,
            check=self.check,
            watch=watch,
            observe=observe,
            reserve_full_prompt=self.knobs.get("reserve_full_prompt", False),
        )
        try:
            record = simulation.run()
        except Exception as error:
            error.add_note(f"in preset {preset}, seed {seed}")
            raise
        record.num_excluded = excluded
        record.peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return record


_CLUSTER_KNOBS = ("num_engines", *ENGINE_OPTIONS)


# ---- in parallel

_progress: Any = None
"""In a worker: shared numbers, two per job: tasks ended and simulated microseconds."""


def _begin_worker(progress: Any) -> None:
    global _progress
    _progress = progress


def _run_job(experiment: Experiment, preset: str, seed: int, job: int) -> RunRecord:
    def watch(ended: int, now: int) -> None:
        _progress[2 * job] = ended
        _progress[2 * job + 1] = now

    return experiment.run_one(preset, seed, watch)


def run(
    experiment: Experiment,
    *,
    processes: int | None = None,
    quiet: bool = False,
    observe: Observe | None = None,
) -> dict[str, list[RunRecord]]:
    """All runs: for every preset, one record per seed, in the order of the seeds.

    Shows progress on standard error (tasks per second, simulated time, time to go). Runs that are
    observed run in this process, one after another.
    """
    if processes is not None and processes < 1:
        raise ExperimentError(f"--processes {processes}: must be at least 1")
    jobs = [(preset, seed) for seed in experiment.seeds for preset in experiment.presets]
    processes = 1 if observe else min(processes or os.cpu_count() or 1, len(jobs))
    total = len(jobs) * experiment.tasks
    with tqdm(total=total, unit="task", disable=quiet, smoothing=0.05) as bar:
        if processes == 1:
            records = dict(_run_here(experiment, jobs, bar, observe))
        else:
            records = _run_in_pool(experiment, jobs, processes, bar)
    return {
        preset: [records[preset, seed] for seed in experiment.seeds]
        for preset in experiment.presets
    }


def _run_here(
    experiment: Experiment,
    jobs: Sequence[tuple[str, int]],
    bar: tqdm[Any],
    observe: Observe | None,
) -> Iterator[tuple[tuple[str, int], RunRecord]]:
    for number, (preset, seed) in enumerate(jobs):
        base = number * experiment.tasks

        def watch(ended: int, now: int, base: int = base, preset: str = preset) -> None:
            _show(bar, base + ended, now, preset)

        yield (preset, seed), experiment.run_one(preset, seed, watch, observe)
        _show(bar, base + experiment.tasks, 0, preset)


def _run_in_pool(
    experiment: Experiment, jobs: Sequence[tuple[str, int]], processes: int, bar: tqdm[Any]
) -> dict[tuple[str, int], RunRecord]:
    context = get_context("spawn")
    progress = context.Array("q", 2 * len(jobs), lock=False)
    records: dict[tuple[str, int], RunRecord] = {}
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin_worker, initargs=(progress,)
    )
    try:
        futures: dict[Future[RunRecord], int] = {
            pool.submit(_run_job, replace(experiment), preset, seed, number): number
            for number, (preset, seed) in enumerate(jobs)
        }
        pending = set(futures)
        while pending:
            try:
                for future in as_completed(pending, timeout=0.5):
                    number = futures[future]
                    records[jobs[number]] = future.result()
                    progress[2 * number] = experiment.tasks
                    pending.discard(future)
                    break
            except TimeoutError:
                pass
            ended = sum(progress[0 : 2 * len(jobs) : 2])
            _show(bar, ended, max(progress[1 : 2 * len(jobs) : 2]), f"{len(records)}/{len(jobs)}")
    except BrokenProcessPool as error:
        raise ExperimentError("a simulation process died; was it out of memory?") from error
    finally:
        workers = list(pool._processes.values()) if len(records) < len(jobs) else []
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:  # one run broke: nobody waits for the others
            worker.terminate()
    return records


def _show(bar: tqdm[Any], ended: int, now: int, what: str) -> None:
    bar.set_description(f"{what} at {now / 3.6e9:.1f} simulated h", refresh=False)
    bar.update(ended - bar.n)
