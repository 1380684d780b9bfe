"""Answers of engines as bytes, as each API has them, with a text and a tool call in each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saga.gateway.answer import Usage

Encode = Callable[[Any], str]


@dataclass(frozen=True)
class Recorded:
    body: bytes
    usage: Usage
    anthropic: bool = False


def spaced(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def recorded(text: str, encode: Encode = compact) -> Mapping[str, Recorded]:
    """One answer by each API, whole and streamed; ``text`` is what the model says."""
    completed = Usage(
        prompt_tokens=2006,
        output_tokens=300,
        cached_tokens=1920,
        tool=None,
        call_id=None,
        response_id="x-1",
    )
    ids = {"chat": "call-7", "responses": "call_8", "messages": "toolu-9", "completions": None}

    def told(name: str) -> Usage:
        call_id = ids[name.partition(" ")[0]]
        return completed._replace(tool=None if call_id is None else "look", call_id=call_id)

    streams = {
        "chat stream": _stream(_chat_events(text), encode, done=True),
        "completions stream": _stream(_completion_events(text), encode, done=True),
        "responses stream": _stream(_responses_events(text), encode),
    }
    wholes = {"chat": _chat(text), "completions": _completion(text), "responses": _response(text)}
    bodies = {name: encode(whole).encode() for name, whole in wholes.items()} | streams
    found = {name: Recorded(body, told(name)) for name, body in bodies.items()}
    anthropic = {
        "messages": encode(_message(text)).encode(),
        "messages stream": _stream(_messages_events(text), encode),
    }
    found |= {name: Recorded(body, told(name), anthropic=True) for name, body in anthropic.items()}
    return found


def _stream(events: list[dict[str, Any]], encode: Encode, *, done: bool = False) -> bytes:
    lines = []
    for event in events:
        named = f"event: {event['type']}\n" if "type" in event else ""
        lines.append(f"{named}data: {encode(event)}\n\n")
    return ("".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


# ---- OpenAI

_CALL = {"id": "call-7", "type": "function", "function": {"name": "look", "arguments": '{"a": {}}'}}
_USAGE = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920},
}


def _chat(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "tool_calls": [_CALL]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return {"id": "x-1", "model": "m", "choices": [choice], "usage": _USAGE}


def _chat_events(text: str) -> list[dict[str, Any]]:
    deltas = [
        {"role": "assistant", "content": ""},
        {"content": text},
        {"tool_calls": [{"index": 0, **_CALL}]},
    ]
    chunks = [{"id": "x-1", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return [*chunks, {"id": "x-1", "choices": [], "usage": _USAGE}]


def _completion(text: str) -> dict[str, Any]:
    return {"id": "x-1", "choices": [{"index": 0, "text": text}], "usage": _USAGE}


def _completion_events(text: str) -> list[dict[str, Any]]:
    chunk = {"id": "x-1", "choices": [{"index": 0, "text": text}]}
    return [chunk, {"id": "x-1", "choices": [], "usage": _USAGE}]


def _response(text: str, *, done: bool = True) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    call = {"arguments": '{"a": {}}', "call_id": "call_8", "name": "look", "type": "function_call"}
    usage = {
        "input_tokens": 2006,
        "input_tokens_details": {"cached_tokens": 1920},
        "output_tokens": 300,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 2306,
    }
    return {
        "id": "x-1",
        "object": "response",
        "output": [{"type": "message", "id": "m-1", "content": content}, call] if done else [],
        "tools": [{"type": "function", "name": "other", "parameters": {"properties": {}}}],
        "usage": usage if done else None,
    }


def _responses_events(text: str) -> list[dict[str, Any]]:
    return [
        {"type": "response.created", "response": _response(text, done=False)},
        {"type": "response.output_text.delta", "item_id": "m-1", "delta": text},
        {"type": "response.completed", "response": _response(text)},
    ]


# ---- Anthropic: ``input_tokens`` are those that did not come from the cache


def _message(text: str) -> dict[str, Any]:
    content = [
        {"type": "text", "text": text},
        {"type": "tool_use", "id": "toolu-9", "name": "look", "input": {"name": "nobody"}},
    ]
    return {"id": "x-1", "type": "message", "content": content, "usage": _anthropic_usage(300)}


def _messages_events(text: str) -> list[dict[str, Any]]:
    start = {"id": "x-1", "type": "message", "content": [], "usage": _anthropic_usage(1)}
    block = {"type": "tool_use", "id": "toolu-9", "name": "look", "input": {}}
    return [
        {"type": "message_start", "message": start},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_start", "index": 1, "content_block": block},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 300}},
        {"type": "message_stop"},
    ]


def _anthropic_usage(output_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": 80,
        "cache_creation_input_tokens": 6,
        "cache_read_input_tokens": 1920,
        "output_tokens": output_tokens,
    }
