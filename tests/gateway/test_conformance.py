"""The same calls, to an engine and through the gateway, give the same answers.

Two equal engines get the same calls in the same order, so that their caches agree; one of them is
asked through a gateway. Only what the gateway adds may differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.engine.factory import running
from tests.gateway.live import ask, fetch, gateway
from tests.serving import wait_until

QUESTION = [{"role": "user", "content": "What is in the folder? " * 20}]
CHAT = {"model": "m", "messages": [{"role": "system", "content": "Terse."}, *QUESTION]}
MESSAGES = {"model": "m", "max_tokens": 40, "system": "Terse.", "messages": QUESTION}
RESPONSE = {"model": "m", "instructions": "Terse.", "input": "What is there?", "store": False}
CALLS = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat with a tool": (
        "/v1/chat/completions",
        {**CHAT, "tools": [{"type": "function", "function": {"name": "ls", "parameters": {}}}]},
    ),
    "chat cut short": ("/v1/chat/completions", {**CHAT, "max_tokens": 3}),
    "chat in parts": (
        "/v1/chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "completion": ("/v1/completions", {"model": "m", "prompt": "Once upon a time", "seed": 1}),
    "completion in parts": (
        "/v1/completions",
        {"model": "m", "prompt": "Once upon a time", "stream": True},
    ),
    "response": ("/v1/responses", RESPONSE),
    "response with a tool in parts": (
        "/v1/responses",
        {**RESPONSE, "stream": True, "tools": [{"type": "function", "name": "ls"}]},
    ),
    "message": ("/v1/messages", MESSAGES),
    "message with a tool in parts": (
        "/v1/messages",
        {**MESSAGES, "stream": True, "tools": [{"name": "ls", "input_schema": {}}]},
    ),
    "message by a path with a query": ("/v1/messages?beta=true", MESSAGES),
    "tokens of a message": ("/v1/messages/count_tokens", MESSAGES),
    "embeddings": ("/v1/embeddings", {"model": "m", "input": ["one", "two"]}),
    "tokens": ("/tokenize", {"prompt": "one two three"}),
    "models": ("/v1/models", None),
    "no such model": ("/v1/models/org%2Fname", None),
    "no such route": ("/v1/nothing", {"a": 1}),
    "wrong method": ("/v1/chat/completions", None),
    "no messages": ("/v1/messages", {"model": "m", "max_tokens": 4, "messages": []}),
    "no prompt": ("/v1/completions", {"model": "m"}),
    "too long": ("/v1/chat/completions", {**CHAT, "max_tokens": 10**9}),
    "wrong role": ("/v1/chat/completions", {"messages": [{"role": "king", "content": "x"}]}),
}


@dataclass(frozen=True)
class Pair:
    direct: str
    through: str


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    # Time would decide which tokens share an event: here all that are there do.
    options: dict[str, Any] = {"speed": 1e6, "chunk_us": 10**9, "model": "m"}
    with (
        running(**options) as direct,
        running(**options) as behind,
        gateway(engines=[behind.url]) as live,
    ):
        wait_until(lambda: ask(f"{live.url}/readyz")[0] == 200)
        yield Pair(direct.url, live.url)


def headers_of(headers: dict[str, str]) -> dict[str, str]:
    """What the engine tells; dates, lengths and connections are the server's."""
    servers = ("date", "server", "connection", "transfer-encoding")
    lower = {name.lower(): value for name, value in headers.items()}
    return {
        name: value
        for name, value in lower.items()
        if name not in servers and not name.startswith("x-saga-")
    }


@pytest.mark.parametrize("name", CALLS)
def test_an_answer_is_the_engines_own_byte_for_byte(pair: Pair, name: str) -> None:
    path, body = CALLS[name]
    asked = {"x-request-id": "the-same-for-both", "x-session-id": f"session {name}"}
    direct = asyncio.run(fetch(pair.direct + path, body, headers=asked))
    through = asyncio.run(fetch(pair.through + path, body, headers=asked))
    assert through[:2] == direct[:2]
    assert headers_of(through[2]) == headers_of(direct[2])


def test_the_calls_are_of_all_kinds(pair: Pair) -> None:
    """Else the comparison above could be one of errors with errors."""
    statuses = {}
    for name, (path, body) in CALLS.items():
        statuses[name] = ask(pair.through + path, body)[0]
    refused = {name: status for name, status in statuses.items() if status != 200}
    assert refused == {
        "no such model": 404,
        "no such route": 404,
        "wrong method": 405,
        "no messages": 400,
        "no prompt": 400,
        "too long": 400,
        "wrong role": 400,
    }
