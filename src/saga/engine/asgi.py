"""Just enough of ASGI: one HTTP request, its answer, and what can go wrong with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES = 64 * 1024 * 1024


class ApiError(Exception):
    """A request that is refused, with the HTTP status and what was wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


class Request:
    """One HTTP request. It is answered with ``respond`` or with a stream, once."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self._receive = receive
        self._send = send

    async def json(self) -> dict[str, Any]:
        """The body, which must be a JSON object. Raises ApiError 400 or 413."""
        try:
            body = msgspec.json.decode(await self._body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"There was an error parsing the body: {error}") from error
        if not isinstance(body, dict):
            raise ApiError(400, "The body must be a JSON object")
        return body

    async def _body(self) -> bytes:
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > MAX_BODY_BYTES:
                raise ApiError(413, f"The body is longer than {MAX_BODY_BYTES} bytes")
            more = message.get("more_body", False)
        return b"".join(chunks)

    async def disconnected(self) -> None:
        """Returns when the client has left. The body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(self, status: int, content: Any) -> None:
        await self.respond_bytes(status, msgspec.json.encode(content), "application/json")

    async def respond_bytes(self, status: int, body: bytes, content_type: str) -> None:
        await self._start(status, content_type, [(b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self) -> None:
        """Server-sent events follow, by ``send``."""
        await self._start(
            200, "text/event-stream; charset=utf-8", [(b"cache-control", b"no-cache")]
        )

    async def send(self, events: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": events, "more_body": more})

    async def _start(
        self, status: int, content_type: str, headers: list[tuple[bytes, bytes]]
    ) -> None:
        headers = [(b"content-type", content_type.encode()), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + msgspec.json.encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"
