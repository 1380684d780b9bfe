"""The requests that are played: chats as agents send them, ready to be written to a socket."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

SMALL, AGENT, LONG = 300, 32_000, 256_000
"""Bytes of a body: a first question, a step of an agent, a step late in its life."""
FRAME = 64
"""What a message has around its text, at most."""
NUM_SHARED = 2
"""Messages with which every conversation begins: the system prompt and the task."""

_PROSE = (
    "the test fails because import of module returned None while def run(self) -> int: "
    "for path in sorted(root.glob('**/*.py')): assert result == expected, message git diff "
    "src/core/scheduler.py line 118 Traceback (most recent call last): ValueError exit code 1"
)


def requests(number: int, size: int, *, stream: bool = False, named: bool = True) -> list[bytes]:
    """``number`` conversations of about ``size`` bytes, each with its own messages.

    ``named``: each request tells its session, in a header that engines and gateways know.
    """
    return [_request(f"bench-{at}", _body(at, size, stream), named) for at in range(number)]


def write(path: Path, all_requests: list[bytes]) -> None:
    """In the form that ``load.c`` reads."""
    sized = (struct.pack("=I", len(request)) + request for request in all_requests)
    path.write_bytes(b"".join(sized))


def _request(session: str, body: bytes, named: bool) -> bytes:
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: 127.0.0.1",
        "accept: application/json",
        "content-type: application/json",
        "user-agent: OpenAI/Python 2.0.0",
        "authorization: Bearer none",
        f"content-length: {len(body)}",
    ]
    if named:
        head.append(f"x-session-id: {session}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _body(number: int, size: int, stream: bool) -> bytes:
    rng = random.Random(number)
    shared = random.Random("shared")
    document = {"model": "fake", "stream": stream, "max_tokens": 512, "messages": []}
    messages: list[dict[str, str]] = []
    left = size - len(json.dumps(document))
    while left > FRAME:
        length = min(left, rng.randint(1_000, 4_000))
        author = shared if len(messages) < NUM_SHARED and size > SMALL else rng
        role = (
            "system" if not messages and size > SMALL else ("user", "assistant")[len(messages) % 2]
        )
        messages.append({"role": role, "content": _text(author, length - FRAME)})
        left -= len(json.dumps(messages[-1])) + 2
    document["messages"] = messages
    return json.dumps(document).encode()


def _text(rng: random.Random, size: int) -> str:
    """Words in lines, so that some characters are escaped, as in code and in tools' output."""
    words = _PROSE.split()
    parts: list[str] = []
    length = 0
    while length < size:
        parts.append(rng.choice(words) + ("\n" if rng.random() < 0.1 else " "))
        length += len(parts[-1])
    return "".join(parts)[:size]
