"""The live half of the demonstration: agents, gateway and engines as processes on this machine.

Everything is what users run, over HTTP, but for the engines, which are emulated: their cache and
their timing are the simulator's, a few times as fast as real.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import saga
from saga.adapters.agents import Played, client_of, play_all
from saga.cli.live_results import LiveRun, speedup_of, summarise, table, verdict, write_picture
from saga.cli.processes import Child, Children, CpuUse, free_ports, interruptible
from saga.report.jsonfile import write_json
from saga.report.tables import print_tables
from saga.sim.hardware import get_cluster
from saga.sim.workload import get_workload
from saga.traces import WorkflowScript

if TYPE_CHECKING:
    from rich.console import Console

LAG_S = 0.02
"""Between two looks at how late the machine is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is played, the same for every preset. KV memory is short on purpose."""

    presets: tuple[str, ...] = ("vllm_apc_affinity", "saga")
    workload: str = "swe-agent"
    steps: int = 14
    """Of each workflow, the first ones."""
    output_tokens: int = 120
    """At most, in a step: each costs the official client about a quarter of a millisecond."""
    workflows: int = 60
    agents: int = 24
    """Workflows at a time."""
    seed: int = 1
    engines: int = 2
    hardware: str = "paper-16xa100"
    kv_tokens: int = 60_000
    """KV memory of each engine."""
    speed: float = 10.0
    """Engines and tools, times real time."""
    limit_s: float = 100.0
    """For each preset; what is not finished then is given up."""

    def __post_init__(self) -> None:
        for name in ("workflows", "agents", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--live-{name} {getattr(self, name)}: must be at least 1")
        if not 0 < self.speed <= 1_000:
            raise ValueError(f"--live-speed {self.speed:g}: must be above 0 and at most 1000")

    @property
    def about(self) -> str:
        engine = get_cluster(self.hardware).engine
        return (
            f"live over HTTP, {self.engines} emulated engines ({engine.model.name} TP{engine.tp} "
            f"{engine.gpu.name}, {self.kv_tokens:,} KV tokens, {self.speed:g} x real time), "
            f"{self.agents} agents"
        )

    def demand(self, scripts: Sequence[WorkflowScript]) -> float:
        """KV memory that the agents' contexts take on average, relative to what there is."""
        steps = [step for script in scripts for step in script.sessions[0].steps]
        context = sum(step.prompt_tokens + step.output_tokens for step in steps) / len(steps)
        return self.agents * context / (self.engines * self.kv_tokens)

    def scripts(self) -> list[WorkflowScript]:
        return [
            shortened(script, self.steps, self.output_tokens)
            for script in get_workload(self.workload).scripts(self.workflows, self.seed)
        ]


def shortened(script: WorkflowScript, steps: int, output_tokens: int) -> WorkflowScript:
    """The first steps of a workflow's root session, with answers of at most so many tokens."""
    session, made, dropped = script.sessions[0], [], 0
    for step in session.steps[:steps]:
        output = min(step.output_tokens, output_tokens)
        kept = max(0, step.kept_tokens - dropped)
        made.append(replace(step, kept_tokens=kept, output_tokens=output))
        dropped += step.output_tokens - output
    made[-1] = replace(made[-1], gap_us=0, tool_us=0)
    return replace(script, sessions=(replace(session, steps=tuple(made)),))


def run_live(setting: Setting, out: Path, console: Console) -> int:
    """Plays the setting under each preset; table, ``live.json``, ``live.png`` and logs in ``out``.

    1 if a workflow failed, other than by the time limit. Raises OSError where a process cannot be
    started.
    """
    out.mkdir(parents=True, exist_ok=True)
    scripts, ports = setting.scripts(), free_ports(1 + setting.engines)
    console.print(f"\n{setting.about}", style="bold", highlight=False)
    with interruptible():
        runs = [_run(preset, setting, scripts, ports, out, console) for preset in setting.presets]
    write_json(out / "live.json", _document(setting, runs))
    write_picture(out / "live.png", runs, setting.about)
    print_tables(console, [table(runs, setting.about, setting.demand(scripts))])
    for line in verdict(runs):
        console.print(line, highlight=False, markup=False)
    return int(any(one.error and not one.timed_out for run in runs for one in run.played))


