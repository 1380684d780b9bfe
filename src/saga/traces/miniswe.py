"""mini-swe-agent's trajectories (``*.traj.json``): the messages of one task, in order.

A call is an assistant's message; what the agent observed follows. Times are those at which messages
were added: a call began when the message before it was there, and its tool ended with the last
observation. Both stand in the message or in its ``extra``, where they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from saga.traces.base import Line, ReadLog, RecordError, microseconds
from saga.traces.records import PromptTokens, Seconds, Tokens, decode
from saga.traces.reuse import kept_if_growing
from saga.traces.script import SessionScript, StepScript, WorkflowScript
from saga.traces.text import SIZED_BY_TEXT, tokens_of
from saga.traces.timeline import SHRUNK

KIND = "mini-swe-agent"

_COMMAND = re.compile(r"```(?:bash|mswea_bash_command)\s*\n(.*?)\n```", re.DOTALL)
_PROGRAM = re.compile(r"\s*(?:cd\s+\S+\s*(?:&&|;)\s*)?([\w.+-]{1,40})(?=\s|$)")


class Usage(Struct):
    """As chat completions and responses name it."""

    prompt_tokens: PromptTokens | None = None
    input_tokens: PromptTokens | None = None
    completion_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class Response(Struct):
    usage: Usage | None = None
    created: Seconds | None = None
    """To the second, and so used only where no message before has a time."""


class Action(Struct):
    command: str | None = None


class Extra(Struct):
    response: Response | None = None
    actions: list[Action] | None = None
    timestamp: Seconds | None = None


class Part(Struct):
    text: str | None = None


class Function(Struct):
    name: str


class ToolCall(Struct):
    function: Function | None = None


class Message(Struct):
    role: str | None = None
    object: str | None = None
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    timestamp: Seconds | None = None
    extra: Extra | None = None

    @property
    def is_call(self) -> bool:
        return self.role == "assistant" or self.object == "response"

    @property
    def at(self) -> float | None:
        """Seconds since the epoch."""
        if self.timestamp is not None or self.extra is None:
            return self.timestamp
        return self.extra.timestamp

    @property
    def text(self) -> str:
        said = self.content or ""
        return said if isinstance(said, str) else "".join(part.text or "" for part in said)

    @property
    def usage(self) -> Usage:
        known = self.extra and self.extra.response and self.extra.response.usage
        return known or Usage()


class Trajectory(Struct):
    messages: list[Message]
    instance_id: str | None = None


_TRAJECTORY = msgspec.json.Decoder(Trajectory)


@dataclass(slots=True)
class _Call:
    prompt_tokens: int
    output_tokens: int
    tool: str | None
    begun: float | None
    ended: float | None
    observed: float | None = None
    """When the last observation was there."""


def read_miniswe(lines: Iterable[Line], log: ReadLog) -> Iterator[tuple[int, WorkflowScript]]:
    """A workflow per trajectory; ``submitted_us`` counts from the epoch."""
    for line in lines:
        try:
            trajectory = decode(line.text, _TRAJECTORY)
            name = trajectory.instance_id
            if name is None:
                name = log.path.name.split(".")[0] + (f"-{line.number}" if line.number > 1 else "")
            yield line.number, _workflow(name, trajectory.messages, log)
        except RecordError as error:
            log.problem(line.number, str(error))


def _workflow(name: str, messages: Sequence[Message], log: ReadLog) -> WorkflowScript:
    calls = list(_calls(messages, log))
    if not calls:
        raise RecordError("messages: none is an assistant's")
    spans = tuple(
        (microseconds(call.begun), microseconds(max(call.begun, call.ended)))
        for call in calls
        if call.begun is not None and call.ended is not None
    )
    if len(spans) == len(calls):
        log.times.setdefault(name, (spans,))
    begun = calls[0].begun
    return WorkflowScript(
        id=name,
        sessions=(SessionScript(steps=tuple(_steps(calls, log))),),
        agent_type=KIND,
        submitted_us=None if begun is None else microseconds(begun),
    )


def _calls(messages: Sequence[Message], log: ReadLog) -> Iterator[_Call]:
    call: _Call | None = None
    num_chars, now = 0, None
    for message in messages:
        if message.is_call:
            if call is not None:
                yield call
            call = _call(message, num_chars, now, log)
        elif call is not None:
            call.observed = message.at if message.at is not None else call.observed
        num_chars += len(message.text)
        now = message.at
    if call is not None:
        yield call


def _call(message: Message, num_chars: int, begun: float | None, log: ReadLog) -> _Call:
    usage = message.usage
    prompt = usage.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
    output = usage.output_tokens if usage.completion_tokens is None else usage.completion_tokens
    if prompt is None or output is None:
        log.note(SIZED_BY_TEXT)
    response = message.extra and message.extra.response
    if begun is None and response:
        begun = response.created
    return _Call(
        prompt_tokens=max(tokens_of(num_chars), 1) if prompt is None else prompt,
        output_tokens=tokens_of(len(message.text)) if output is None else output,
        tool=_tool(message),
        begun=begun,
        ended=message.at,
    )


def _tool(message: Message) -> str | None:
    """The program that the (first) command begins with, if it is plain to see."""
    actions = (message.extra and message.extra.actions) or []
    commands = [action.command for action in actions if action.command is not None]
    commands += _COMMAND.findall(message.text) if not commands else []
    if commands and (program := _PROGRAM.match(commands[0])):
        return program[1]
    named = [call.function.name for call in message.tool_calls or [] if call.function is not None]
    return named[0] if named else ("bash" if commands else None)


def _steps(calls: Sequence[_Call], log: ReadLog) -> Iterator[StepScript]:
    before: tuple[int, int] | None = None
    for index, call in enumerate(calls):
        kept = 0 if before is None else kept_if_growing(call.prompt_tokens, before)
        if kept is None:
            log.note(SHRUNK)
        if call.output_tokens == 0:
            log.note("steps without output, played with 1 token")
        gap_us = 0 if index == len(calls) - 1 else _gap_us(call, log)
        yield StepScript(
            kept_tokens=kept or 0,
            new_tokens=call.prompt_tokens - (kept or 0),
            output_tokens=max(call.output_tokens, 1),
            tool=call.tool,
            tool_us=gap_us if call.tool is not None else 0,
            gap_us=gap_us,
        )
        before = call.prompt_tokens, call.output_tokens


def _gap_us(call: _Call, log: ReadLog) -> int:
    if call.ended is None or call.observed is None:
        log.note("gaps unknown, played as 0")
        return 0
    return microseconds(max(call.observed - call.ended, 0.0))
