"""``python -m benchmarks.gateway``: see ``--help``. Needs Linux and a C compiler."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import signal
import sys
import tempfile
from pathlib import Path

import saga
from benchmarks.gateway.cases import CASES, Case
from benchmarks.gateway.measure import Row, Runner
from benchmarks.gateway.processes import Machine
from benchmarks.gateway.targets import BARE, DIRECT, SAGA, SAGA_UNNAMED, peers


def main() -> None:
    arguments = _arguments()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    targets = [DIRECT, BARE, SAGA, SAGA_UNNAMED, *(peers() if arguments.peers else [])]
    targets = [target for target in targets if not arguments.only or target.name in arguments.only]
    if strange := set(arguments.only) - {target.name for target in targets}:
        sys.exit(f"no target is called {', '.join(sorted(strange))}")
    num_rounds, seconds = (arguments.turns, 1.0) if arguments.turns else (5, 5.0)
    about = {
        "saga": saga.__version__,
        "python": platform.python_version(),
        "rounds": num_rounds,
        "seconds": seconds,
    }
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        cores = f"gateway on core {machine.cores[0]}" if machine.cores else "nothing is pinned"
        print(", ".join(f"{name} {value}" for name, value in about.items()), f"; {cores}", sep="")
        runner = Runner(machine, Path(folder), targets, num_rounds, seconds)
        print("medians of all rounds", flush=True)
        for case in [case for case in CASES if case.name in arguments.case]:
            rows = runner.run(case)
            _show(case, rows)
            found[case.name] = [dataclasses.asdict(row) for row in rows]
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"about": about, "cases": found}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument(
        "--turns", type=int, metavar="N", help="of 1 s, not five of 5 s: for ratios"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TARGET", help="may be given many times"
    )
    parser.add_argument("--peers", action="store_true", help="also other gateways, installed first")
    parser.add_argument("--case", action="append", choices=names, help="may be given many times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round")
    arguments = parser.parse_args()
    arguments.case = arguments.case or names
    return arguments


def _show(case: Case, rows: list[Row]) -> None:
    width = max(len(row.target) for row in rows)
    titles = "".join(f"{column.title:>14}" for column in case.columns)
    print(f"\n{case.title}\n{'':{width}}{titles}")
    for row in rows:
        medians = [(row.median(column.figure), column.digits) for column in case.columns]
        cells = ("-" if value is None else f"{value:,.{digits}f}" for value, digits in medians)
        print(f"{row.target:{width}}" + "".join(f"{cell:>14}" for cell in cells))
        ratios = row.quartiles("saga_x")
        if ratios is not None and row.target != SAGA.name:
            print(f"{'':{width}} saga is x: quartiles {ratios[0]:.2f}, {ratios[1]:.2f}")
        for problem in row.problems:
            print(f"{'':{width}} {problem}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