def _run(
    preset: str,
    setting: Setting,
    scripts: Sequence[WorkflowScript],
    ports: Sequence[int],
    out: Path,
    console: Console,
) -> LiveRun:
    with Children(out / "logs" / preset, _environ()) as children:
        gateway, engines = _start(children, preset, setting, ports)
        console.print(f"{preset}: watch it at {gateway.url}/ui", highlight=False)
        use, began = CpuUse([gateway, *engines]), time.monotonic()
        played, lag_s = asyncio.run(_play(gateway.url, preset, setting, scripts))
        return LiveRun(
            preset=preset,
            played=played,
            wall_s=time.monotonic() - began,
            engines=[_stats(engine) for engine in engines],
            cores=use.cores("agents"),
            lag_s=lag_s,
        )


def _start(
    children: Children, preset: str, setting: Setting, ports: Sequence[int]
) -> tuple[Child, list[Child]]:
    """The gateway, on the first port, and its engines; ready."""
    engines = [
        children.start(f"engine-{number}", port, *_engine_options(setting))
        for number, port in enumerate(ports[1:])
    ]
    urls = [part for engine in engines for part in ("--engine", engine.url)]
    gateway = children.start("gateway", ports[0], "serve", "--preset", preset, *urls)
    for engine in engines:
        engine.wait_until(lambda child: bool(_stats(child)))
    gateway.wait_until(lambda child: _num_up(child) == len(engines))
    return gateway, engines


async def _play(
    url: str, label: str, setting: Setting, scripts: Sequence[WorkflowScript]
) -> tuple[list[Played], list[float]]:
    """What became of the workflows, and how late this process was woken each time, seconds."""
    lag: list[float] = []
    async with client_of(url, timeout_s=setting.limit_s) as client:
        watch = asyncio.create_task(_watch(lag))
        try:
            played = await play_all(
                scripts,
                client,
                agents=setting.agents,
                speed=setting.speed,
                stagger_s=20 / setting.speed,
                limit_s=setting.limit_s,
                label=label,
            )
        finally:
            watch.cancel()
    return played, lag


async def _watch(lag: list[float]) -> None:
    while True:
        due = time.monotonic() + LAG_S
        await asyncio.sleep(LAG_S)
        lag.append(max(0.0, time.monotonic() - due))


def _engine_options(setting: Setting) -> list[str]:
    options = {
        "--hardware": setting.hardware,
        "--kv-tokens": setting.kv_tokens,
        "--speed": setting.speed,
    }
    return ["engine", *(str(part) for option in options.items() for part in option)]


def _environ() -> dict[str, str]:
    """Ours without settings meant for another gateway; loads are read as often as time is fast."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAGA_")}
    return kept | {"SAGA_ENGINES__SCRAPE_S": "0.25"}


def _stats(engine: Child) -> dict[str, int]:
    stats: dict[str, int] = engine.ask("POST", "/v1/saga/stats", {})
    return stats


def _num_up(gateway: Child) -> int:
    engines = gateway.ask("GET", "/v1/saga/engines")["engines"]
    return sum(engine["state"] == "up" for engine in engines)


def _document(setting: Setting, runs: Sequence[LiveRun]) -> dict[str, object]:
    return {
        "about": setting.about,
        "version": saga.__version__,
        "setting": asdict(setting),
        "presets": {run.preset: asdict(summarise(run)) for run in runs},
        "speedups": {run.preset: asdict(speedup_of(runs[0], run)) for run in runs[1:]},
        "engines": {run.preset: run.engines for run in runs},
        "workflows": {run.preset: [_workflow(one) for one in run.played] for run in runs},
    }


def _workflow(one: Played) -> dict[str, object]:
    return {
        "id": one.workflow,
        "tct_s": one.tct_s,
        "error": one.error,
        "prompt_tokens": sum(step.prompt_tokens for step in one.steps),
        "cached_tokens": sum(step.cached_tokens for step in one.steps),
        "ttft_s": [round(step.ttft_s, 4) for step in one.steps],
        "engines": sorted({step.engine for step in one.steps if step.engine}),
    }
