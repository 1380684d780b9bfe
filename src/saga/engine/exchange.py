"""One request to the engine and its answer, and what can go wrong with it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from saga.http import exchange as http

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
BODY_TIMEOUT_S: Final = 60.0


class ApiError(Exception):
    """A request that is refused, with the HTTP status and what was wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


class Request:
    """One HTTP request. It is answered with ``respond`` or with a stream, once."""

    def __init__(self, request: http.Request, reply: http.Reply) -> None:
        self.method = request.method
        self.path = request.path
        self.headers = request.headers
        self._request = request
        self._reply = reply

    async def json(self) -> dict[str, Any]:
        """The body, which must be a JSON object. Raises ApiError 400, 408 or 413."""
        try:
            body = msgspec.json.decode(await self._body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(400, f"There was an error parsing the body: {error}") from error
        if not isinstance(body, dict):
            raise ApiError(400, "The body must be a JSON object")
        return body

    async def _body(self) -> bytes:
        try:
            return await self._request.body(MAX_BODY_BYTES, BODY_TIMEOUT_S)
        except http.BodyTooLong:
            raise ApiError(413, f"The body is longer than {MAX_BODY_BYTES} bytes") from None
        except TimeoutError:
            raise ApiError(408, f"The body did not come within {BODY_TIMEOUT_S:g} s") from None

    def respond(self, status: int, content: Any) -> None:
        self.respond_bytes(status, msgspec.json.encode(content), "application/json")

    def respond_bytes(self, status: int, body: bytes, content_type: str) -> None:
        self._reply.respond(status, [(b"content-type", content_type.encode())], body)

    def start_stream(self) -> None:
        """Server-sent events follow, by ``send``, and then ``end``."""
        kind = (b"content-type", b"text/event-stream; charset=utf-8")
        self._reply.start(200, [kind, (b"cache-control", b"no-cache")])

    async def send(self, events: bytes) -> None:
        self._reply.write(events)
        await self._reply.drain()

    def end(self, events: bytes) -> None:
        self._reply.end(events)


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    name = b"" if event is None else b"event: " + event.encode() + b"\n"
    return name + b"data: " + msgspec.json.encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"
