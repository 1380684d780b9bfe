"""The project's own trace format: a header line, then one workflow per line, all JSON."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from saga.traces.base import Line, ReadLog, TraceError
from saga.traces.check import check_script
from saga.traces.records import decode
from saga.traces.script import WorkflowScript

FORMAT = "saga.scripts.v1"

_SCRIPT = msgspec.json.Decoder(WorkflowScript)


def write_scripts(path: str | Path, scripts: Iterable[WorkflowScript]) -> None:
    """Write scripts so that ``read_scripts`` gives the same ones; ``.gz`` in the name compresses.

    The same scripts give the same bytes. Raises ValueError for a script that breaks a law of
    ``check_script`` or an id used twice, and TraceError if the file cannot be written.
    """
    path = Path(path)
    lines = [msgspec.json.encode({"format": FORMAT})]
    ids = set()
    for script in scripts:
        check_script(script)
        if script.id in ids:
            raise ValueError(f"workflow id {script.id!r} is used twice")
        ids.add(script.id)
        lines.append(msgspec.json.encode(script))
    data = b"\n".join([*lines, b""])
    try:
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error


def read_saga(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """Workflows as they were written. The header may come again, where files were joined."""
    header = msgspec.json.encode({"format": FORMAT})
    for line in lines:
        if line.text.replace(b" ", b"") == header:
            continue
        try:
            script = decode(line.text, _SCRIPT)
            check_script(script)
        except ValueError as error:
            log.problem(line.number, str(error))
            continue
        yield line.number, script
