"""Reading any of the trace formats: what a file is, is seen from what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import msgspec

from saga.traces import agentic, dag, miniswe
from saga.traces.agent import read_agent
from saga.traces.azure import CSV_HEADER, read_azure
from saga.traces.base import Line, ReadLog, TraceError, TraceFile
from saga.traces.dynamo import SCHEMAS, read_dynamo
from saga.traces.lines import read_lines
from saga.traces.mooncake import read_mooncake
from saga.traces.otel import read_otel
from saga.traces.run import RUN_FORMAT, read_run
from saga.traces.script import WorkflowScript
from saga.traces.scripts import FORMAT, read_saga

Read = Callable[[Iterable[Line], ReadLog], Iterator[tuple[int, WorkflowScript]]]

MAX_LINES_TO_TELL = 1000
"""A file whose first lines are all of no format is none."""


def read_scripts(path: str | Path, *, strict: bool = False) -> TraceFile:
    """Read the workflows of a trace file, in whichever of the known formats it is.

    A record that cannot be used becomes a Problem and the others are kept; with ``strict`` it is
    raised as ``TraceError("FILE:LINE: reason")``. Except in ``saga.scripts.v1``, arrival times are
    moved to count from the first one; ``times`` are not moved. Raises TraceError naming the file if
    it cannot be read, is in no known format, or holds no usable workflow.
    """
    path = Path(path)
    log = ReadLog(path, strict)
    kind, read, lines = _format(read_lines(path, log), path)
    scripts = list(_unique(read(lines, log), log))
    if not scripts:
        told = "".join(f": line {one.line}: {one.reason}" for one in log.problems[:1])
        raise TraceError(f"{path}: no usable workflow{told}")
    return TraceFile(
        path=path,
        kind=kind,
        scripts=scripts if kind == "saga" else _from_first_arrival(scripts),
        problems=sorted(log.problems, key=lambda problem: problem.line),
        notes=log.notes,
        times=log.times,
    )


def _format(lines: Iterator[Line], path: Path) -> tuple[str, Read, Iterator[Line]]:
    """What the first line that tells anything says the file is, and all of its lines."""
    seen = []
    for line in islice(lines, MAX_LINES_TO_TELL):
        seen.append(line)
        if found := _format_of_line(line, path):
            return *found, chain(seen, lines)
    raise TraceError(
        f"{path}: no known trace format. Expected JSON lines with steps (agent traces), hash_ids "
        "(Mooncake), request_id and hash_ids (agentic Mooncake), session_id and turns (aiperf), "
        f"resourceSpans (OpenTelemetry), the schema {SCHEMAS[0]} or {SCHEMAS[1]}, messages and "
        f"info (mini-swe-agent), t, in and out (Azure) or a {FORMAT} or {RUN_FORMAT} header, or "
        f"CSV with the columns {CSV_HEADER.decode()}"
    )


def _format_of_line(line: Line, path: Path) -> tuple[str, Read] | None:
    if line.text == CSV_HEADER:
        return "azure", read_azure
    try:
        record = msgspec.json.decode(line.text)
    except (ValueError, RecursionError):
        return None
    return _format_of(record, path) if isinstance(record, dict) else None


def _format_of(record: dict[str, object], path: Path) -> tuple[str, Read] | None:
    if record.get("format") == FORMAT:
        return "saga", read_saga
    if record.get("format") == RUN_FORMAT:
        return "run", read_run
    if {_schema(record), _schema(record.get("event"))} & {*SCHEMAS}:
        return "dynamo", read_dynamo
    if "resourceSpans" in record:
        return "otel", read_otel
    if "hash_scope" in record:
        return "weka", partial(read_agent, agent_type="claude-code")
    if "steps" in record:
        return "agent", partial(read_agent, agent_type=path.name.split(".")[0])
    if {"messages", "info"} <= record.keys() or "trajectory_format" in record:
        return miniswe.KIND, miniswe.read_miniswe
    if {"session_id", "turns"} <= record.keys():
        return dag.KIND, dag.read_dag
    if "request_id" in record and {"hash_ids", "input_length", "input_tokens"} & record.keys():
        return agentic.KIND, agentic.read_agentic
    if "hash_ids" in record:
        return "mooncake", partial(read_mooncake, published="timestamp" in record)
    if {"t", "in", "out"} <= record.keys():
        return "azure", read_azure
    return None


def _schema(record: object) -> object:
    schema = record.get("schema") if isinstance(record, dict) else None
    return schema if isinstance(schema, str) else None


def _unique(
    scripts: Iterable[tuple[int, WorkflowScript]], log: ReadLog
) -> Iterator[WorkflowScript]:
    first_line: dict[str, int] = {}
    for line, script in scripts:
        earlier = first_line.setdefault(script.id, line)
        if earlier == line:
            yield script
        else:
            log.problem(line, f"task {script.id!r} was in line {earlier} already")


def _from_first_arrival(scripts: list[WorkflowScript]) -> list[WorkflowScript]:
    times = [script.submitted_us for script in scripts if script.submitted_us is not None]
    start = min(times, default=0)
    return [
        script
        if script.submitted_us is None
        else replace(script, submitted_us=script.submitted_us - start)
        for script in scripts
    ]
