"""A client's connection: bytes become requests, one after the other, and replies become bytes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, cast
from urllib.parse import unquote

import httptools

from saga.http.exchange import Reply, Request

if TYPE_CHECKING:
    from saga.http.server import Server

logger = logging.getLogger(__name__)

_LINGER_S: Final = 2.0
"""For how long a client may go on to send what nobody reads, so that it reads its answer first: a
connection that is closed over unread bytes is reset, and the answer with it."""
_READ_AHEAD: Final = 4
"""Requests of one client that may be here before the first one is answered."""


class Application(Protocol):
    async def __call__(self, request: Request, reply: Reply, /) -> None:
        """Answers a request. Cancelled when its client leaves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a client may take."""

    head_bytes: int = 1024 * 1024
    head_s: float = 30.0
    """From the first byte of a head to its end."""
    idle_s: float = 75.0
    """Between two requests."""


class Connection(asyncio.Protocol):
    """Requests are answered in their order. A client that leaves cancels the one being answered."""

    def __init__(self, server: Server) -> None:
        self.closes = False
        """Whether it ends with the reply under way."""
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._incoming: Request | None = None
        """The request that is being read."""
        self._waiting: deque[Request] = deque()
        """Requests behind the one that is being answered."""
        self._task: asyncio.Task[None] | None = None
        self._url = b""
        self._head_bytes = 0
        self._in_head = False
        self._lost = False
        self._lingers = False
        self._reading_paused = False
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._due: float | None = None
        """When this connection is given up unless something happens."""
        self._timer: asyncio.TimerHandle | None = None
        self._timed: Request | None = None
        """The request whose head is being waited for."""

    # ---- for replies

    def send(self, data: bytes) -> None:
        if not self._lost:
            self._transport.write(data)

    async def drain(self) -> None:
        if self._paused and not self._lost:
            self._drained = self._loop.create_future()
            await self._drained

    def say_continue(self) -> None:
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ---- for the server

    @property
    def idle(self) -> bool:
        return self._task is None

    def stop(self) -> None:
        """No further request is taken; what is being answered is answered."""
        self.closes = True
        self._waiting.clear()
        if self._task is None:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        self._wait_at_most(self._server.bounds.idle_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._server.connections.discard(self)
        self._waiting.clear()
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> None:
        """A client that says no more listens no more: hardly one closes only its own half."""

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._lingers or (self.closes and self._incoming is None):
            return
        if self._in_head or self._incoming is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing here changes its protocol: what was asked is answered, and nothing more.
            self.closes = self._lingers = True
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is no HTTP: {error}")
            return
        bounds = self._server.bounds
        if self._head_bytes > bounds.head_bytes:
            self._refuse(431, f"the head is longer than {bounds.head_bytes >> 10} KiB")
        elif self._in_head and self._task is None and self._incoming is not self._timed:
            self._timed = self._incoming
            self._wait_at_most(bounds.head_s)

    # ---- called by the parser

    def on_message_begin(self) -> None:
        self._incoming = Request(self)
        self._url = b""
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._incoming
        if self._in_head and request is not None:  # trailers stay behind
            request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
            request.head_size += len(name) + len(value)

    def on_headers_complete(self) -> None:
        request = self._incoming
        assert request is not None
        self._in_head, self._head_bytes = False, 0
        request.method = self._parser.get_method().decode("ascii")
        request.target, request.path = _target(self._url)
        request.takes_chunks = self._parser.get_http_version() == "1.1"
        request.keeps_alive = request.takes_chunks and self._parser.should_keep_alive()
        request.expects_continue = request.headers.get("expect", "").lower() == "100-continue"
        if self.closes:
            self._incoming = None
        elif self._task is not None:
            self._waiting.append(request)
            if len(self._waiting) >= _READ_AHEAD and not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()
        else:
            self._answer(request)

    def on_body(self, body: bytes) -> None:
        if self._incoming is not None:
            self._incoming.add(body)

    def on_message_complete(self) -> None:
        if self._incoming is not None:
            self._incoming.finish()
            self._incoming = None

    # ---- answering

    def _answer(self, request: Request) -> None:
        self._due = None
        self.closes = self.closes or not request.keeps_alive or self._server.stopping
        self._task = self._loop.create_task(self._run(request, Reply(self, request)))

    async def _run(self, request: Request, reply: Reply) -> None:
        try:
            await self._server.application(request, reply)
        except asyncio.CancelledError:
            if not self._lost:
                self._transport.abort()
        except ConnectionError:  # half an answer must not look like a whole one
            self._transport.abort()
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            if reply.started:
                self._transport.abort()
            else:
                self.closes = True
                reply.respond(500, [(b"content-type", b"text/plain")], b"internal error\n")
        self._task = None
        self._server.note_answered()
        if not self._lost:
            self._go_on(request, reply)

    def _go_on(self, request: Request, reply: Reply) -> None:
        """To the next request, if there will be one."""
        if not reply.ended:
            self._transport.abort()
        elif self._lingers or not request.complete:
            self._linger()
        elif self.closes:
            self._transport.close()
        elif self._waiting:
            self._read_on()
            self._answer(self._waiting.popleft())
        else:
            self._wait_at_most(self._server.bounds.idle_s)

    def _read_on(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _linger(self) -> None:
        """Closes it, but reads on for a while what nobody wants."""
        self._lingers = True
        self._read_on()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._wait_at_most(_LINGER_S)

    def _refuse(self, status: int, text: str) -> None:
        """For what is no request. Whoever is being answered is cut off: nothing after this can be
        told from it."""
        if self._task is not None:
            self._transport.abort()
            return
        self.closes = True
        reply = Reply(self, self._incoming or Request(self))
        reply.respond(status, [(b"content-type", b"text/plain")], f"{text}\n".encode())
        self._linger()

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
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
        elif self._in_head and not self._lingers:
            self._refuse(408, f"the head did not come within {self._server.bounds.head_s:g} s")
        else:
            self._transport.abort()


def _target(url: bytes) -> tuple[str, str]:
    """Path with query as they came, and the path decoded."""
    text = url.decode("latin-1")
    if not text.startswith("/"):  # a proxy is asked with whole addresses
        parsed = httptools.parse_url(url)
        query = b"?" + parsed.query if parsed.query else b""
        text = ((parsed.path or b"/") + query).decode("latin-1")
    path = text.partition("?")[0]
    return text, unquote(path) if "%" in path else path
