"""What a recorded run decided and reached, read from its trace (``saga.trace.v1``)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from saga.traces.base import TraceError
from saga.traces.run import RUN_FORMAT


@dataclass(slots=True)
class Recorded:
    """A run in figures. Times are microseconds of the run's clock."""

    preset: str = ""
    engines: dict[str, int] = field(default_factory=dict)
    """KV capacity in tokens by name, of those that ever were up."""
    placements: dict[tuple[str, int], str] = field(default_factory=dict)
    """Engine of each session's n-th request, where it was last sent."""
    tct_us: dict[str, int] = field(default_factory=dict)
    """Submission to last answer, of finished workflows."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    num_waits: int = 0
    """Requests that were not sent at once."""
    num_lines_left_out: int = 0

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(slots=True)
class _Reading:
    recorded: Recorded = field(default_factory=Recorded)
    submitted: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    requests: dict[str, tuple[tuple[str, int], int, int, str]] = field(default_factory=dict)
    """By id: session and number, arrival, prompt tokens, workflow."""
    counts: dict[str, int] = field(default_factory=dict)
    """Requests seen by session."""


def read_recorded(path: str | Path) -> Recorded:
    """The run's own decisions. Broken lines are counted; TraceError if it is no such file."""
    path, reading = Path(path), _Reading()
    for number, line in enumerate(_lines(path)):
        try:
            record = msgspec.json.decode(line)
            if number == 0:
                _begin(reading, record, path)
            else:
                _happened(reading, record)
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            if number == 0:
                raise TraceError(f"{path}: not a recorded run ({RUN_FORMAT})") from None
            reading.recorded.num_lines_left_out += 1
    if not reading.recorded.engines:
        raise TraceError(f"{path}: the run never had an engine")
    return reading.recorded


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError) as error:
        raise TraceError(f"{path}: {error}") from error


def _begin(reading: _Reading, record: dict[str, Any], path: Path) -> None:
    if record.get("format") != RUN_FORMAT:
        raise TraceError(f"{path}: not a recorded run ({RUN_FORMAT})")
    reading.recorded.preset = str(record.get("preset", ""))


def _happened(reading: _Reading, record: dict[str, Any]) -> None:
    recorded, at = reading.recorded, record["at"]
    sent = {a["request"]: a["engine"] for a in record["actions"] if a["action"] == "Dispatch"}
    match record["event"]:
        case "EngineUp":
            recorded.engines[record["engine"]] = record["kv_capacity_tokens"]
        case "WorkflowSubmitted":
            reading.submitted[record["workflow"]] = at
        case "RequestArrived":
            _arrived(reading, record, sent)
        case "RequestFinished":
            _finished(reading, record)
        case "WorkflowDone":
            name = record["workflow"]
            begin, end = reading.submitted.pop(name, None), reading.answered.pop(name, None)
            if begin is not None and end is not None:
                recorded.tct_us[name] = end - begin
    for request, engine in sent.items():
        if request in reading.requests:
            recorded.placements[reading.requests[request][0]] = engine


def _arrived(reading: _Reading, record: dict[str, Any], sent: dict[str, str]) -> None:
    session, request = record["session"], record["request"]
    number = reading.counts.get(session, 0)
    reading.counts[session] = number + 1
    step = (session, number)
    reading.requests[request] = step, record["at"], record["prompt_tokens"], record["workflow"]
    reading.recorded.num_waits += request not in sent


def _finished(reading: _Reading, record: dict[str, Any]) -> None:
    _, _, prompt_tokens, workflow = reading.requests.pop(record["request"])
    reading.answered[workflow] = record["at"]
    reading.recorded.prompt_tokens += prompt_tokens
    reading.recorded.cached_tokens += min(record["cached_tokens"] or 0, prompt_tokens)
