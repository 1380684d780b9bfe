"""/v1/messages, as Anthropic defines it: requests, and the form of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from saga.engine.asks import (
    Ask,
    Reply,
    cache_salt,
    content_parts,
    flag,
    objects,
    read_hints,
    read_wish,
    role_of,
    tool_to_call,
    tools_turn,
    whole_number,
)
from saga.engine.exchange import ApiError, sse
from saga.engine.tokens import ARGUMENTS, Role, Turn, call_part, render

_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_STOP = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use"}


def message_turns(body: Mapping[str, Any]) -> list[Turn]:
    """The tools, the system prompt and the messages. Raises ApiError."""
    messages = objects(body, "messages")
    if not messages:
        raise ApiError(400, "messages: at least one message is required", param="messages")
    system = content_parts(body.get("system"), "system")
    turns = [*tools_turn(body), *([Turn("system", system)] if system else [])]
    for message in messages:
        turns += _message(message)
    return turns


def _message(message: dict[str, Any]) -> list[Turn]:
    """A message as turns: the results of tools are turns of their own."""
    role, content = role_of(message, _ROLES, "messages"), message.get("content")
    if not isinstance(content, list):
        return [Turn(role, content_parts(content, "messages"))]
    turns: list[Turn] = []
    parts: list[bytes] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            turns.append(Turn("tool", content_parts(block.get("content"), "messages")))
        elif kind == "tool_use":
            arguments = msgspec.json.encode(block.get("input", {})).decode()
            parts.append(call_part(str(block.get("name")), arguments))
        elif kind not in ("thinking", "redacted_thinking"):
            parts += content_parts([block], "messages")
    if parts or not turns:
        turns.append(Turn(role, tuple(parts)))
    return turns


def parse_messages(body: Mapping[str, Any], headers: Mapping[str, str], max_tool_calls: int) -> Ask:
    """Raises ApiError."""
    most = whole_number(body, "max_tokens", 1)
    if most is None:
        raise ApiError(400, "max_tokens: Field required", param="max_tokens")
    turns = message_turns(body)
    names = [str(tool.get("name")) for tool in objects(body, "tools")]
    tool = tool_to_call(names, body.get("tool_choice"), turns, max_tool_calls)
    return Ask(
        model=str(body.get("model") or ""),
        prompt=render(turns, salt=cache_salt(body)),
        wish=read_wish(body, max_tokens=most, tool=tool),
        hints=read_hints(body, headers),
        priority=whole_number(body, "priority", -(1 << 31)) or 0,
        stream=flag(body, "stream"),
    )


class MessagesForm:
    """Messages: ``input_tokens`` are those that did not come from the cache."""

    def __init__(self, reply: Reply) -> None:
        self.id = f"msg_{reply.id}"
        self._reply = reply
        self._answer = reply.generation.answer

    def whole(self) -> dict[str, Any]:
        content: list[Any] = []
        if self._answer.text:
            content.append({"type": "text", "text": self._answer.text})
        if self._answer.tool is not None:
            content.append(self._call())
        usage = self._usage(self._reply.output_tokens)
        return self._message(content, _STOP[self._answer.finish], usage)

    def begin(self) -> bytes:
        message = self._message([], None, self._usage(0))
        events = _event("message_start", message=message)
        if self._answer.text:
            block = {"type": "text", "text": ""}
            events += _event("content_block_start", index=0, content_block=block)
        return events + _event("ping")

    def text(self, delta: str) -> bytes:
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": delta})

    def end(self) -> bytes:
        events, index = b"", 0
        if self._answer.text:
            events, index = _event("content_block_stop", index=0), 1
        if self._answer.tool is not None:
            delta = {"type": "input_json_delta", "partial_json": ARGUMENTS}
            events += _event("content_block_start", index=index, content_block=self._call())
            events += _event("content_block_delta", index=index, delta=delta)
            events += _event("content_block_stop", index=index)
        stop: dict[str, Any] = {"stop_reason": _STOP[self._answer.finish], "stop_sequence": None}
        usage = self._usage(self._reply.output_tokens)
        return events + _event("message_delta", delta=stop, usage=usage) + _event("message_stop")

    def _call(self) -> dict[str, Any]:
        call_id = f"toolu_{self._reply.id}"
        return {"type": "tool_use", "id": call_id, "name": self._answer.tool, "input": {}}

    def _usage(self, output_tokens: int) -> dict[str, int]:
        cached = self._reply.generation.cached_tokens
        return {
            "input_tokens": self._reply.prompt_tokens - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": output_tokens,
        }

    def _message(
        self, content: list[Any], stop_reason: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._reply.ask.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "usage": usage,
        }


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind} | fields, kind)
