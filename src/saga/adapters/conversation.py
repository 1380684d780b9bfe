"""The messages of one session, as long as its script says: four bytes a token.

Sizes are exact for the emulated engine's chat template: a turn is a token that names its role, its
text, and a token that ends it; one more token lets the assistant speak.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import shake_128
from typing import Any, Final

from saga.traces import StepScript

TOKEN_BYTES: Final = 4
_TURN: Final = 2
"""Tokens around the text of a turn."""
_REPLY: Final = 1


@dataclass(frozen=True, slots=True)
class _Message:
    body: dict[str, Any]
    tokens: int
    """With those around its text."""


class Conversation:
    """Grows by a prompt and an answer at each step. Texts depend on ``name`` alone."""

    def __init__(self, name: str, messages: tuple[_Message, ...] = ()) -> None:
        self._name = name
        self._messages = list(messages)
        self._numbers = 0

    @classmethod
    def begin(cls, name: str, prefix: str | None, prefix_tokens: int) -> Conversation:
        """Behind a system prompt that all conversations with that prefix share."""
        conversation = cls(name)
        if prefix is not None and prefix_tokens > _TURN:
            content = _text(f"prefix {prefix}", prefix_tokens - _TURN)
            body = {"role": "system", "content": content}
            conversation._messages.append(_Message(body, prefix_tokens))
        return conversation

    def fork(self, name: str) -> Conversation:
        """Another conversation that begins with all that was said in this one."""
        return Conversation(name, tuple(self._messages))

    @property
    def messages(self) -> list[Any]:
        """As chat completions take them."""
        return [message.body for message in self._messages]

    def ask(self, step: StepScript) -> None:
        """Keeps as many tokens as the step does, and appends its new ones: the result of the tool
        that was called last, or else what the user says."""
        self._cut(step.kept_tokens)
        kept = sum(message.tokens for message in self._messages)
        size = max(1, step.prompt_tokens - kept - _TURN - _REPLY)
        self._numbers += 1
        body: dict[str, Any] = {"role": "user"}
        calls = self._messages[-1].body.get("tool_calls") if self._messages else None
        if calls:
            body = {"role": "tool", "tool_call_id": calls[0]["id"]}
        body["content"] = _text(f"{self._name} {self._numbers}", size)
        self._messages.append(_Message(body, size + _TURN))

    def answer(self, message: dict[str, Any], output_tokens: int) -> None:
        """Appends what the assistant said, which the engine counted as so many tokens."""
        self._messages.append(_Message(message, output_tokens + _TURN))

    def _cut(self, tokens: int) -> None:
        """Leaves the first tokens; a message that reaches beyond them is cut off."""
        whole = 0
        for index, message in enumerate(self._messages):
            if whole + message.tokens > tokens + 1:  # the token that ends a turn is soon there
                room = tokens - whole - 1
                del self._messages[index:]
                if room > 0:
                    self._messages.append(_shortened(message, room))
                return
            whole += message.tokens


def _shortened(message: _Message, tokens: int) -> _Message:
    text = (message.body["content"] or "")[: tokens * TOKEN_BYTES]
    body = {"role": message.body["role"], "content": text}
    if "tool_call_id" in message.body:
        body["tool_call_id"] = message.body["tool_call_id"]
    return replace(message, body=body, tokens=-(-len(text) // TOKEN_BYTES) + _TURN)


def _text(seed: str, tokens: int) -> str:
    return shake_128(seed.encode()).hexdigest(tokens * TOKEN_BYTES // 2)
