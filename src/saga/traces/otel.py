"""OpenTelemetry spans of GenAI calls, as OTLP in JSON: one export request per line.

The conventions are those of semconv 1.41 (GenAI: in development). A session is what happens under
one agent span, or in one conversation; what is nested in another agent's span is its sub-agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

import saga
from saga.traces.base import Line, ReadLog, RecordError, Times
from saga.traces.gather import Gathered, Gatherer, ToolSpan
from saga.traces.names import SessionNames
from saga.traces.records import MAX_TOKENS, decode
from saga.traces.script import WorkflowScript
from saga.traces.timeline import Call, instant_times

CALLS = {"chat", "text_completion", "generate_content"}
AGENTS = {"invoke_agent", "invoke_workflow"}
TOOL = "execute_tool"

OPERATION = "gen_ai.operation.name"
CONVERSATION = "gen_ai.conversation.id"
AGENT_NAME = "gen_ai.agent.name"
TOOL_NAME = "gen_ai.tool.name"
PROMPT = "gen_ai.usage.input_tokens"
OUTPUT = "gen_ai.usage.output_tokens"
CACHED = "gen_ai.usage.cache_read.input_tokens"
OLD_NAMES = {
    "gen_ai.usage.prompt_tokens": PROMPT,
    "gen_ai.usage.completion_tokens": OUTPUT,
}
"""What they were called before semconv 1.27."""

Nanoseconds = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Value(Struct, frozen=True, rename="camel"):
    string_value: str | None = None
    int_value: int | None = None


class Attribute(Struct):
    key: str
    value: Value = Value()


class Span(Struct, rename="camel"):
    trace_id: str
    span_id: str
    start_time_unix_nano: Nanoseconds
    end_time_unix_nano: Nanoseconds
    parent_span_id: str | None = None
    attributes: list[Attribute] = []


class ScopeSpans(Struct):
    spans: list[msgspec.Raw] = []


class ResourceSpans(Struct, rename="camel"):
    scope_spans: list[ScopeSpans] = []


class Export(Struct, rename="camel"):
    resource_spans: list[ResourceSpans]


_EXPORT = msgspec.json.Decoder(Export)
_SPAN = msgspec.json.Decoder(Span, strict=False)
"""Integers of 64 bits are strings in this JSON."""

Key = tuple[str, str]


@dataclass(slots=True, frozen=True)
class _Agent:
    """A span in which an agent, or a workflow of them, is at work."""

    key: Key
    conversation: str | None
    name: str | None
    line: int


@dataclass(slots=True, frozen=True)
class _Work:
    """A call or a tool."""

    parent: Key
    conversation: str | None
    line: int
    did: Call | ToolSpan


def read_otel(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """A workflow per outermost conversation, or per trace; ``submitted_us`` from the epoch."""
    reader = _Reader(log)
    for line in lines:
        try:
            exported = decode(line.text, _EXPORT)
        except RecordError as error:
            log.problem(line.number, str(error))
            continue
        for where, span in _spans_of(exported):
            try:
                reader.read(decode(span, _SPAN), line.number)
            except RecordError as error:
                log.problem(line.number, f"{where}: {error}")
    return reader.workflows()


def _spans_of(exported: Export) -> Iterator[tuple[str, bytes]]:
    """With where they stand."""
    for r, resource in enumerate(exported.resource_spans):
        for s, scope in enumerate(resource.scope_spans):
            for i, span in enumerate(scope.spans):
                yield f"resourceSpans[{r}].scopeSpans[{s}].spans[{i}]", bytes(span)


class _Reader:
    """Of a span is held what it was, when, and under which other: they come in any order."""

    def __init__(self, log: ReadLog) -> None:
        self.log = log
        self.parents: dict[Key, Key] = {}
        self.agents: dict[Key, _Agent] = {}
        self.work: list[_Work] = []
        self.called_in: dict[Key, str] = {}
        """The conversation of an agent's first call."""
        self.nearest: dict[Key, _Agent | None] = {}

    def read(self, span: Span, line: int) -> None:
        if span.end_time_unix_nano < span.start_time_unix_nano:
            raise RecordError(
                f"endTimeUnixNano is {span.end_time_unix_nano}, before the start "
                f"{span.start_time_unix_nano}"
            )
        key, parent = (span.trace_id, span.span_id), (span.trace_id, span.parent_span_id or "")
        self.parents[key] = parent
        told = {OLD_NAMES.get(one.key, one.key): one.value for one in span.attributes}
        operation = _text(told, OPERATION)
        conversation = _text(told, CONVERSATION)
        if operation in AGENTS:
            name = _text(told, AGENT_NAME) or _text(told, "gen_ai.workflow.name")
            self.agents[key] = _Agent(key, conversation, name, line)
        elif operation in CALLS:
            self.work.append(_Work(parent, conversation, line, _call(span, told)))
        elif operation == TOOL:
            start, end = span.start_time_unix_nano // 1000, span.end_time_unix_nano // 1000
            name = _text(told, TOOL_NAME)
            if name is None:
                raise RecordError(f"attribute {TOOL_NAME} is missing")
            self.work.append(_Work(parent, conversation, line, ToolSpan(start, end, name)))
        elif operation is not None:
            self.log.note("spans of other GenAI operations, passed over")
        else:
            self.log.note("spans of no GenAI operation, which tell only what they are part of")

    def workflows(self) -> Iterator[tuple[int, WorkflowScript]]:
        gatherer = Gatherer(self.log, "otel")
        for work in self.work:
            agent = self._agent_above(work.parent)
            if agent is not None and work.conversation is not None:
                self.called_in.setdefault(agent.key, work.conversation)
        for work in self.work:
            session = self._session(work, gatherer)
            if isinstance(work.did, Call):
                session.calls.append(work.did)
            else:
                session.tools.append(work.did)
        return gatherer.workflows()

    def _session(self, work: _Work, gatherer: Gatherer) -> Gathered:
        """That of the agent it is part of; else of its conversation; else of its trace."""
        trace, agents = work.parent[0], self._agents_above(work.parent)
        if not agents:
            name = trace if work.conversation is None else work.conversation
            session = gatherer.session(name, work.line)
            session.workflow = name
            return session
        top, conversation = agents[0], self._conversation(agents[0])
        name = "/".join(top.key) if conversation is None else conversation
        session = gatherer.session(name, top.line)
        session.agent_type = top.name
        session.workflow = trace if conversation is None else conversation
        for agent in agents[1:]:
            told = self._conversation(agent)
            name = "/".join(agent.key) if told is None or told == conversation else told
            below = gatherer.session(name, agent.line)
            if below is not session:
                below.parent, below.workflow = session.key, session.workflow
                below.agent_type = top.name
            session, conversation = below, conversation if told is None else told
        return session

    def _conversation(self, agent: _Agent) -> str | None:
        """Frameworks name it for an agent, or for its calls only."""
        return self.called_in.get(agent.key) if agent.conversation is None else agent.conversation

    def _agents_above(self, key: Key) -> list[_Agent]:
        """The agent spans that are or contain a span, the outermost first."""
        found: list[_Agent] = []
        agent = self._agent_above(key)
        while agent is not None and agent not in found:
            found.append(agent)
            agent = self._agent_above(self.parents[agent.key])
        return found[::-1]

    def _agent_above(self, key: Key) -> _Agent | None:
        """The innermost agent span that is or contains a span."""
        passed = []
        while key not in self.nearest:
            passed.append(key)
            self.nearest[key] = self.agents.get(key)
            if key in self.agents or key not in self.parents:
                break
            key = self.parents[key]
        found = self.nearest[key]
        self.nearest.update(dict.fromkeys(passed, found))
        return found


