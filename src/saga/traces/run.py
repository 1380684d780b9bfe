"""The trace of a run: a header line, then one line per event with the actions that followed.

Every run writes the same trace, simulated or live. It holds ids, sizes and times, never text.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self, cast

import msgspec
from msgspec import Meta, Struct

import saga
from saga.core.actions import Action
from saga.core.events import Event, WorkflowDone, WorkflowSubmitted
from saga.traces.base import Line, ReadLog, RecordError, TraceError
from saga.traces.records import MAX_SECONDS, PromptTokens, Tokens, decode
from saga.traces.script import WorkflowScript
from saga.traces.timeline import Call, Track, script_of

RUN_FORMAT = "saga.trace.v1"

# ---- writing


@dataclass(slots=True, eq=False)
class _Owner:
    """A workflow that is not done, and the names by which events refer to it."""

    id: str
    num_lines: int = 0
    names: set[tuple[str, str]] = field(default_factory=set)


class TraceWriter:
    """Writes each event of a run with its actions, when called with them, to a new file.

    A context manager. ``about`` goes into the header; ``.gz`` in the file's name compresses. A line
    that concerns a workflow names it and tells how many of its lines came before (``index``), so
    that a reader of a damaged file knows which workflows lack a line. Memory is bounded by the
    workflows that are not done, and the same run gives the same bytes. Raises TraceError if the
    file cannot be made.
    """

    def __init__(self, path: str | Path, about: Mapping[str, str] | None = None) -> None:
        path = Path(path)
        self._owners: dict[tuple[str, str], _Owner] = {}
        self._encode = msgspec.json.Encoder().encode
        self._open = ExitStack()
        try:
            self._file: BinaryIO = self._open.enter_context(path.open("wb"))
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}") from error
        if path.suffix == ".gz":
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._file, mtime=0)
            self._file = cast(BinaryIO, self._open.enter_context(packed))
        self._write({"format": RUN_FORMAT, "version": saga.__version__, **(about or {})})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more will happen. Closing again does nothing."""
        self._open.close()

    def __call__(self, event: Event, actions: Sequence[Action]) -> None:
        line = {"event": type(event).__name__, **msgspec.to_builtins(event)}
        owner = self._owner(event, line)
        if owner is not None:
            line |= {"workflow": owner.id, "index": owner.num_lines}
            owner.num_lines += 1
        line["actions"] = [
            {"action": type(action).__name__, **msgspec.to_builtins(action)} for action in actions
        ]
        self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(self._encode(line) + b"\n")

    def _owner(self, event: Event, line: Mapping[str, Any]) -> _Owner | None:
        """The workflow that the event concerns; None if it concerns the cluster."""
        names = [(what, line[what]) for what in ("workflow", "session", "request") if what in line]
        if isinstance(event, WorkflowSubmitted):
            self._owners[names[0]] = _Owner(event.workflow)
        owner = self._owners.get(names[0]) if names else None
        if owner is None:
            return None
        self._owners.update(dict.fromkeys(names, owner))
        owner.names.update(names)
        if isinstance(event, WorkflowDone):
            for name in owner.names:
                if self._owners.get(name) is owner:  # a name may be used again
                    del self._owners[name]
        return owner


# ---- reading

Microseconds = Annotated[int, Meta(ge=0, le=int(MAX_SECONDS * 1e6))]


class _Head(Struct):
    """What every line may have. Fields that are not named here are ignored."""

    format: str = ""
    event: str = ""
    workflow: str | None = None
    index: int = 0


class _Event(Struct, kw_only=True):
    at: Microseconds


class _Submitted(_Event):
    tenant: str
    agent_type: str


class _Opened(_Event):
    session: str
    parent: str | None


class _Arrived(_Event):
    session: str
    request: str
    prompt_tokens: PromptTokens


class _Finished(_Event):
    request: str
    output_tokens: Tokens
    tool: str | None


class _Done(_Event):
    pass


_HEAD = msgspec.json.Decoder(_Head)
_EVENTS: dict[str, msgspec.json.Decoder[_Event]] = {
    "WorkflowSubmitted": msgspec.json.Decoder(_Submitted),
    "SessionOpened": msgspec.json.Decoder(_Opened),
    "RequestArrived": msgspec.json.Decoder(_Arrived),
    "RequestFinished": msgspec.json.Decoder(_Finished),
    "WorkflowDone": msgspec.json.Decoder(_Done),
}
"""The events that tell what a workflow did. The others tell what became of it."""


@dataclass(slots=True, eq=False)
class _Session(Track):
    unserved: str | None = None
    """The latest request, unless it was served."""

    def ask(self, event: _Arrived) -> None:
        self.unserved = event.request
        if self.calls and self.calls[-1].returned_us is None:
            self.calls[-1].returned_us = event.at

    def serve(self, arrived: _Arrived, event: _Finished) -> None:
        if self.unserved == event.request:
            self.unserved = None
        self.calls.append(
            Call(
                prompt_tokens=arrived.prompt_tokens,
                output_tokens=event.output_tokens,
                tool=event.tool,
                start_us=arrived.at,
                end_us=event.at,
            )
        )


