"""One request and its reply, as an application sees them."""

from __future__ import annotations

import asyncio
import functools
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from saga.http.connection import Connection

Headers = list[tuple[bytes, bytes]]

_NO_BODY: Final = frozenset({204, 304})
_COPIED: Final = 64 * 1024
"""Longer pieces are not copied to put their framing around them."""
_IN_PLACE: Final = 1024 * 1024
"""Longer bodies have to come before memory is taken for them."""
_UNREAD: Final = 256 * 1024
"""Bytes of a body that may be here before anybody asks for it."""


class BodyTooLong(ValueError):
    """The body is longer than it may be."""


class BadRequest(Exception):
    """What came is no request, or none that is served. The server answers it with ``status``."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Request:
    """What a client asks for. Its body may still be on its way."""

    __slots__ = (
        "_body",
        "_complete",
        "_connection",
        "_most",
        "_place",
        "_size",
        "_waiter",
        "expects_continue",
        "head_size",
        "headers",
        "keeps_alive",
        "method",
        "path",
        "refusal",
        "takes_chunks",
        "target",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.method = ""
        self.target = ""
        """Path and query as they came, percent-encoded; ``*`` for all of the server."""
        self.path = ""
        """Decoded, without the query."""
        self.headers: dict[str, str] = {}
        """Names in lower case; what came in several lines is joined by commas."""
        self.head_size = 0
        """Bytes of the target and of all headers."""
        self.keeps_alive = True
        self.takes_chunks = True
        """Whether its client knows a body in chunks: HTTP/1.0 does not."""
        self.expects_continue = False
        self.refusal: BadRequest | None = None
        """Why it cannot be served, if it cannot."""
        self._connection = connection
        self._body: list[bytes] = []
        self._place: bytearray | None = None
        """What the rest of the body is read into, if it is wanted and its length is told."""
        self._size = 0
        self._complete = False
        self._most: int | None = None
        """How long its body may be, while somebody waits for it."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """Whether the whole of it has come."""
        return self._complete

    async def body(self, most: int, timeout_s: float) -> bytes:
        """The whole body. Raises BodyTooLong beyond ``most`` bytes, TimeoutError, and BadRequest,
        which an application leaves to the server."""
        if self._size > most or int(self.headers.get("content-length", 0)) > most:
            raise BodyTooLong
        if not self._complete:
            if self.expects_continue:
                self.expects_continue = False
                self._connection.say_continue()
            async with asyncio.timeout(timeout_s):
                await self._rest(most)
        if self._place is not None:
            self._body, self._place = [bytes(self._place)], None
        elif len(self._body) > 1:
            self._body = [b"".join(self._body)]
        return self._body[0] if self._body else b""

    async def _rest(self, most: int) -> None:
        self._most = most
        length = int(self.headers.get("content-length", 0))
        if self._size < length <= _IN_PLACE and self._place is None:
            self._place = bytearray(length)
            self._place[: self._size] = b"".join(self._body)
            self._body = []
        self._connection.read_on()
        try:
            while not self._complete:
                if self.refusal is not None:
                    raise self.refusal
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
                if self._size > most:
                    raise BodyTooLong
        finally:
            self._most = None

    # ---- called by its connection

    def add(self, data: bytes) -> None:
        self._body.append(data)
        self._size += len(data)
        if self._most is None:
            if self._size > _UNREAD:
                self._connection.wait_for_reader()
        elif self._size > self._most:
            self._wake()

    @property
    def room(self) -> memoryview | None:
        """Where the next bytes of the body belong, if they need not be copied there."""
        return None if self._place is None else memoryview(self._place)[self._size :]

    def filled(self, size: int) -> bool:
        """So many bytes were put into ``room``; whether the body is complete."""
        assert self._place is not None
        self._size += size
        return self._size == len(self._place)

    def finish(self) -> None:
        self._complete = True
        self._wake()

    def refuse(self, error: BadRequest) -> None:
        """What came of it is all that can be understood."""
        self.refusal = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Reply:
    """The answer to one request: ``start``, ``write`` as often as needed, ``end``.

    A head waits for the first bytes that follow it. What is written to a client that has left
    goes nowhere. Raises ValueError for a body that is not as long as its content-length says.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_connection",
        "_head",
        "_left",
        "_request",
        "ended",
        "started",
    )  # fmt: skip

    def __init__(self, connection: Connection, request: Request) -> None:
        self.started = False
        self.ended = False
        self._connection = connection
        self._request = request
        self._head = b""
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body that are still to be written, if its head says how many."""
        self._bodiless = request.method == "HEAD"

    def start(self, status: int, headers: Headers) -> None:
        """Header names are lower case; without a content-length the body is sent in chunks."""
        assert not self.started
        self.started = True
        request = self._request
        request.expects_continue = False  # this is the answer that it waits for
        self._bodiless = self._bodiless or status in _NO_BODY
        if status == 204:  # where there may be no length (RFC 9110, 8.6)
            headers = [header for header in headers if header[0] != b"content-length"]
        for name, value in headers:
            if name == b"content-length":
                self._left = int(value)
        lines = [_status_line(status), *map(b": ".join, headers)]
        if self._left is None and request.takes_chunks and not self._bodiless:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked")
        if not request.complete:
            self._connection.closes = True
        if self._connection.closes:
            lines.append(b"connection: close")
        self._head = b"\r\n".join(lines) + b"\r\n\r\n"

    def write(self, data: bytes) -> None:
        """Sends a piece of the body."""
        assert self.started and not self.ended
        if self._bodiless or not data:
            return
        before, after = self._head, b""
        if self._chunked:
            before, after = b"%b%x\r\n" % (before, len(data)), b"\r\n"
        elif self._left is not None:
            self._count(len(data))
        self._head = b""
        if len(data) < _COPIED:
            self._connection.send(before + data + after)
        else:
            for part in (before, data, after):
                self._connection.send(part)

    async def drain(self) -> None:
        """Returns when the client has taken most of what was written."""
        if self._connection.paused:
            await self._connection.drain()

    def end(self, data: bytes = b"") -> None:
        """The body is complete, with ``data`` as its last piece."""
        assert self.started and not self.ended
        if self._bodiless:
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        elif self._left is not None:
            self._count(len(data))
            if self._left:
                raise ValueError(f"the body is {self._left} bytes too short")
        self.ended = True
        if self._head or data:
            self._connection.send(self._head + data)
            self._head = b""

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer at once."""
        self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.end(body)

    def _count(self, size: int) -> None:
        assert self._left is not None
        if size > self._left:
            raise ValueError(f"the body is {size - self._left} bytes too long")
        self._left -= size


@functools.cache
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}".encode()
