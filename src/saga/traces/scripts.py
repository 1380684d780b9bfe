"""The project's own trace format: a header line, then one workflow per line, all JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from saga.traces.base import Line, ReadLog, Times
from saga.traces.check import check_script
from saga.traces.records import decode
from saga.traces.script import WorkflowScript

FORMAT = "saga.scripts.v1"

_SCRIPT = msgspec.json.Decoder(WorkflowScript)


class SagaWriter:
    """What is written is read again, exactly."""

    header = ({"format": FORMAT},)
    leaves_out = "when calls began and ended"

    def rows(self, script: WorkflowScript, times: Times | None) -> Iterator[WorkflowScript]:
        yield script


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
