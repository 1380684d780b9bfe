"""Writing workflows in any of the formats that others read."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import msgspec

from saga.traces.agentic_writer import AgenticWriter
from saga.traces.base import Times, TraceError, TraceFile
from saga.traces.check import check_script
from saga.traces.dag_writer import DagWriter
from saga.traces.dynamo import DynamoWriter
from saga.traces.otel import OtelWriter
from saga.traces.reader import read_scripts
from saga.traces.script import WorkflowScript
from saga.traces.scripts import SagaWriter


class Writer(Protocol):
    """One file of a format."""

    @property
    def header(self) -> tuple[Any, ...]:
        """The JSON lines before all workflows."""

    @property
    def leaves_out(self) -> str:
        """What a script says, and the format cannot."""

    def rows(self, script: WorkflowScript, times: Times | None) -> Iterator[Any]:
        """The JSON lines of one workflow; without its times, its calls take none."""


WRITERS: dict[str, type[Writer]] = {
    "saga": SagaWriter,
    "dynamo": DynamoWriter,
    "agentic-mooncake": AgenticWriter,
    "aiperf-dag": DagWriter,
    "otel": OtelWriter,
}
"""By the names that ``TraceFile.kind`` has when they are read again."""


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    strict: bool = False,
    start_us: int | None = None,
) -> TraceFile:
    """Write the workflows of any trace file in the format ``to``; returns what was read.

    With ``start_us``, microseconds of the epoch, all times are moved so that the first call begins
    then: the clock of a run begins at 0. Raises like ``read_scripts`` and ``write_scripts``.
    """
    trace = read_scripts(source, strict=strict)
    scripts, times = trace.scripts, trace.times
    if start_us is not None:
        scripts = [replace(one, submitted_us=(one.submitted_us or 0) + start_us) for one in scripts]
        times = _moved(times, start_us)
    write_scripts(target, scripts, to=to, times=times)
    return trace


def _moved(times: Mapping[str, Times], start_us: int) -> dict[str, Times]:
    first = min((spans[0][0][0] for spans in times.values()), default=0)
    by = start_us - first
    return {
        name: tuple(tuple((start + by, end + by) for start, end in own) for own in spans)
        for name, spans in times.items()
    }


def write_scripts(
    path: str | Path,
    scripts: Iterable[WorkflowScript],
    *,
    to: str = "saga",
    times: Mapping[str, Times] | None = None,
) -> None:
    """Write scripts in the format ``to``; ``.gz`` in the name compresses.

    Formats that tell when calls began and ended have it from ``times``, by workflow; without, calls
    take no time, as a script does not say. The same scripts give the same bytes, and as ``saga``
    ``read_scripts`` gives the same scripts. Raises ValueError for an unknown format, a script that
    breaks a law of ``check_script`` or an id used twice, and TraceError if the file cannot be
    written.
    """
    path = Path(path)
    if to not in WRITERS:
        raise ValueError(f"no format {to!r} to write; there are {', '.join(WRITERS)}")
    writer, encode = WRITERS[to](), msgspec.json.Encoder().encode
    with ExitStack() as stack:
        file = _created(path, stack)
        for row in _rows(writer, scripts, times or {}):
            file.write(encode(row) + b"\n")


def _rows(
    writer: Writer, scripts: Iterable[WorkflowScript], times: Mapping[str, Times]
) -> Iterator[Any]:
    yield from writer.header
    ids = set()
    for script in scripts:
        check_script(script)
        if script.id in ids:
            raise ValueError(f"workflow id {script.id!r} is used twice")
        ids.add(script.id)
        yield from writer.rows(script, times.get(script.id))


def _created(path: Path, stack: ExitStack) -> BinaryIO:
    """The file, which is taken away again if the stack is left by an error."""
    try:
        file = path.open("wb")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error

    def end(kind: type[BaseException] | None, *_: object) -> None:
        file.close()
        if kind is not None and path.is_file():
            path.unlink()

    stack.push(end)
    if path.suffix != ".gz":
        return file
    packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0)
    return cast(BinaryIO, stack.enter_context(packed))
