"""Requests as bytes, and what their refusals must look like."""

from __future__ import annotations

import asyncio
from typing import Any

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
DIALECTS = (CHAT, MESSAGES)
"""One path of each API whose errors have a form of their own."""


async def raw(url: str, *parts: bytes, pause_s: float = 0.0) -> tuple[int, dict[str, str], bytes]:
    """Sends bytes as they are; status, headers and body of the answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body
    finally:
        writer.close()


def request(target: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: h", *headers, "", ""]).encode(
        "latin-1"
    )


def refusal(path: str, document: Any) -> tuple[str, str]:
    """Type and message of an error, which must have the form of the path's API."""
    if path.startswith(MESSAGES):
        assert (document["type"], set(document)) == ("error", {"type", "error"})
        assert set(document["error"]) == {"type", "message"}
    else:
        assert set(document["error"]) == {"message", "type", "param", "code"}
    return document["error"]["type"], document["error"]["message"]
