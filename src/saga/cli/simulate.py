"""``saga simulate``, ``compare`` and ``oracle``."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

import saga
from saga.cli.common import Commands, check_writable, console_for, prepared, warn
from saga.config import load_preset
from saga.sim.engine_model import MakeEngine
from saga.sim.experiment import KNOBS, Experiment, parse_knobs, run
from saga.traces import TraceWriter

if TYPE_CHECKING:
    from rich.console import Console

    from saga.report.report import Report


def add(commands: Commands) -> None:
    _add_simulate(commands)
    _add_compare(commands)
    _add_oracle(commands)


def _add_simulate(commands: Commands) -> None:
    simulate = commands.add_parser("simulate", help="one preset on a simulated cluster")
    simulate.add_argument("--preset", default="saga", metavar="NAME")
    simulate.add_argument("--seed", type=int, default=1, metavar="K")
    simulate.add_argument(
        "--trace", type=Path, metavar="FILE", help="write every event and action; .gz compresses"
    )
    _add_setting(simulate)
    simulate.set_defaults(call=_simulate)


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="presets on the same workload with paired seeds",
        description="The first preset is the reference. NAME+KEY=VALUE changes a line of a preset.",
    )
    add_comparison(compare)


def add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--presets", required=True, metavar="A,B")
    parser.add_argument("--seeds", type=int, default=12, metavar="N")
    _add_setting(parser)
    parser.set_defaults(call=compare, trace=None)


def _add_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", default="swe-bench", metavar="W", help="a name or file:PATH")
    parser.add_argument("--cluster", default="paper-64xa100", metavar="C")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--load", type=float, metavar="X", help="relative to the fluid saturation")
    load.add_argument("--rate", type=float, metavar="TASKS_PER_MIN")
    load.add_argument("--agents", type=int, metavar="N", help="closed loop, in the whole cluster")
    parser.add_argument("--tasks", type=int, default=500, metavar="M")
    parser.add_argument(
        "--engine-model",
        choices=("light", "vllm", "vllm-plugin"),
        default="light",
        help="vllm, vllm-plugin: engines are scheduled by vLLM itself, as it comes or with SAGA's "
        "plugin, in virtual time (docs/fidelity.md)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="knobs",
        help="; ".join(f"{key}: {text}" for key, (_, text) in KNOBS.items()),
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--figures", type=Path, metavar="DIR")
    parser.add_argument("--processes", type=int, metavar="P", help="default: one per core")
    parser.add_argument("--check", action="store_true", help="check the laws after every event")
    parser.add_argument("--strict", action="store_true", help="a broken trace line is an error")
    parser.add_argument("--quiet", action="store_true", help="no progress, no tables")


def _add_oracle(commands: Commands) -> None:
    oracle = commands.add_parser(
        "oracle", help="regenerated tokens over the offline optimum's, on a frozen timeline"
    )
    oracle.add_argument("--presets", required=True, metavar="A,B")
    oracle.add_argument("--workload", default="swe-bench", metavar="W")
    oracle.add_argument("--cluster", default="paper-16xa100", metavar="C")
    oracle.add_argument("--load", type=float, default=0.8, metavar="X")
    oracle.add_argument("--tasks", type=int, default=500, metavar="M")
    oracle.add_argument("--seeds", type=int, default=3, metavar="N")
    oracle.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="knobs")
    oracle.add_argument("--json", type=Path, metavar="FILE")
    oracle.add_argument("--strict", action="store_true", help="a broken trace line is an error")
    oracle.set_defaults(call=_oracle)


# ---- running


def _simulate(arguments: argparse.Namespace) -> int:
    return _play(arguments, (arguments.preset,), (arguments.seed,), "Simulation")


def compare(arguments: argparse.Namespace) -> int:
    presets = tuple(name for name in arguments.presets.split(",") if name)
    if arguments.seeds < 1:
        raise ValueError(f"--seeds {arguments.seeds}: must be at least 1")
    return _play(arguments, presets, tuple(range(1, arguments.seeds + 1)), "Comparison")


def _play(
    arguments: argparse.Namespace, presets: tuple[str, ...], seeds: tuple[int, ...], title: str
) -> int:
    given = (arguments.load, arguments.rate, arguments.agents)
    experiment = Experiment(
        presets=presets,
        workload=arguments.workload,
        cluster=arguments.cluster,
        load=0.9 if given == (None, None, None) else arguments.load,
        rate_per_min=arguments.rate,
        agents=arguments.agents,
        tasks=arguments.tasks,
        seeds=seeds,
        knobs=parse_knobs(arguments.knobs),
        strict=arguments.strict,
        check=arguments.check,
    )
    if arguments.engine_model != "light":
        experiment = replace(experiment, make_engine=_vllm(arguments.engine_model, experiment))
    console = console_for(quiet=arguments.quiet)
    for path in filter(None, (arguments.json, arguments.html)):
        check_writable(prepared(path))
    _describe(experiment, console)
    report = _report(experiment, arguments, title)
    if not arguments.quiet:
        report.tables(console)
    if arguments.json:
        report.write_json(arguments.json)
    if arguments.html:
        report.write_html(arguments.html)
    if arguments.figures:
        report.write_figures(arguments.figures)
    return 0


def _vllm(model: str, experiment: Experiment) -> MakeEngine:
    """Raises ValueError where vLLM is not installed, and for the first preset that wants what this
    model has not."""
    if find_spec("vllm") is None:
        raise ValueError(f"--engine-model {model} needs vLLM installed beside SAGA")
    from saga.engine.vllm.simulated.models import MODELS

    make_engine, beyond = MODELS[model]
    for preset in experiment.presets:
        wanted = beyond(load_preset(preset).policies, experiment.cluster_spec.engine)
        if wanted:
            raise ValueError(
                f"--engine-model {model}: preset {preset} wants {' and '.join(wanted)}, which this "
                f"model has not"
            )
    return make_engine


def _report(experiment: Experiment, arguments: argparse.Namespace, title: str) -> Report:
    from saga.report.report import Report

    began = time.perf_counter()
    with _trace_writer(experiment, arguments) as observe:
        runs = run(
            experiment, processes=arguments.processes, quiet=arguments.quiet, observe=observe
        )
    excluded = max(record.num_excluded for records in runs.values() for record in records)
    return Report(
        title=f"{title}: {', '.join(experiment.presets)}",
        parameters=_parameters(experiment, arguments, excluded),
        runs=runs,
        wall_s=time.perf_counter() - began,
    )


def _trace_writer(
    experiment: Experiment, arguments: argparse.Namespace
) -> AbstractContextManager[TraceWriter | None]:
    if arguments.trace is None:
        return nullcontext()
    return TraceWriter(
        prepared(arguments.trace),
        {
            "preset": arguments.preset,
            "seed": str(arguments.seed),
            "workload": experiment.workload,
            "cluster": experiment.cluster,
            "command": f"saga {shlex.join(arguments.argv)}",
        },
    )


def _parameters(
    experiment: Experiment, arguments: argparse.Namespace, excluded: int
) -> dict[str, str]:
    cluster = experiment.cluster_spec
    parameters = {
        "cluster": f"{cluster.num_engines} x {cluster.engine.model.name} "
        f"TP{cluster.engine.tp} {cluster.engine.gpu.name}",
        "workload": experiment.workload,
    }
    if experiment.load is not None:
        parameters["load"] = f"{experiment.load:g}"
    if experiment.rate_per_s is not None:
        parameters["arrival rate"] = f"{experiment.rate_per_s * 60:.3g} tasks/min"
    else:
        parameters["agents"] = str(experiment.agents)
    if arguments.engine_model != "light":
        parameters["engine model"] = arguments.engine_model
    parameters |= {
        "saturation": f"{_saturation_per_min(experiment):.3g} tasks/min (fluid model)",
        "KV per engine": f"{cluster.engine.kv_capacity_tokens:,} tokens",
        "tasks per seed": f"{experiment.tasks}, first {experiment.knobs.get('warmup', 0.15):.0%} "
        "not measured",
        "seeds": ", ".join(map(str, experiment.seeds)),
        "left out": f"{excluded} tasks longer than an engine's KV",
        "version": saga.__version__,
        "command": f"saga {shlex.join(arguments.argv)}",
    }
    return parameters


def _describe(experiment: Experiment, console: Console) -> None:
    """What is about to run, so that a long run can be stopped at once if it is the wrong one."""
    warn(experiment.source.problems, experiment.workload.removeprefix("file:"))
    point, cluster = experiment.saturation, experiment.cluster_spec
    rate = experiment.rate_per_s
    arrivals = f"{rate * 60:.3g} tasks/min" if rate else f"{experiment.agents} agents, closed loop"
    console.print(
        f"{experiment.workload} on {cluster.name} ({cluster.num_engines} engines): "
        f"saturation {_saturation_per_min(experiment):.3g} tasks/min at "
        f"{point.live:.1f} live tasks per engine (fluid model); running {arrivals}",
        highlight=False,
    )


def _saturation_per_min(experiment: Experiment) -> float:
    return experiment.saturation.rate_per_s * 60 * experiment.cluster_spec.num_engines


def _oracle(arguments: argparse.Namespace) -> int:
    from saga.sim.bounds import (
        POOL_FRACTIONS,
        ratios_to_optimum,
        record_timeline,
        regenerated_share,
    )

    presets = tuple(name for name in arguments.presets.split(",") if name)
    if arguments.seeds < 1:
        raise ValueError(f"--seeds {arguments.seeds}: must be at least 1")
    experiment = Experiment(
        presets=presets,
        workload=arguments.workload,
        cluster=arguments.cluster,
        load=arguments.load,
        tasks=arguments.tasks,
        knobs=parse_knobs(arguments.knobs),
        strict=arguments.strict,
    )
    warn(experiment.source.problems, experiment.workload.removeprefix("file:"))
    seeds = range(1, arguments.seeds + 1)
    timelines = [
        record_timeline(experiment.plan(seed)[0], experiment.cluster_spec)
        for seed in tqdm(seeds, desc="timelines", unit="seed")
    ]
    ratios = {
        preset: ratios_to_optimum(timelines, load_preset(preset).policies)
        for preset in tqdm(presets, desc="replays", unit="preset")
    }
    print("regenerated tokens / offline optimum, by pool size (share of the mean idle KV)")
    width = max(map(len, (*presets, "(optimum regenerates)"))) + 2
    print(f"{'preset':{width}}" + "".join(f"{fraction:>8.0%}" for fraction in POOL_FRACTIONS))
    for preset, by_fraction in ratios.items():
        cells = ("-" if ratio is None else f"{ratio:.2f}" for ratio in by_fraction.values())
        print(f"{preset:{width}}" + "".join(f"{cell:>8}" for cell in cells))
    shares = regenerated_share(timelines).values()
    print(f"{'(optimum regenerates)':{width}}" + "".join(f"{share:>8.1%}" for share in shares))
    if arguments.json:
        document = {
            preset: {f"{fraction:g}": ratio for fraction, ratio in by_fraction.items()}
            for preset, by_fraction in ratios.items()
        }
        prepared(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
    return 0