def _text(told: dict[str, Value], key: str) -> str | None:
    return told[key].string_value if key in told else None


def _number(told: dict[str, Value], key: str, least: int) -> int:
    value = told[key].int_value if key in told else None
    if value is None or not least <= value <= MAX_TOKENS:
        found = "missing" if value is None else f"{value}"
        raise RecordError(f"attribute {key} is {found}: Expected `int` >= {least}")
    return value


def _call(span: Span, told: dict[str, Value]) -> Call:
    return Call(
        prompt_tokens=_number(told, PROMPT, 1),
        output_tokens=_number(told, OUTPUT, 0),
        start_us=span.start_time_unix_nano // 1000,
        end_us=span.end_time_unix_nano // 1000,
        cached_tokens=_number(told, CACHED, 0) if CACHED in told else 0,
    )


# ---- writing


class OtelWriter:
    """One line per workflow, whose trace it is, with a span for each agent, call and tool."""

    header = ()
    leaves_out = (
        "tenants, time in tools without a name, prefixes, forks, what a prompt keeps if not the "
        "whole context before it"
    )

    def __init__(self) -> None:
        self._names = SessionNames()

    def rows(self, script: WorkflowScript, times: Times | None) -> Iterator[dict[str, Any]]:
        names = self._names.of(script)
        spans = list(_spans(script, names, instant_times(script) if times is None else times))
        scope = {"name": "saga", "version": saga.__version__}
        resource = {"attributes": _attributes({"service.name": "saga"})}
        yield {
            "resourceSpans": [
                {"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}
            ]
        }


def _spans(script: WorkflowScript, names: Sequence[str], times: Times) -> Iterator[dict[str, Any]]:
    trace = _id(16, script.id)
    last = max(end for session in times for _, end in session)
    for number, (session, spans) in enumerate(zip(script.sessions, times, strict=True)):
        conversation = names[number]
        agent: dict[str, str | int] = {OPERATION: "invoke_agent", CONVERSATION: conversation}
        if number == 0:
            agent[AGENT_NAME] = script.agent_type
        above = "" if session.parent is None else _id(8, script.id, session.parent)
        own = _id(8, script.id, number)
        end_us = last if number == 0 else spans[-1][1]
        yield _span(trace, own, above, (spans[0][0], end_us), agent)
        for index, (step, (start, end)) in enumerate(zip(session.steps, spans, strict=True)):
            call: dict[str, str | int] = {
                OPERATION: "chat",
                "gen_ai.provider.name": "saga",
                CONVERSATION: conversation,
                PROMPT: step.prompt_tokens,
                OUTPUT: step.output_tokens,
            }
            yield _span(trace, _id(8, script.id, number, index), own, (start, end), call)
            if step.tool is not None:
                tool = {OPERATION: TOOL, CONVERSATION: conversation, TOOL_NAME: step.tool}
                name = _id(8, script.id, number, index, "tool")
                yield _span(trace, name, own, (end, end + step.tool_us), tool)


def _span(
    trace: str, own: str, above: str, times: tuple[int, int], told: Mapping[str, str | int]
) -> dict[str, Any]:
    names = (told.get(key) for key in (OPERATION, AGENT_NAME, TOOL_NAME))
    span = {"traceId": trace, "spanId": own, "parentSpanId": above}
    if not above:
        del span["parentSpanId"]
    return {
        **span,
        "name": " ".join(str(name) for name in names if name is not None),
        "kind": 3 if told[OPERATION] == "chat" else 1,
        "startTimeUnixNano": str(times[0] * 1000),
        "endTimeUnixNano": str(times[1] * 1000),
        "attributes": _attributes(told),
    }


def _attributes(told: Mapping[str, str | int]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)}}
        if isinstance(value, int)
        else {"key": key, "value": {"stringValue": value}}
        for key, value in told.items()
    ]


def _id(num_bytes: int, *path: str | int) -> str:
    """Hexadecimal; the same for the same path."""
    return blake2b(repr(path).encode(), digest_size=num_bytes).hexdigest()
