"""Traces written line by line, and read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from saga.traces import TraceFile, WorkflowScript, check_script, read_scripts


def read_lines(path: Path, lines: Iterable[str]) -> TraceFile:
    """What a file of these lines holds; every script of it can be played."""
    path.write_text("\n".join(lines))
    trace = read_scripts(path)
    for script in trace.scripts:
        check_script(script)
    return trace


def only(trace: TraceFile) -> WorkflowScript:
    """The one workflow of a trace without problems."""
    assert not trace.problems
    (script,) = trace.scripts
    return script
