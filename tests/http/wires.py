"""A connection without a network, in a loop whose clock can be put forward."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from itertools import pairwise
from typing import Any, TypeVar

from saga.http.connection import Application, Bounds, Connection
from saga.http.exchange import Reply, Request
from saga.http.server import Server

T = TypeVar("T")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABk")
"""An offer of another protocol, as Java's client makes it."""


class ShiftedLoop(asyncio.SelectorEventLoop):
    """Its clock is as far ahead as a test says."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def shifted(scenario: Coroutine[Any, Any, T]) -> T:
    """What it returns. Nothing may go wrong where nobody looks."""
    unseen: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=ShiftedLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: unseen.append(context))
        result = runner.run(scenario)
    assert not unseen
    return result


async def pass_time(seconds: float) -> None:
    """Puts the clock forward, and lets all run that is due."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ShiftedLoop)
    loop.ahead_s += seconds
    await settle()


async def settle() -> None:
    """Lets everything run that can, but for what waits for time or a network."""
    for _ in range(20):
        await asyncio.sleep(0)


class Socket:
    """All that a connection wants of one."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int]] = []
        """Those that were set."""

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        self.options.append((level, option))


class Wire(asyncio.Transport):
    """A transport whose other end is the test. What it is sent while nobody reads waits."""

    def __init__(self) -> None:
        self.socket = Socket()
        super().__init__({"socket": self.socket})
        self.written = b""
        self.unsent = 0
        """Bytes that the client has not taken."""
        self.reading = True
        self.at_eof = False
        """Whether the client has seen the end."""
        self.closing = False
        self.aborted = False
        self.lost = False
        self._pending: list[bytes] = []
        self._left = False
        self.protocol: Connection

    @property
    def num_pending(self) -> int:
        """Pieces that wait to be read."""
        return len(self._pending)

    # ---- what the client does

    def feed(self, *pieces: bytes) -> None:
        self._pending += pieces
        while self._pending and self.reading and not self.closing:
            self._give(self._pending.pop(0))
        if self._left and self.reading and not self.closing:
            self.protocol.eof_received()
            self.close()

    def _give(self, piece: bytes) -> None:
        """As much as is asked for goes first; the rest as if it had come later."""
        room = self.protocol.get_buffer(-1)
        size = min(len(room), len(piece))
        assert size or not piece, "it asks for nothing"
        room[:size] = piece[:size]
        if size < len(piece):
            self._pending.insert(0, piece[size:])
        self.protocol.buffer_updated(size)

    def leave(self) -> None:
        """Says that no more will come."""
        self._left = True
        self.feed()

    def take_nothing(self, unsent: int = 100_000) -> None:
        """Reads no more, with so much on its way."""
        self.unsent = unsent
        self.protocol.pause_writing()

    def take_all(self) -> None:
        self.unsent = 0
        self.protocol.resume_writing()
        if self.closing:
            self._end()

    # ---- what the connection asks for

    def write(self, data: Any) -> None:
        assert not (self.at_eof or self.lost)
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        asyncio.get_running_loop().call_soon(self.feed)

    def write_eof(self) -> None:
        self.at_eof = True

    def close(self) -> None:
        self.closing = True
        if not self.unsent:
            self._end()

    def abort(self) -> None:
        self.closing = self.aborted = True
        self._end()

    def _end(self) -> None:
        asyncio.get_running_loop().call_soon(self._lose)

    def _lose(self) -> None:
        if not self.lost:
            self.lost = self.at_eof = True
            self.protocol.connection_lost(None)


def wired(application: Application, bounds: Bounds | None = None) -> Wire:
    """A client's end of a connection to a server of its own. To be called inside an event loop."""
    return wired_to(Server(application, bounds))


def wired_to(server: Server) -> Wire:
    wire = Wire()
    wire.protocol = Connection(server)
    wire.protocol.connection_made(wire)
    return wire


class Echo:
    """Answers with method, target and body of what it was asked, and remembers it."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.requests: list[Request] = []
        self._most = most

    async def __call__(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        body = await request.body(self._most, 60.0)
        reply.respond(200, [], echo(request.method, request.target, body))


def echo(method: str, target: str, body: bytes = b"") -> bytes:
    return f"{method} {target} ".encode() + body


class Held:
    """Answers one request after the other, each when it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self._may = asyncio.Semaphore(0)

    def answer_one(self) -> None:
        self._may.release()

    async def __call__(self, request: Request, reply: Reply) -> None:
        self.begun.append(request.target)
        try:
            await self._may.acquire()
            body = await request.body(1 << 26, 60.0)
        except asyncio.CancelledError:
            self.cancelled.append(request.target)
            raise
        reply.respond(200, [], echo(request.method, request.target, body))


async def exchanged(*pieces: bytes, answer: Application | None = None) -> bytes:
    """What a client gets that sends these pieces at once and reads to the end of the answers."""
    wire = wired(answer or Echo())
    wire.feed(*pieces)
    await settle()
    return wire.written


def get(target: str, *headers: str, version: str = "1.1") -> bytes:
    return ask("GET", target, *headers, version=version)


def ask(method: str, target: str, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """A request with the length of its body."""
    lines = [f"{method} {target} HTTP/{version}", "host: h", *headers]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def ok(body: bytes, *, close: bool = False, head: bool = False) -> bytes:
    """What ``respond`` makes of it."""
    last = b"connection: close\r\n" if close else b""
    length = b"content-length: %d\r\n" % len(body)
    return b"HTTP/1.1 200 OK\r\n" + length + last + b"\r\n" + (b"" if head else body)


def statuses(written: bytes) -> list[int]:
    """Of the answers in it, which must be whole and have lengths."""
    return [status for status, _ in answers(written)]


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each. There must be nothing between them."""
    found = []
    while written:
        head, end, rest = written.partition(b"\r\n\r\n")
        assert end, "half a head"
        first, *lines = head.split(b"\r\n")
        assert first.startswith(b"HTTP/1.1 ")
        headers = dict(line.split(b": ") for line in lines)
        length = int(headers.get(b"content-length", 0))
        assert len(rest) >= length, "half a body"
        if first != CONTINUE.strip():
            found.append((int(first.split()[1]), rest[:length]))
        written = rest[length:]
    return found


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    for start, end in pairwise(ends):
        yield data[start:end]
