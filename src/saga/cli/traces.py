"""``saga trace ...``."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from saga.cli.common import Commands, console_for, prepared, warn
from saga.traces import WRITERS, convert, read_scripts, trace_stats

if TYPE_CHECKING:
    from saga.sim.replay import Replay


def add(commands: Commands) -> None:
    trace = commands.add_parser("trace", help="look at trace files, and play recorded runs again")
    actions = trace.add_subparsers(required=True, metavar="ACTION")
    stats = actions.add_parser("stats", help="what a trace file contains")
    stats.add_argument("file", type=Path)
    stats.add_argument("--strict", action="store_true")
    stats.set_defaults(call=_stats)
    convert = actions.add_parser("convert", help="write a trace in the format of another tool")
    convert.add_argument("file", type=Path)
    convert.add_argument("out", type=Path, help=".gz in the name compresses")
    convert.add_argument("--to", required=True, choices=list(WRITERS), metavar="FORMAT",
                         help=", ".join(WRITERS))  # fmt: skip
    convert.add_argument("--strict", action="store_true", help="stop at the first unusable record")
    convert.add_argument("--start", type=datetime.fromisoformat, metavar="TIME",
                         help="of the first call, like 2026-01-31T12:00+00:00")  # fmt: skip
    convert.set_defaults(call=_convert)
    replay = actions.add_parser(
        "replay", help="what other presets would have made of a recorded run (simulated)"
    )
    replay.add_argument("file", type=Path)
    replay.add_argument("--preset", action="append", required=True, metavar="NAME")
    replay.add_argument(
        "--cluster", default="16xh100-8b", metavar="C", help="whose engines; see saga clusters"
    )
    replay.add_argument("--json", type=Path, metavar="FILE")
    replay.add_argument("--strict", action="store_true")
    replay.set_defaults(call=_replay)


def _stats(arguments: argparse.Namespace) -> int:
    trace = read_scripts(arguments.file, strict=arguments.strict)
    warn(trace.problems, arguments.file)
    print(json.dumps(trace_stats(trace), indent=2, ensure_ascii=False))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    start = arguments.start
    trace = convert(
        arguments.file,
        prepared(arguments.out),
        arguments.to,
        strict=arguments.strict,
        start_us=None if start is None else round(start.timestamp() * 1e6),
    )
    warn(trace.problems, arguments.file)
    for note in trace.notes:
        print(f"saga: {arguments.file}: {note}", file=sys.stderr)
    sessions = sum(len(script.sessions) for script in trace.scripts)
    steps = sum(script.num_steps for script in trace.scripts)
    print(
        f"{len(trace.scripts)} workflows, {sessions} sessions, {steps} steps "
        f"from {trace.kind} to {arguments.to}: {arguments.out}\n"
        f"{arguments.to} leaves out: {WRITERS[arguments.to].leaves_out}"
    )
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from saga.sim.replay import replay

    with tqdm(unit="task", leave=False) as bar:

        def watch(preset: str, ended: int, now: int) -> None:
            bar.set_description(f"{preset} at {now / 3.6e9:.1f} simulated h", refresh=False)
            bar.update(ended - bar.n)

        done = replay(
            arguments.file,
            tuple(arguments.preset),
            cluster=arguments.cluster,
            strict=arguments.strict,
            watch=watch,
        )
    warn(done.trace.problems, arguments.file)
    figures = _figures(done)
    _show(done, figures)
    if arguments.json:
        prepared(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _figures(done: Replay) -> dict[str, Any]:
    from saga.report.metrics import summarise

    recorded = done.recorded
    finished = sorted(recorded.tct_us.values())
    figures: dict[str, Any] = {
        "recorded": {
            "preset": recorded.preset,
            "tct_mean_s": sum(finished) / len(finished) / 1e6 if finished else None,
            "hit_rate": recorded.hit_rate,
            "num_waits": recorded.num_waits,
            "num_requests": len(recorded.placements),
        },
        "simulated": {},
    }
    for run in done.runs:
        summary = summarise(run.record)
        figures["simulated"][run.preset] = {
            "tct_mean_s": summary.tct_mean_s,
            "tct_p99_s": summary.tct_p99_s,
            "ttft_p99_s": summary.ttft_p99_s,
            "hit_rate": summary.hit_rate,
            "regenerated_fraction": summary.regenerated_fraction,
            "num_steals": run.record.num_steals,
            "num_moved": done.num_moved(run),
            "num_requests": len(run.placements),
        }
    return figures


def _show(done: Replay, figures: dict[str, Any]) -> None:
    from rich.table import Table

    recorded, console = figures["recorded"], console_for()
    num, capacity = done.cluster.num_engines, done.cluster.engine.kv_capacity_tokens
    mean = "-" if recorded["tct_mean_s"] is None else f"{recorded['tct_mean_s']:.1f} s"
    console.print(
        f"recorded: preset {recorded['preset'] or '?'}, {num} engines of {capacity:,} KV tokens, "
        f"{recorded['num_requests']} requests, mean TCT {mean}, hit rate "
        f"{recorded['hit_rate']:.1%}, {recorded['num_waits']} waited",
        highlight=False,
    )
    table = Table(title=f"Simulated on engines of {done.cluster.name}, same arrivals and tools")
    for column in ("preset", "mean TCT", "p99 TCT", "p99 TTFT", "hit rate", "regenerated",
                   "steals", "other engine"):  # fmt: skip
        table.add_column(column, justify="left" if column == "preset" else "right")
    for preset, told in figures["simulated"].items():
        table.add_row(
            preset,
            *(_seconds(told[key]) for key in ("tct_mean_s", "tct_p99_s", "ttft_p99_s")),
            *(_percent(told[key]) for key in ("hit_rate", "regenerated_fraction")),
            str(told["num_steals"]),
            f"{told['num_moved']} of {told['num_requests']}",
        )
    console.print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