@dataclass(slots=True)
class _Workflow:
    id: str
    line: int
    """Of its submission."""
    submitted: _Submitted
    num_lines: int = 0
    sessions: dict[str, _Session] = field(default_factory=dict)
    requests: dict[str, tuple[_Session, _Arrived]] = field(default_factory=dict)
    """Those that were not served (yet)."""


class RunReader:
    """Puts the lines of a run together to workflows, as far as they are whole and came to an end.

    Memory is bounded by the workflows that are not done, and the scripts of those that are.
    """

    def __init__(self, log: ReadLog) -> None:
        self.log = log
        self.live: dict[str, _Workflow | None] = {}
        """None: lines of it are missing, and that has been told."""
        self.done: list[tuple[int, WorkflowScript]] = []

    def read(self, line: Line) -> None:
        """Raises RecordError for a line that cannot be used."""
        head = decode(line.text, _HEAD)
        if not head.event and head.format != RUN_FORMAT:
            raise RecordError("neither an event nor a header")
        if head.workflow is None:
            return
        event = decode(line.text, _EVENTS[head.event]) if head.event in _EVENTS else None
        if isinstance(event, _Submitted):
            self._give_up(head.workflow, "was submitted again before it was done")
            self.live[head.workflow] = _Workflow(head.workflow, line.number, event)
        workflow = self._whole(head.workflow, head.index, line)
        if workflow is not None and event is not None:
            self._happened(workflow, event)
        if isinstance(event, _Done):
            del self.live[head.workflow]

    def end(self) -> Iterator[tuple[int, WorkflowScript]]:
        """No line follows. The workflows in the order of their submission, each with its line."""
        for name in self.live:
            self._give_up(name, "has no end")
        yield from sorted(self.done, key=lambda done: done[0])

    def _whole(self, name: str, index: int, line: Line) -> _Workflow | None:
        """The workflow of a line, if none of its lines is missing so far."""
        if name not in self.live:
            self.live[name] = None
            self.log.problem(line.number, f"workflow {name!r} has no submission")
        workflow = self.live[name]
        if workflow is None:
            return None
        if workflow.num_lines != index:
            self._give_up(name, f"lacks lines before line {line.number}")
            return None
        workflow.num_lines += 1
        return workflow

    def _give_up(self, name: str, why: str) -> None:
        workflow = self.live.get(name)
        if workflow is not None:
            self.live[name] = None
            self.log.problem(workflow.line, f"workflow {name!r} {why}")

    def _happened(self, workflow: _Workflow, event: _Event) -> None:
        match event:
            case _Opened():
                self._open(workflow, event)
            case _Arrived() if event.session in workflow.sessions:
                session = workflow.sessions[event.session]
                session.ask(event)
                workflow.requests[event.request] = session, event
            case _Finished() if event.request in workflow.requests:
                session, arrived = workflow.requests.pop(event.request)
                session.serve(arrived, event)
            case _Done():
                try:
                    self.done.append((workflow.line, _script(workflow, self.log)))
                except RecordError as error:
                    self.log.problem(workflow.line, str(error))

    def _open(self, workflow: _Workflow, event: _Opened) -> None:
        """Sessions that begin too early have no place in a script; nor have their sub-agents."""
        sessions = workflow.sessions
        if not sessions:
            sessions[event.session] = _Session()
            return
        if event.parent is None:
            self.log.note("sessions without a parent, played as sub-agents of the first one")
        name = next(iter(sessions)) if event.parent is None else event.parent
        parent = sessions.get(name)
        if parent is None or not parent.calls:
            raise RecordError(
                f"session {event.session!r} was opened before a step of its parent {name!r} ended"
            )
        sessions[event.session] = _Session(parent, len(parent.calls) - 1)


def read_run(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """The workflows that were played, without those that did not end or were not served.

    ``submitted_us`` is on the clock of the run.
    """
    reader = RunReader(log)
    for line in lines:
        try:
            reader.read(line)
        except RecordError as error:
            log.problem(line.number, str(error))
    return reader.end()


def _script(workflow: _Workflow, log: ReadLog) -> WorkflowScript:
    """Raises RecordError if the workflow ended before its requests did."""
    for session in workflow.sessions.values():
        if session.unserved is not None:
            raise RecordError(
                f"workflow {workflow.id!r} ended before its request {session.unserved!r} did"
            )
    return script_of(
        list(workflow.sessions.values()),
        log,
        id=workflow.id,
        tenant=workflow.submitted.tenant,
        agent_type=workflow.submitted.agent_type,
        submitted_us=workflow.submitted.at,
    )
