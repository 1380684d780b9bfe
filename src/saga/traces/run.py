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
from saga.traces.check import check_script
from saga.traces.records import MAX_SECONDS, PromptTokens, Tokens, decode
from saga.traces.script import SessionScript, StepScript, WorkflowScript

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


@dataclass(slots=True)
class _Step:
    """A request that was served."""

    prompt_tokens: int
    output_tokens: int
    tool: str | None
    arrived: int
    finished: int
    ready: int
    """When nothing was waited for any more: its end, or that of sub-agents."""
    returned: int | None = None
    """When its session asked again."""


@dataclass(slots=True, eq=False)
class _Session:
    parent: _Session | None = None
    spawn_step: int = 0
    steps: list[_Step] = field(default_factory=list)
    unserved: str | None = None
    """The latest request, unless it was served."""

    def ask(self, event: _Arrived) -> None:
        self.unserved = event.request
        if self.steps and self.steps[-1].returned is None:
            self.steps[-1].returned = event.at

    def serve(self, arrived: _Arrived, event: _Finished) -> None:
        if self.unserved == event.request:
            self.unserved = None
        self.steps.append(
            _Step(
                prompt_tokens=arrived.prompt_tokens,
                output_tokens=event.output_tokens,
                tool=event.tool,
                arrived=arrived.at,
                finished=event.at,
                ready=event.at,
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
        if parent is None or not parent.steps:
            raise RecordError(
                f"session {event.session!r} was opened before a step of its parent {name!r} ended"
            )
        sessions[event.session] = _Session(parent, len(parent.steps) - 1)


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
    sessions = [session for session in workflow.sessions.values() if session.steps]
    numbers = {session: number for number, session in enumerate(sessions)}
    # Sub-agents first: they tell what their parents waited for.
    scripts = [_session_script(session, numbers, log) for session in reversed(sessions)]
    script = WorkflowScript(
        id=workflow.id,
        sessions=tuple(reversed(scripts)),
        tenant=workflow.submitted.tenant,
        agent_type=workflow.submitted.agent_type,
        submitted_us=workflow.submitted.at,
    )
    try:
        check_script(script)
    except ValueError as error:
        raise RecordError(str(error)) from None
    return script


def _session_script(
    session: _Session, numbers: Mapping[_Session, int], log: ReadLog
) -> SessionScript:
    """A parent that asks again only after a sub-agent's end is taken to have waited for it."""
    steps = tuple(_step_scripts(session.steps, log))
    if session.parent is None:
        return SessionScript(steps=steps)
    spawning = session.parent.steps[session.spawn_step]
    end = session.steps[-1].finished
    blocking = spawning.returned is not None and spawning.returned >= end
    if blocking:
        spawning.ready = max(spawning.ready, end)
    return SessionScript(
        steps=steps,
        parent=numbers[session.parent],
        spawn_step=session.spawn_step,
        delay_us=session.steps[0].arrived - spawning.finished,
        blocking=blocking,
    )


def _step_scripts(steps: Sequence[_Step], log: ReadLog) -> Iterator[StepScript]:
    """A prompt that has room for the context before it is taken to begin with it."""
    context = 0
    for step in steps:
        grows = step.prompt_tokens >= context
        if not grows:
            log.note("prompts shorter than the context before, played as keeping nothing of it")
        if step.output_tokens == 0:
            log.note("steps without output, played with 1 token")
        kept = min(context, step.prompt_tokens - 1) if grows else 0
        yield StepScript(
            kept_tokens=kept,
            new_tokens=step.prompt_tokens - kept,
            output_tokens=max(step.output_tokens, 1),
            tool=step.tool,
            gap_us=0 if step is steps[-1] else _gap_us(step, log),
        )
        context = step.prompt_tokens + step.output_tokens


def _gap_us(step: _Step, log: ReadLog) -> int:
    if step.returned is None:
        log.note("steps that overlap the next one of their session, played one after another")
        return 0
    return step.returned - step.ready
