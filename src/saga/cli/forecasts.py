"""``saga forecast ...``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saga.cli.common import Commands, prepared, warn
from saga.sim.forecasting import UNTOLD, Evaluation, evaluate
from saga.traces import read_scripts
from saga.traces.script import WorkflowScript


def add(commands: Commands) -> None:
    forecast = commands.add_parser("forecast", help="how well the next steps can be foretold")
    actions = forecast.add_subparsers(required=True, metavar="ACTION")
    judge = actions.add_parser(
        "eval", help="one online pass over a trace: each forecast made before it is scored"
    )
    judge.add_argument("file", type=Path)
    judge.add_argument(
        "--warm",
        type=Path,
        action="append",
        default=[],
        metavar="TRACE",
        help="learned before and not scored; may be given many times",
    )
    judge.add_argument("--json", type=Path, metavar="FILE")
    judge.add_argument("--strict", action="store_true")
    judge.set_defaults(call=_eval)


def _eval(arguments: argparse.Namespace) -> int:
    warm = [one for path in arguments.warm for one in _workflows(path, strict=arguments.strict)]
    found = evaluate(_workflows(arguments.file, strict=arguments.strict), warm=warm)
    print(_table(found))
    if arguments.json is not None:
        prepared(arguments.json).write_text(json.dumps(found.document(), indent=2) + "\n")
    return 0


def _workflows(path: Path, *, strict: bool) -> Sequence[WorkflowScript]:
    """Agents of which a trace does not tell the type are called as the file is. Those of the files
    of one evaluation are meant to be the same."""
    trace = read_scripts(path, strict=strict)
    warn(trace.problems, path)
    own = path.name.split(".")[0]
    return [
        replace(script, agent_type="agent") if script.agent_type == own else script
        for script in trace.scripts
    ]


def _table(found: Evaluation) -> str:
    lines = [f"{'':24}{'saga':>10}{'naive':>10}{'cases':>10}"]
    for name in UNTOLD:
        ours, naive, cases = found.ours[name], found.naive[name], found.counts[name]
        if ours is None:
            lines.append(f"{name:24}{'-':>10}{'-':>10}{'':>4}{UNTOLD[name]}")
        else:
            told = "-" if naive is None else f"{naive:.3f}"
            lines.append(f"{name:24}{ours:>10.3f}{told:>10}{cases:>10,}")
    lines += [f"{name:24}{found.ours[name] or 0.0:>10.1f}" for name in ("update_us", "forecast_us")]
    return "\n".join(lines)
