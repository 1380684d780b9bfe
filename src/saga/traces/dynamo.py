"""Dynamo's traces of agents: ``dynamo.agent.trace.v1``, now ``dynamo.request.trace.v1``.

One event per line, bare or in the recorder's envelope: ``request_end``, with sizes and times of one
call, and ``tool_start``, ``tool_end`` and ``tool_error`` of the harness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from saga.traces.base import Line, ReadLog, RecordError, Times
from saga.traces.blocks import BLOCK_TOKENS, BlockIds
from saga.traces.gather import SCOPE, Gathered, Gatherer, ToolSpan
from saga.traces.records import Milliseconds, PromptTokens, Tokens, decode
from saga.traces.script import WorkflowScript
from saga.traces.timeline import Call, instant_times

SCHEMA = "dynamo.agent.trace.v1"
SCHEMAS = (SCHEMA, "dynamo.request.trace.v1")


class Context(Struct):
    """Who called. A trajectory is what is called a session here, unless there is none."""

    session_id: str | None = None
    workflow_id: str | None = None
    trajectory_id: str | None = None
    program_id: str | None = None
    parent_session_id: str | None = None
    parent_trajectory_id: str | None = None
    parent_program_id: str | None = None
    session_type_id: str | None = None
    workflow_type_id: str | None = None

    @property
    def run(self) -> str | None:
        """The whole agent run, where sessions are told apart from it."""
        if self.trajectory_id is None and self.program_id is None:
            return None
        return self.session_id if self.session_id is not None else self.workflow_id

    @property
    def session(self) -> str | None:
        names = (self.trajectory_id, self.program_id, self.session_id)
        return next((name for name in names if name is not None), None)

    @property
    def parent(self) -> str | None:
        names = (self.parent_trajectory_id, self.parent_program_id, self.parent_session_id)
        return next((name for name in names if name is not None), None)


class Replay(Struct):
    trace_block_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    input_length: PromptTokens
    input_sequence_hashes: list[int]

    @property
    def full_blocks(self) -> list[int]:
        return self.input_sequence_hashes[: self.input_length // self.trace_block_size]


class ToolCall(Struct):
    name: str | None = None


class Finish(Struct):
    tool_calls: list[ToolCall] = []


class Request(Struct):
    request_id: str
    input_tokens: PromptTokens | None = None
    output_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    request_received_ms: Milliseconds | None = None
    total_time_ms: Milliseconds | None = None
    replay: Replay | None = None
    finish_reason_metadata: Finish | None = None


class Tool(Struct):
    tool_class: str
    tool_call_id: str = ""
    started_at_unix_ms: Milliseconds | None = None
    ended_at_unix_ms: Milliseconds | None = None
    duration_ms: Milliseconds | None = None


class Event(Struct):
    event_type: str
    event_time_unix_ms: Milliseconds
    agent_context: Context | None = None
    request: Request | None = None
    tool: Tool | None = None


class Envelope(Struct):
    event: msgspec.Raw = msgspec.Raw()


_ENVELOPE = msgspec.json.Decoder(Envelope)
_EVENT = msgspec.json.Decoder(Event)


def read_dynamo(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """A workflow per agent run, ``submitted_us`` from the epoch."""
    reader = _Reader(log)
    for line in lines:
        try:
            reader.read(line)
        except RecordError as error:
            log.problem(line.number, str(error))
    for _ in reader.started:
        log.note("tools that were begun and never ended, left out")
    return reader.gatherer.workflows(reader.block_tokens)


class _Reader:
    def __init__(self, log: ReadLog) -> None:
        self.log = log
        self.gatherer = Gatherer(log, "dynamo")
        self.started: dict[tuple[str, str], float] = {}
        self.block_tokens = 0

    def read(self, line: Line) -> None:
        inner = bytes(decode(line.text, _ENVELOPE).event)
        event = decode(inner or line.text, _EVENT)
        match event.event_type:
            case "request_end" if event.request is not None:
                self._call(self._session(event, line), event, event.request)
            case "tool_start" | "tool_end" | "tool_error" if event.tool is not None:
                self._tool(self._session(event, line), event, event.tool)
            case "request_end" | "tool_start" | "tool_end" | "tool_error" as kind:
                what = "request" if kind == "request_end" else "tool"
                raise RecordError(f"{what}: Object missing required field `{what}`")
            case _:
                self.log.note("events of other types, which tell no call and no tool")

    def _session(self, event: Event, line: Line) -> Gathered:
        context = event.agent_context
        if context is None or context.session is None:
            if event.request is None:
                raise RecordError("agent_context: tools need one with a session")
            return self.gatherer.session(event.request.request_id, line.number)
        scope = f"{context.run}{SCOPE}" if context.run is not None else ""
        session = self.gatherer.session(scope + context.session, line.number)
        session.workflow = context.run
        kinds = context.session_type_id, context.workflow_type_id
        session.agent_type = next((kind for kind in kinds if kind is not None), None)
        if context.parent is not None:
            session.parent = scope + context.parent
        return session

    def _call(self, session: Gathered, event: Event, request: Request) -> None:
        prompt = request.input_tokens
        if prompt is None and request.replay is not None:
            prompt = request.replay.input_length
        if prompt is None or request.output_tokens is None:
            missing = "input_tokens" if prompt is None else "output_tokens"
            raise RecordError(f"request.{missing} is missing")
        start_ms, end_ms = _times_ms(event, request)
        call = Call(
            prompt_tokens=prompt,
            output_tokens=request.output_tokens,
            start_us=round(start_ms * 1000),
            end_us=round(end_ms * 1000),
            cached_tokens=request.cached_tokens or 0,
        )
        if request.finish_reason_metadata is not None:
            names = (tool.name for tool in request.finish_reason_metadata.tool_calls)
            call.tool = next(filter(None, names), None)
        self._reuse(session, call, request.replay)
        session.calls.append(call)

    def _reuse(self, session: Gathered, call: Call, replay: Replay | None) -> None:
        """Compared as it is read, with the call read before: no hashes are held."""
        ids = None if replay is None else self._blocks(replay)
        if ids is not None and session.calls:
            session.go_on(call, ids, self.block_tokens)
        elif ids is not None:
            parent = None if session.parent is None else self.gatherer.sessions.get(session.parent)
            session.begin(call, ids, parent, self.block_tokens)
        session.last_blocks = ids

    def _blocks(self, replay: Replay) -> list[int]:
        self.block_tokens = self.block_tokens or replay.trace_block_size
        if replay.trace_block_size != self.block_tokens:
            raise RecordError(
                f"request.replay.trace_block_size is {replay.trace_block_size}: "
                f"Expected {self.block_tokens} as in the lines before"
            )
        return replay.full_blocks

    def _tool(self, session: Gathered, event: Event, tool: Tool) -> None:
        key = session.key, tool.tool_call_id
        if event.event_type == "tool_start":
            started = tool.started_at_unix_ms
            self.started[key] = event.event_time_unix_ms if started is None else started
            return
        begun = self.started.pop(key, None)
        end_ms = tool.ended_at_unix_ms
        if end_ms is None:
            end_ms = event.event_time_unix_ms
        start_ms = tool.started_at_unix_ms if tool.started_at_unix_ms is not None else begun
        if start_ms is None:
            start_ms = max(end_ms - (tool.duration_ms or 0), 0)
        span = ToolSpan(round(min(start_ms, end_ms) * 1000), round(end_ms * 1000), tool.tool_class)
        session.tools.append(span)


def _times_ms(event: Event, request: Request) -> tuple[float, float]:
    """When it came and when it was answered: at the event, unless both of its times are told."""
    start, total, end = request.request_received_ms, request.total_time_ms, event.event_time_unix_ms
    if start is None:
        return max(end - (total or 0), 0), end
    return (start, max(start, end)) if total is None else (start, start + total)


# ---- writing


class DynamoWriter:
    """Events of ``dynamo.agent.trace.v1``, one workflow after another, times in whole ms."""

    header = ()
    leaves_out = (
        "tenants, parts of a millisecond, time in tools without a name, names of prefixes, "
        f"what is kept of a block of {BLOCK_TOKENS} tokens"
    )

    def __init__(self) -> None:
        self._blocks = BlockIds()

    def rows(self, script: WorkflowScript, times: Times | None) -> Iterator[dict[str, Any]]:
        told = times is not None
        spans = instant_times(script) if times is None else times
        ids = self._blocks.of_workflow(script)
        events: list[tuple[int, dict[str, Any]]] = []
        for number, index in script.in_order():
            step = script.sessions[number].steps[index]
            context = _context(script, number)
            name = f"{script.id}/{number}/{index}"
            start, end = spans[number][index]
            request: dict[str, Any] = {
                "request_id": name,
                "model": "unknown",
                "input_tokens": step.prompt_tokens,
                "output_tokens": step.output_tokens,
                "request_received_ms": start // 1000,
            }
            if told:
                request["total_time_ms"] = end // 1000 - start // 1000
            request["replay"] = {
                "trace_block_size": self._blocks.block_tokens,
                "input_length": step.prompt_tokens,
                "input_sequence_hashes": ids[number][index],
            }
            events.append((end, _event("request_end", end, context, request=request)))
            if step.tool is not None:
                events.append(_tool_event(name, end, step.tool, step.tool_us, context))
        events.sort(key=lambda event: event[0])
        yield from (event for _, event in events)


def _context(script: WorkflowScript, number: int) -> dict[str, Any]:
    parent = script.sessions[number].parent
    context = {
        "session_type_id": script.agent_type,
        "session_id": script.id,
        "trajectory_id": f"{script.id}/{number}",
    }
    return (
        context if parent is None else {**context, "parent_trajectory_id": f"{script.id}/{parent}"}
    )


def _tool_event(
    request: str, at_us: int, name: str, tool_us: int, context: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    start, end = at_us // 1000, (at_us + tool_us) // 1000
    tool = {
        "tool_call_id": f"{request}/tool",
        "tool_class": name,
        "started_at_unix_ms": start,
        "ended_at_unix_ms": end,
        "duration_ms": end - start,
    }
    return at_us + tool_us, _event("tool_end", at_us + tool_us, context, tool=tool)


def _event(kind: str, at_us: int, context: dict[str, Any], **payload: Any) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "event_type": kind,
        "event_time_unix_ms": at_us // 1000,
        "event_source": "dynamo" if kind == "request_end" else "harness",
        "agent_context": context,
        **payload,
    }
