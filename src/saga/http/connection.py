"""A client's connection: its requests are answered, one after the other, until it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast

from saga.http.exchange import BadRequest, Reply, Request
from saga.http.reader import Reader

if TYPE_CHECKING:
    from saga.http.server import Server

logger = logging.getLogger(__name__)

_LINGER_S: Final = 30.0
"""For how long a client may go on to send what nobody reads, so that it reads its answer first: a
connection that is closed over unread bytes is reset, and the answer with it."""
_READ_AHEAD: Final = 4
"""Requests that may be here before the first one is answered. Then nothing more is read."""
_RESET: Final = struct.pack("ii", 1, 0)
_TEXT: Final = [(b"content-type", b"text/plain")]


class Application(Protocol):
    async def __call__(self, request: Request, reply: Reply, /) -> None:
        """Answers a request. Cancelled when its client leaves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a client may take."""

    head_bytes: int = 1024 * 1024
    """Of a head, and of trailers: what comes in a row and brings no body."""
    head_s: float = 30.0
    """From the first byte of a head to its end."""
    idle_s: float = 75.0
    """Between two requests."""
    stall_s: float = 60.0
    """Without taking anything of an answer that waits for it."""


class Connection(asyncio.BufferedProtocol):
    """Requests are answered in their order. A client that leaves cancels the one being answered."""

    __slots__ = (
        "_at",
        "_drained",
        "_due",
        "_loop",
        "_lost",
        "_reader",
        "_reading_paused",
        "_server",
        "_task",
        "_timer",
        "_transport",
        "_unsent",
        "_until_eof",
        "closes",
        "paused",
        "waiting",
    )  # fmt: skip

    def __init__(self, server: Server) -> None:
        self.closes = False
        """Whether it ends with the reply under way."""
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(self, server.bounds)
        self._at: memoryview | None = None
        """Where a body is being read to."""
        self._transport: asyncio.Transport
        self.waiting: deque[Request] = deque()
        """Requests behind the one that is being answered."""
        self._task: asyncio.Task[None] | None = None
        self._lost = False
        self._reading_paused = False
        self.paused = False
        """Whether its client has not taken most of what was written."""
        self._drained: asyncio.Future[None] | None = None
        self._until_eof = False
        """Whether its client takes the end of the connection for the end of its answer."""
        self._due: float | None = None
        """When this connection is given up unless something happens."""
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        """Bytes that its client had not taken when it was last due."""

    # ---- for requests, their reader and replies

    def send(self, data: bytes) -> None:
        if not self._lost:
            self._transport.write(data)

    async def drain(self) -> None:
        """Returns when it is ``paused`` no more."""
        while self.paused and not self._lost:
            self._wait_at_most(self._server.bounds.stall_s)
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)  # others may wait for it, too

    def say_continue(self) -> None:
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def wait_for_reader(self) -> None:
        """Makes the client wait until somebody wants what it sends."""
        if not (self._reading_paused or self._reader.deaf):
            self._reading_paused = True
            self._transport.pause_reading()

    def read_on(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def wait_for_head(self) -> bool:
        """Gives a head time to come. False while another request is being answered."""
        if self._task is None:
            self._wait_at_most(self._server.bounds.head_s)
        return self._task is None

    def take(self, request: Request) -> None:
        """Answers it when those before it are answered."""
        if self._task is None:
            self._answer(request)
            return
        self.waiting.append(request)
        if len(self.waiting) >= _READ_AHEAD:
            self.wait_for_reader()

    # ---- for the server

    @property
    def idle(self) -> bool:
        return self._task is None

    def stop(self) -> None:
        """No further request is taken; what is being answered is answered."""
        if self._lost:
            return
        self.closes = True
        self._reader.finish(current=not self.waiting)
        self.waiting.clear()
        if self._task is None:
            self._close()

    def abort(self) -> None:
        """Ends it at once. To its client half an answer is no whole one."""
        if self._lost:
            return
        if self._until_eof:
            opened: socket.socket = self._transport.get_extra_info("socket")
            with suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self._wait_at_most(self._server.bounds.idle_s)
        if self._server.stopping:
            self.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self.waiting.clear()
        self._reader.close()
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None:
            self._server.forget(self)
        else:
            self._task.cancel()
            self._task.add_done_callback(lambda _: self._server.forget(self))

    def eof_received(self) -> None:
        """A client that says no more listens no more: hardly one closes only its own half."""

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._task is not None:
            self._due = None
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Long bodies are read to where they stay, all else to where every connection reads."""
        self._at = self._reader.room
        return self._server.buffer if self._at is None else self._at

    def buffer_updated(self, nbytes: int) -> None:
        if self._at is None:
            self._reader.feed(self._server.buffer[:nbytes])
        else:
            self._at = None
            self._reader.filled(nbytes)

    # ---- answering

    def _answer(self, request: Request) -> None:
        self._due = None
        self.closes = self.closes or not request.keeps_alive
        self._until_eof = not request.takes_chunks
        self._task = self._loop.create_task(self._run(request, Reply(self, request)))

    async def _run(self, request: Request, reply: Reply) -> None:
        try:
            if self.paused:  # nothing more before it has taken what is there
                await self.drain()
            if request.refusal is not None:
                raise request.refusal
            await self._server.application(request, reply)
        except asyncio.CancelledError:
            self.abort()
        except BadRequest as error:
            if not reply.started:
                reply.respond(error.status, _TEXT, f"{error}\n".encode())
        except Exception as error:
            if not (reply.started and isinstance(error, ConnectionError)):
                logger.exception("%s %s failed", request.method, request.target.partition("?")[0])
            if not reply.started:
                reply.respond(500, _TEXT, b"internal error\n")
        self._task = None
        if not self._lost:
            self._go_on(request, reply)

    def _go_on(self, request: Request, reply: Reply) -> None:
        """To the next request, if there will be one."""
        if not reply.ended:  # half an answer must not look like a whole one
            self.abort()
        elif not request.complete:
            self._linger()
        elif self.closes:
            self._close()
        elif self.waiting:
            request = self.waiting.popleft()
            if not self.waiting:
                self.read_on()
            self._answer(request)
        else:
            self._wait_at_most(self._server.bounds.idle_s)

    def _close(self) -> None:
        """Once its client has taken what was written."""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._wait_at_most(self._server.bounds.stall_s)

    def _linger(self) -> None:
        """Says that nothing more comes, and hears out a client that has not seen it."""
        self._reader.hear_no_more()
        with suppress(OSError):
            self._transport.write_eof()
        self._wait_at_most(_LINGER_S)

    # ---- one timer, which looks again if something has happened meanwhile

    def _wait_at_most(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look)
        elif self._timer.when() > self._due:
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        unsent = self._transport.get_write_buffer_size()
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
        elif unsent and unsent != self._unsent:  # it is being taken, if slowly
            self._unsent = unsent
            self._wait_at_most(self._server.bounds.stall_s)
        elif self._reader.in_head and self._task is None:
            self._reader.refuse(BadRequest(408, "the head did not come in time"))
        else:
            self.abort()
