"""What every reader produces, and how it reports what it could not use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from saga.traces.script import WorkflowScript

Times = tuple[tuple[tuple[int, int], ...], ...]
"""When each step of each session of a workflow began and ended, microseconds."""


class TraceError(ValueError):
    """A trace that cannot be read; the text names the file and, where there is one, the line."""


class RecordError(ValueError):
    """One record that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that was left out, and why. Lines count from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile:
    """What a trace file holds."""

    path: Path
    kind: str
    """The name of its format: ``saga``, ``run``, ``agent``, ``weka``, ``mooncake``, ..."""
    scripts: list[WorkflowScript]
    problems: list[Problem]
    notes: list[str]
    """What was assumed where the trace does not tell, with how often."""
    times: dict[str, Times] = field(default_factory=dict)
    """By workflow, on the clock of the trace; of the traces that tell."""


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    text: bytes


@dataclass(slots=True)
class ReadLog:
    """Collects problems and notes of one file; with ``strict`` the first problem is raised."""

    path: Path
    strict: bool
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    times: dict[str, Times] = field(default_factory=dict)

    def problem(self, line: int, reason: str) -> None:
        if self.strict:
            raise TraceError(f"{self.path}:{line}: {reason}")
        self.problems.append(Problem(line, reason))

    def note(self, text: str) -> None:
        """Count one more case of an assumption."""
        self.counts[text] += 1

    @property
    def notes(self) -> list[str]:
        return [f"{count:,} {text}" for text, count in self.counts.most_common()]


def microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
