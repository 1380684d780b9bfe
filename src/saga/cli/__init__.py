"""The ``saga`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import saga
from saga.cli import demo, doctor, forecasts, gateway, graphs, lists, run, simulate, traces


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when it did what was asked, 2 for a mistake in what was asked."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code: int = arguments.call(arguments)
    except (ValueError, OSError) as error:
        print(f"saga: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("saga: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="saga", description="Workflow-atomic scheduling for AI-agent inference."
    )
    parser.add_argument("--version", action="version", version=f"saga {saga.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in (gateway, doctor, run, simulate, demo, lists, traces, graphs, forecasts):
        part.add(commands)
    return parser
