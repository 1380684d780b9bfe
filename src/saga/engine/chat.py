"""/v1/chat/completions and /v1/completions: requests, and the form of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from saga.engine.exchange import DONE, ApiError, sse
from saga.engine.tokens import (
    ARGUMENTS,
    Prompt,
    Role,
    Turn,
    call_part,
    from_token_ids,
    raw_prompt,
    render,
    text_part,
)

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_FINISH = {"stop": "stop", "length": "length", "tool": "tool_calls"}


def chat_turns(body: Mapping[str, Any]) -> list[Turn]:
    """The tools and messages of a chat. Raises ApiError."""
    messages = objects(body, "messages")
    if not messages:
        raise ApiError(400, "messages must be a list with at least one message", param="messages")
    return [*tools_turn(body), *map(_message, messages)]


def _message(message: dict[str, Any]) -> Turn:
    role = role_of(message, _ROLES, "messages")
    parts = content_parts(message.get("content"), "messages")
    for call in objects(message, "tool_calls"):
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        parts += (call_part(str(function.get("name")), str(function.get("arguments", ""))),)
    return Turn(role, parts)


def parse_chat(body: Mapping[str, Any], headers: Mapping[str, str], max_tool_calls: int) -> Ask:
    """Raises ApiError."""
    turns = chat_turns(body)
    functions = [tool.get("function") for tool in objects(body, "tools")]
    names = [str(function.get("name")) for function in functions if isinstance(function, dict)]
    tool = tool_to_call(names, body.get("tool_choice"), turns, max_tool_calls)
    most = whole_number(body, "max_completion_tokens", 1) or whole_number(body, "max_tokens", 1)
    return _ask(body, headers, render(turns, salt=cache_salt(body)), most, tool)


def parse_completion(
    body: Mapping[str, Any], headers: Mapping[str, str], max_tool_calls: int
) -> Ask:
    """Raises ApiError."""
    prompt = raw_prompt(_raw_text(body.get("prompt")), salt=cache_salt(body))
    most = whole_number(body, "max_tokens", 1) or 16  # the API's default
    return _ask(body, headers, prompt, most, None)


def _ask(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    prompt: Prompt,
    max_tokens: int | None,
    tool: str | None,
) -> Ask:
    if (whole_number(body, "n", 1) or 1) > 1:
        raise ApiError(400, "only n=1 is emulated", param="n")
    options = body.get("stream_options")
    return Ask(
        model=str(body.get("model") or ""),
        prompt=prompt,
        wish=read_wish(body, max_tokens=max_tokens, tool=tool),
        hints=read_hints(body, headers),
        priority=whole_number(body, "priority", -(1 << 31)) or 0,
        stream=flag(body, "stream"),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _raw_text(prompt: Any) -> bytes:
    """One prompt: a text or token ids, by itself or as the only one of a list."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return text_part(prompt)
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return from_token_ids(prompt)
    raise ApiError(400, "prompt must be one text or one list of token ids", param="prompt")


def usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.prompt_tokens + reply.output_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.generation.cached_tokens},
    }


class ChatForm:
    """Chat completions."""

    def __init__(self, reply: Reply) -> None:
        self.id = f"chatcmpl-{reply.id}"
        self._reply = reply
        self._answer = reply.generation.answer

    def whole(self) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": self._answer.text or None,
            "tool_calls": [self._call(self._answer.tool)] if self._answer.tool else [],
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _FINISH[self._answer.finish],
        }
        return self._object("chat.completion", [choice]) | {"usage": usage(self._reply)}

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, delta: str) -> bytes:
        return self._chunk({"content": delta})

    def end(self) -> bytes:
        call = b""
        if self._answer.tool is not None:
            call = self._chunk({"tool_calls": [{"index": 0} | self._call(self._answer.tool)]})
        last = self._chunk({}, _FINISH[self._answer.finish])
        if not self._reply.ask.include_usage:
            return call + last + DONE
        total = self._object("chat.completion.chunk", []) | {"usage": usage(self._reply)}
        return call + last + sse(total) + DONE

    def _call(self, name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": ARGUMENTS}
        return {"id": self._reply.call_id, "type": "function", "function": function}

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse(self._object("chat.completion.chunk", [choice]))

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return _object(self.id, self._reply, kind, choices)


class CompletionForm:
    """Completions of raw prompts."""

    def __init__(self, reply: Reply) -> None:
        self.id = f"cmpl-{reply.id}"
        self._reply = reply
        self._answer = reply.generation.answer

    def whole(self) -> dict[str, Any]:
        choices = [self._choice(self._answer.text, _FINISH[self._answer.finish])]
        completion = _object(self.id, self._reply, "text_completion", choices)
        return completion | {"usage": usage(self._reply)}

    def begin(self) -> bytes:
        return b""

    def text(self, delta: str) -> bytes:
        return self._chunk([self._choice(delta, None)])

    def end(self) -> bytes:
        last = self._chunk([self._choice("", _FINISH[self._answer.finish])])
        if self._reply.ask.include_usage:
            last += self._chunk([], usage=usage(self._reply))
        return last + DONE

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    def _chunk(self, choices: list[Any], **more: Any) -> bytes:
        return sse(_object(self.id, self._reply, "text_completion", choices) | more)


def _object(id: str, reply: Reply, kind: str, choices: list[Any]) -> dict[str, Any]:
    return {
        "id": id,
        "object": kind,
        "created": reply.created,
        "model": reply.ask.model,
        "choices": choices,
    }
