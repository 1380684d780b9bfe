"""What several commands need."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saga.traces import Problem

if TYPE_CHECKING:
    from rich.console import Console

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = object


def prepared(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check_writable(path: Path) -> None:
    """Before a long run, not after it."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError(f"{path}: cannot be written")


def console_for(*, quiet: bool = False) -> Console:
    try:
        from rich.console import Console
    except ImportError as error:
        raise OSError('tables and figures need the extra: pip install "saga-serve[sim]"') from error
    width = None if sys.stdout.isatty() else 100
    return Console(quiet=quiet, width=width)


def warn(problems: Sequence[Problem], path: object) -> None:
    """Lines of a trace that were left out."""
    for problem in problems[:10]:
        print(f"saga: {path}:{problem.line}: {problem.reason}; left out", file=sys.stderr)
    if len(problems) > 10:
        print(f"saga: and {len(problems) - 10} more lines of {path}; left out", file=sys.stderr)
