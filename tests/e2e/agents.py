"""An agent as most are: an unmodified SDK and a growing conversation, no word on sessions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import openai
from tests.e2e.processes import MODEL

TOOL_OUTPUT = 500
"""Letters, which are tokens, that a step adds to the context."""


@dataclass
class Agent:
    """What it says begins with its name, so that agents have nothing in common to cache."""

    client: openai.OpenAI
    name: str
    max_tokens: int = 16
    engines: list[str] = field(default_factory=list)
    """Where its steps ran."""
    cached: list[int] = field(default_factory=list)
    """Prompt tokens of each step that were in the engine's cache."""
    contexts: list[int] = field(default_factory=list)
    """Prompt and output tokens after each step."""
    messages: list[Any] = field(default_factory=list)

    def step(self) -> None:
        """Asks with all that was said before, and something new from a tool."""
        text = f"{self.name} has seen {len(self.contexts)}. ".ljust(TOOL_OUTPUT, ".")
        self.messages.append({"role": "user", "content": text})
        raw = self.client.chat.completions.with_raw_response.create(
            model=MODEL, messages=self.messages, max_tokens=self.max_tokens, temperature=0
        )
        reply = raw.parse()
        self.messages.append({"role": "assistant", "content": reply.choices[0].message.content})
        assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
        self.engines.append(raw.headers["x-saga-engine"])
        self.cached.append(reply.usage.prompt_tokens_details.cached_tokens or 0)
        self.contexts.append(reply.usage.total_tokens)

    def shares(self) -> list[float]:
        """Of the context before each step from the second on, what was still cached."""
        return [
            cached / before for cached, before in zip(self.cached[1:], self.contexts, strict=False)
        ]
