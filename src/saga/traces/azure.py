"""Azure LLM inference traces: arrivals of single requests, as CSV or as JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from saga.traces.base import Line, ReadLog, RecordError, microseconds
from saga.traces.records import PromptTokens, Seconds, Tokens, decode, from_strings
from saga.traces.script import SessionScript, StepScript, WorkflowScript

CSV_HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens"


class Request(Struct, rename={"prompt": "in", "output": "out"}):
    t: Seconds
    prompt: PromptTokens
    output: Tokens


_REQUEST = msgspec.json.Decoder(Request)


def read_azure(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """One workflow of one step per request; ``submitted_us`` of a CSV counts from the epoch."""
    for line in lines:
        if line.text == CSV_HEADER:
            continue
        try:
            is_json = line.text.startswith(b"{")
            request = decode(line.text, _REQUEST) if is_json else _from_row(line.text)
        except RecordError as error:
            log.problem(line.number, str(error))
            continue
        if request.output == 0:
            log.note("steps without output, played with 1 token")
        yield line.number, _workflow(line.number, request)


def _from_row(row: bytes) -> Request:
    columns = row.decode("utf-8", "replace").split(",")
    if len(columns) != 3:
        raise RecordError(f"{len(columns)} columns: Expected {CSV_HEADER.decode()}")
    try:
        at = datetime.fromisoformat(columns[0])
    except ValueError:
        raise RecordError(f"TIMESTAMP is {columns[0]!r}: Expected a date and a time") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return from_strings({"t": at.timestamp(), "in": columns[1], "out": columns[2]}, Request)


def _workflow(number: int, request: Request) -> WorkflowScript:
    step = StepScript(
        kept_tokens=0, new_tokens=request.prompt, output_tokens=max(request.output, 1)
    )
    return WorkflowScript(
        id=f"azure-{number}",
        sessions=(SessionScript(steps=(step,)),),
        agent_type="azure",
        submitted_us=microseconds(request.t),
    )
