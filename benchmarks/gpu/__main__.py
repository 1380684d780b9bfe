"""``python -m benchmarks.gpu``: agents at one vLLM server, stock and with SAGA's plugin.

Needs a CUDA GPU and vLLM 0.26 or later in this environment (or ``--python``), beside SAGA. The same
agents, in a closed loop, more of them than there is room for their KV, beside clients that ask one
question after another. Without a GPU it says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter

import numpy as np

import saga
from benchmarks.gpu import server as servers
from benchmarks.gpu.agents import Agents, Workflow, shortened
from benchmarks.gpu.shapes import SHAPES, write
from saga.gateway.upstream import Upstream
from saga.report.statistics import bootstrap_interval
from saga.sim.workload import get_workload
from saga.traces.script import WorkflowScript

OUT = Path("out/gpu")
WARM_UP = 2
"""Workflows before each measured run; compilation and allocation are over then."""


@dataclass(frozen=True)
class Played:
    """One seed at one server."""

    seed: int
    seconds: float
    workflows: list[Workflow]


def main() -> None:
    options = _options()
    cpu = options.shape == ["tiny"]
    version, gpu = servers.vllm_version(options.python), servers.accelerator(options.python)
    if version is None or (gpu is None and not cpu):
        missing = "vLLM is not installed" if version is None else "there is no CUDA GPU"
        print(f"No results: {missing} for {options.python}.")
        return
    about = {"saga": saga.__version__, "vllm": version, "gpu": gpu}
    about |= {"workload": options.workload, "tools": f"x {options.tool_scale:g}"}
    about |= {"pressure": f"{options.pressure:g}", "others": f"{options.others:g}"}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    found = {}
    for shape in options.shape:
        try:
            found[shape] = asyncio.run(_compare(shape, options, cpu=cpu))
        except servers.NoServerError as error:
            sys.exit(f"{shape}: {error}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"about": about, "shapes": found}, indent=1) + "\n")
    print(f"\nevery figure of every workflow: {options.json}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: 8b and 32b")
    parser.add_argument("--workload", default="swe-bench", help="see `saga workloads`")
    parser.add_argument("--pressure", type=float, default=1.5, help="KV of agents by KV memory")
    parser.add_argument(
        "--others", type=float, default=0.25, help="clients without workflows, per agent"
    )
    parser.add_argument("--rounds", type=int, default=2, help="workflows per agent at a time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-agents", type=int, default=128)
    parser.add_argument("--max-len", type=int, default=32_768, help="of a context, in tokens")
    parser.add_argument("--tool-scale", type=float, default=1.0, help="multiplies times in tools")
    parser.add_argument("--python", default=servers.HERE, help="where vLLM and SAGA are")
    parser.add_argument("--port", type=int, default=8199)
    parser.add_argument("--json", type=Path, default=OUT / "results.json", metavar="FILE")
    parser.add_argument("more", nargs="*", help="options of vLLM, after --")
    options = parser.parse_args()
    options.shape = options.shape or ["8b", "32b"]
    return options


async def _compare(shape: str, options: argparse.Namespace, *, cpu: bool) -> dict[str, object]:
    """Prints the table of a shape, and returns what is behind it."""
    model = write(OUT / f"model-{shape}", SHAPES[shape], options.max_len)
    more = ["--max-model-len", str(options.max_len), *options.more]
    played: dict[str, list[Played]] = {}
    num_agents = kv_tokens = 0
    for engine in servers.ENGINES:
        log = OUT / f"{shape}-{engine}.log"
        async with Upstream() as upstream:
            with servers.running(
                engine, options.python, model, options.port, log, more, cpu=cpu
            ) as server:
                await server.ready(upstream)
                if not num_agents:  # the same for all
                    kv_tokens = await server.kv_tokens(upstream)
                    num_agents = _num_agents(kv_tokens, options)
                agents = Agents(
                    upstream,
                    server.url,
                    vocabulary=SHAPES[shape].vocab_size,
                    max_len=options.max_len,
                )
                played[engine] = await _play(agents, num_agents, options)
    print(f"\n{shape}: {num_agents} agents at a time, {kv_tokens:,} tokens of KV")
    _show(played)
    runs = {engine: [asdict(run) for run in runs] for engine, runs in played.items()}
    return {"num_agents": num_agents, "kv_tokens": kv_tokens, "runs": runs}


async def _play(agents: Agents, num_agents: int, options: argparse.Namespace) -> list[Played]:
    await agents.play(_scripts(options, WARM_UP, 0), 0, WARM_UP)
    runs = []
    for seed in range(1, options.seeds + 1):
        scripts = _scripts(options, options.rounds * num_agents, seed)
        began = perf_counter()
        others = round(options.others * num_agents)
        workflows = await agents.play(scripts, seed, num_agents, others)
        runs.append(Played(seed, perf_counter() - began, workflows))
    return runs


def _scripts(options: argparse.Namespace, num: int, seed: int) -> list[WorkflowScript]:
    workload = get_workload(options.workload, tool_scale=options.tool_scale)
    fitting = [
        script
        for script in workload.scripts(num, seed)
        if len(shortened(script, options.max_len)) > 1
    ]
    if not fitting:
        sys.exit(f"no workflow of {options.workload} fits into {options.max_len} tokens")
    return fitting


def _num_agents(kv_tokens: int, options: argparse.Namespace) -> int:
    """So many that their contexts, at their mean, need ``pressure`` times the memory."""
    scripts = _scripts(options, 100, 0)
    steps = [step for script in scripts for step in shortened(script, options.max_len)]
    mean = fmean(step.prompt_tokens for step in steps)
    agents: int = min(options.max_agents, max(2, math.ceil(options.pressure * kv_tokens / mean)))
    return agents


# ---- the table


def _show(played: dict[str, list[Played]]) -> None:
    rows = {engine: _figures(runs) for engine, runs in played.items()}
    print(f"{'':<34}" + "".join(f"{engine:>12}" for engine in rows) + f"{'ratio':>9}")
    for name in next(iter(rows.values())):
        values = [figures[name] for figures in rows.values()]
        ratio = f"{values[1] / values[0]:>9.2f}" if values[0] else f"{'-':>9}"
        print(f"{name:<34}" + "".join(f"{value:>12,.3f}" for value in values) + ratio)
    speed_up, interval = _speed_up(played["stock"], played["plugin"])
    within = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    print(f"speed-up of TCT, workflow by workflow: {speed_up:.2f}x{within}")


def _figures(runs: Sequence[Played]) -> dict[str, float]:
    workflows = [workflow for run in runs for workflow in run.workflows]
    steps = [step for workflow in workflows for step in workflow.steps]
    resumed = [step for step in steps if step.resumed]
    tct, ttft = [workflow.tct_s for workflow in workflows], [step.ttft_s for step in resumed]
    seconds = sum(run.seconds for run in runs)
    prompts = sum(step.prompt_tokens for step in resumed)
    return {
        "TCT, mean s": fmean(tct),
        "TCT, 95th percentile s": float(np.quantile(tct, 0.95)),
        "TTFT of resumed steps, median s": float(np.median(ttft)) if ttft else 0.0,
        "TTFT of resumed steps, 95th s": float(np.quantile(ttft, 0.95)) if ttft else 0.0,
        "resumed prompts, share cached": sum(s.cached_tokens for s in resumed) / max(1, prompts),
        "answered tokens/s": sum(step.output_tokens for step in steps) / seconds,
        "tokens served/s": sum(s.prompt_tokens + s.output_tokens for s in steps) / seconds,
    }


def _speed_up(
    stock: Sequence[Played], plugin: Sequence[Played]
) -> tuple[float, tuple[float, float] | None]:
    """Geometric mean over workflows, then over seeds, with its 95 % interval over seeds."""
    logs = []
    for one, other in zip(stock, plugin, strict=True):
        pairs = zip(one.workflows, other.workflows, strict=True)
        logs.append(fmean(math.log(a.tct_s / b.tct_s) for a, b in pairs))
    return math.exp(fmean(logs)), bootstrap_interval(np.array(logs))


if __name__ == "__main__":
    main()
