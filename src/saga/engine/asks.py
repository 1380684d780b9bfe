"""What all APIs have in common: the fields of a request, and what is emulated for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from saga import wire
from saga.engine.exchange import ApiError
from saga.engine.generation import Generation, Hints
from saga.engine.tokens import Prompt, Role, Turn, Wish, text_part

MAX_ID: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, whichever API it came by."""

    model: str
    prompt: Prompt
    wish: Wish
    hints: Hints
    turns: tuple[Turn, ...] = ()
    """What a later request may continue from; empty for raw prompts."""
    priority: int = 0
    stream: bool = False
    include_usage: bool = False
    store: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer on its way: what the forms of the APIs are made from."""

    id: str
    """Without the API's prefix. Answers that are kept get ids that nobody can guess."""
    created: int
    """Unix time, seconds."""
    ask: Ask
    generation: Generation

    @property
    def prompt_tokens(self) -> int:
        return self.generation.prompt.num_tokens

    @property
    def output_tokens(self) -> int:
        return self.generation.answer.num_tokens

    @property
    def call_id(self) -> str:
        return f"call_{self.id}"


class Form(Protocol):
    """The shape of one API's answers."""

    id: str

    def __init__(self, reply: Reply) -> None: ...

    def whole(self) -> dict[str, Any]:
        """The answer in one piece, when it is complete."""
        ...

    def begin(self) -> bytes:
        """Events before the first text; the first token is there."""
        ...

    def text(self, delta: str) -> bytes:
        """Events for more text."""
        ...

    def end(self) -> bytes:
        """Events for a tool call, the usage and the end."""
        ...


# ---- fields


def whole_number(body: Mapping[str, Any], name: str, least: int) -> int | None:
    """An optional integer field. Raises ApiError."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ApiError(400, f"{name} must be an integer of at least {least}", param=name)
    return value


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """An optional boolean field. Raises ApiError."""
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false", param=name)
    return value


def seconds(value: Any, name: str) -> float:
    """A duration that is not negative. Raises ApiError."""
    number_ = number(value, name)
    if number_ < 0:
        raise ApiError(400, f"{name} must not be negative", param=name)
    return number_


def number(value: Any, name: str) -> float:
    """A finite number; texts are read as numbers. Raises ApiError."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not abs(result) < 1e12:
        raise ApiError(400, f"{name} must be a finite number", param=name)
    return result


def plain_id(value: Any) -> str | None:
    """The value if it can be an id; others are ignored, not cut."""
    fits = isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable()
    return value if fits else None


def objects(body: Mapping[str, Any], name: str) -> Sequence[dict[str, Any]]:
    """An optional list of objects. Raises ApiError."""
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ApiError(400, f"{name} must be a list of objects", param=name)
    return value


def content_parts(content: Any, param: str) -> tuple[bytes, ...]:
    """The parts of a message's content: its texts, and anything else as JSON. Raises ApiError."""
    if content is None:
        return ()
    if isinstance(content, str):
        return (text_part(content),) if content else ()
    if not isinstance(content, list):
        raise ApiError(400, "content must be a text or a list of parts", param=param)
    return tuple(_part(item) for item in content)


def _part(item: Any) -> bytes:
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        return text_part(item["text"])
    return msgspec.json.encode(item)


def role_of(message: Mapping[str, Any], roles: Mapping[str, Role], param: str) -> Role:
    """The role, by the name it has in the API. Raises ApiError."""
    role = message.get("role")
    if isinstance(role, str) and role in roles:
        return roles[role]
    raise ApiError(400, f"{param}: role must be one of {', '.join(roles)}", param=param)


def tools_turn(body: Mapping[str, Any]) -> list[Turn]:
    """The declared tools, as a chat template shows them to the model. Raises ApiError."""
    tools = objects(body, "tools")
    return [Turn("system", (msgspec.json.encode(tools),))] if tools else []


# ---- what is emulated


def xargs(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The extra arguments. Raises ApiError."""
    value = body.get(wire.HINTS_FIELD)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(400, f"{wire.HINTS_FIELD} must be an object", param=wire.HINTS_FIELD)
    return value


def read_hints(body: Mapping[str, Any], headers: Mapping[str, str]) -> Hints:
    """The session and what is said about its KV. Raises ApiError."""
    extra = xargs(body)
    ttl, score = extra.get(wire.HINT_TTL), extra.get(wire.HINT_SCORE)
    return Hints(
        session=plain_id(extra.get(wire.HINT_SESSION))
        or plain_id(body.get("session_id"))
        or plain_id(headers.get(wire.ENGINE_SESSION_HEADER)),
        ttl_s=None if ttl is None else seconds(ttl, wire.HINT_TTL),
        score=None if score is None else number(score, wire.HINT_SCORE),
        final=extra.get(wire.HINT_FINAL) in (True, 1, "1", "true"),
    )


def read_wish(body: Mapping[str, Any], *, max_tokens: int | None, tool: str | None) -> Wish:
    """How the answer is wanted; ``tool`` is the one to call unless forced. Raises ApiError."""
    forced = body.get(wire.EMULATE)
    if forced is None and isinstance(text := xargs(body).get(wire.EMULATE), str):
        try:
            forced = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ApiError(
                400, f"{wire.EMULATE} is not JSON: {error}", param=wire.EMULATE
            ) from error
    if not isinstance(forced, dict | None):
        raise ApiError(400, f"{wire.EMULATE} must be an object", param=wire.EMULATE)
    if forced is not None and "tool" in forced:
        tool = forced["tool"]
        if not isinstance(tool, str | None):
            raise ApiError(400, f"{wire.EMULATE}.tool must be a name or null", param=wire.EMULATE)
    return Wish(
        max_tokens=max_tokens,
        min_tokens=whole_number(body, "min_tokens", 0) or 0,
        ignore_eos=flag(body, "ignore_eos"),
        output_tokens=None if forced is None else whole_number(forced, "output_tokens", 1),
        tool=tool,
    )


def tool_to_call(
    names: Sequence[str], choice: Any, turns: Sequence[Turn], max_tool_calls: int
) -> str | None:
    """The tool that the choice names, else the first one, unless there were enough results."""
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function.get("name") if isinstance(function, dict) else choice.get("name")
        if isinstance(named, str):
            return named
        choice = choice.get("type")
    if choice == "none" or not names:
        return None
    results = 0
    for turn in reversed(turns):
        if turn.role == "user":
            break
        results += turn.role == "tool"
    return names[0] if results < max_tool_calls else None


def cache_salt(body: Mapping[str, Any]) -> str:
    """Raises ApiError."""
    salt = body.get("cache_salt")
    if salt is None:
        return ""
    if not isinstance(salt, str) or not 0 < len(salt) <= MAX_ID:
        raise ApiError(400, "Parameter 'cache_salt' must be a non-empty string", param="cache_salt")
    return salt
