"""``saga demo``: baseline against SAGA, on a simulated cluster and live on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from saga.cli import simulate
from saga.cli.common import Commands, console_for

if TYPE_CHECKING:
    from saga.cli.live_demo import Setting

SIMULATED_PRESETS = ("vllm_apc_affinity", "saga_paper", "saga")


def add(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="baseline against SAGA: a simulated cluster, then live on this machine",
        description="First the paper's cluster, simulated. Then agents, gateway and two emulated "
        "engines as processes that talk HTTP, on this machine and without a GPU.",
    )
    demo.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    part = demo.add_mutually_exclusive_group()
    part.add_argument("--simulated-only", action="store_true", help="leave the live part out")
    part.add_argument("--live-only", action="store_true", help="leave the simulation out")
    demo.add_argument("--tasks", type=int, default=800, metavar="M", help="of the simulation")
    demo.add_argument("--seeds", type=int, default=2, metavar="N", help="of the simulation")
    demo.add_argument("--live-agents", type=int, metavar="N", help="workflows at a time")
    demo.add_argument("--live-workflows", type=int, metavar="M", help="in all")
    demo.add_argument("--live-speed", type=float, metavar="X", help="times real time")
    demo.set_defaults(call=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    code, made = 0, []
    setting = None if arguments.simulated_only else _live_setting(arguments)
    if not arguments.live_only:
        code = _simulate(arguments, out)
        made.append(f"Simulated: report {out / 'report.html'}, picture {out / 'tct.png'}")
    if setting is not None:
        from saga.cli.live_demo import run_live

        code = max(code, run_live(setting, out, console_for()))
        made.append(f"Live:      figures {out / 'live.json'}, picture {out / 'live.png'}")
    print("\n" + "\n".join(made))
    return code


def _simulate(arguments: argparse.Namespace, out: Path) -> int:
    parser = argparse.ArgumentParser()
    simulate.add_comparison(parser)
    setting = parser.parse_args(
        ["--presets", ",".join(SIMULATED_PRESETS), "--workload", "swe-agent",
         "--cluster", "paper-64xa100", "--agents", "300", "--tasks", str(arguments.tasks),
         "--seeds", str(arguments.seeds), "--json", str(out / "report.json"),
         "--html", str(out / "report.html"), "--figures", str(out)]
    )  # fmt: skip
    setting.argv = arguments.argv
    return simulate.compare(setting)


def _live_setting(arguments: argparse.Namespace) -> Setting:
    """Found before anything long is begun: a missing library, a value that cannot be."""
    console_for()
    try:
        from saga.cli.live_demo import Setting
    except ImportError as error:
        raise OSError(f"{error}; or leave the live part out: --simulated-only") from error
    given = {
        "agents": arguments.live_agents,
        "workflows": arguments.live_workflows,
        "speed": arguments.live_speed,
    }
    return Setting(**{name: value for name, value in given.items() if value is not None})
