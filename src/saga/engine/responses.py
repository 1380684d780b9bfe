"""/v1/responses: requests, the form of their answers, and the answers that are kept."""

from __future__ import annotations

from collections import OrderedDict
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
from saga.engine.tokens import ARGUMENTS, Role, Turn, call_part, render, text_part

MAX_RESPONSES = 4_096
MAX_RESPONSE_BYTES = 256 * 1024 * 1024
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class ResponseStore:
    """Answers that a later request may continue from, the oldest out."""

    def __init__(
        self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_RESPONSE_BYTES
    ) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[dict[str, Any], tuple[Turn, ...], int]] = OrderedDict()
        self._bytes = 0

    def put(self, response: dict[str, Any], turns: tuple[Turn, ...]) -> None:
        size = sum(len(part) for turn in turns for part in turn.parts)
        self._kept[response["id"]] = (response, turns, size)
        self._bytes += size
        while len(self._kept) > self._max_responses or self._bytes > self._max_bytes:
            _, (_, _, size) = self._kept.popitem(last=False)
            self._bytes -= size

    def response(self, id: str) -> dict[str, Any]:
        """Raises ApiError 404."""
        return self._get(id)[0]

    def turns(self, id: str) -> tuple[Turn, ...]:
        """The conversation up to this answer, instructions left out. Raises ApiError 404."""
        return self._get(id)[1]

    def _get(self, id: str) -> tuple[dict[str, Any], tuple[Turn, ...], int]:
        try:
            return self._kept[id]
        except KeyError:
            message = f"Response with id '{id}' not found."
            raise ApiError(404, message, param="response_id") from None


def parse_response(
    body: Mapping[str, Any], headers: Mapping[str, str], max_tool_calls: int, store: ResponseStore
) -> Ask:
    """Raises ApiError."""
    previous = body.get("previous_response_id")
    turns = [*(store.turns(str(previous)) if previous else ()), *_input(body.get("input"))]
    instructions = content_parts(body.get("instructions"), "instructions")
    before = [*tools_turn(body), *([Turn("system", instructions)] if instructions else [])]
    tools = objects(body, "tools")
    names = [str(tool.get("name")) for tool in tools if tool.get("type") == "function"]
    tool = tool_to_call(names, body.get("tool_choice"), turns, max_tool_calls)
    most = whole_number(body, "max_output_tokens", 1)
    return Ask(
        model=str(body.get("model") or ""),
        prompt=render([*before, *turns], salt=cache_salt(body)),
        wish=read_wish(body, max_tokens=most, tool=tool),
        hints=read_hints(body, headers),
        turns=tuple(turns),
        priority=whole_number(body, "priority", -(1 << 31)) or 0,
        stream=flag(body, "stream"),
        store=body.get("store") is not False,
    )


def _input(items: Any) -> list[Turn]:
    if isinstance(items, str):
        return [Turn("user", (text_part(items),))]
    if not isinstance(items, list) or not items:
        raise ApiError(400, "input must be a text or a list of items", param="input")
    turns = [_item(item) for item in items]
    return [turn for turn in turns if turn is not None]


def _item(item: Any) -> Turn | None:
    """One item as a turn; reasoning is not shown to the model again."""
    if not isinstance(item, dict):
        raise ApiError(400, "input must be a list of objects", param="input")
    kind = item.get("type", "message")
    if kind == "message":
        role = role_of(item, _ROLES, "input")
        return Turn(role, content_parts(item.get("content"), "input"))
    if kind == "function_call":
        call = call_part(str(item.get("name")), str(item.get("arguments", "")))
        return Turn("assistant", (call,))
    if kind == "function_call_output":
        return Turn("tool", content_parts(item.get("output"), "input"))
    return None if kind == "reasoning" else Turn("user", (msgspec.json.encode(item),))


class ResponsesForm:
    """Responses, as objects and as events."""

    def __init__(self, reply: Reply) -> None:
        self.id = f"resp_{reply.id}"
        self._reply = reply
        self._answer = reply.generation.answer
        self._number = 0
        self._item_id = f"msg_{reply.id}"
        self._call_item_id = f"fc_{reply.id}"

    def whole(self) -> dict[str, Any]:
        output = [self._message("completed")] if self._answer.text else []
        if self._answer.tool is not None:
            output.append(self._call("completed", ARGUMENTS))
        cut = self._answer.finish == "length"
        return self._response("incomplete" if cut else "completed", output) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": self._reply.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": self._reply.generation.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": self._reply.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self._reply.prompt_tokens + self._reply.output_tokens,
            },
        }

    def begin(self) -> bytes:
        started = self._response("in_progress", [])
        events = self._event("response.created", response=started)
        events += self._event("response.in_progress", response=started)
        if not self._answer.text:
            return events
        item = self._message("in_progress") | {"content": []}
        events += self._event("response.output_item.added", output_index=0, item=item)
        return events + self._part_event("response.content_part.added", part=_text(""))

    def text(self, delta: str) -> bytes:
        return self._part_event("response.output_text.delta", delta=delta, logprobs=[])

    def end(self) -> bytes:
        events = b""
        if self._answer.text:
            text = self._answer.text
            events += self._part_event("response.output_text.done", text=text, logprobs=[])
            events += self._part_event("response.content_part.done", part=_text(text))
            item = self._message("completed")
            events += self._event("response.output_item.done", output_index=0, item=item)
        if self._answer.tool is not None:
            events += self._call_events(1 if self._answer.text else 0)
        whole = self.whole()
        return events + self._event(f"response.{whole['status']}", response=whole)

    def _call_events(self, index: int) -> bytes:
        place: dict[str, Any] = {"output_index": index}
        inside = place | {"item_id": self._call_item_id}
        added, done = self._call("in_progress", ""), self._call("completed", ARGUMENTS)
        arguments = "response.function_call_arguments"
        return (
            self._event("response.output_item.added", **place, item=added)
            + self._event(f"{arguments}.delta", **inside, delta=ARGUMENTS)
            + self._event(f"{arguments}.done", **inside, name=done["name"], arguments=ARGUMENTS)
            + self._event("response.output_item.done", **place, item=done)
        )

    def _response(self, status: str, output: list[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._reply.created,
            "status": status,
            "model": self._reply.ask.model,
            "output": output,
            "error": None,
            "incomplete_details": None,
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }

    def _message(self, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_text(self._answer.text)],
        }

    def _call(self, status: str, arguments: str) -> dict[str, Any]:
        return {
            "id": self._call_item_id,
            "type": "function_call",
            "call_id": self._reply.call_id,
            "name": self._answer.tool,
            "arguments": arguments,
            "status": status,
        }

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = sse({"type": kind, "sequence_number": self._number} | fields, kind)
        self._number += 1
        return event


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def continued(ask: Ask, reply: Reply) -> tuple[Turn, ...]:
    """The conversation with the answer: what ``previous_response_id`` continues from."""
    return (*ask.turns, reply.generation.answer.turn)
