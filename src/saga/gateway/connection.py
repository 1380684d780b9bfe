"""Connections to engines: one request at a time on each, and its answer (HTTP/1.1, RFC 9112)."""

from __future__ import annotations

import asyncio
import functools
import ssl
import weakref
from typing import Final, NamedTuple, cast

import httptools

_SLICE: Final = 256 * 1024
"""Longer bodies are handed to the system in slices of so many bytes, each when the one before has
gone: a transport would keep a copy of all that an engine does not read."""
_READ_AHEAD: Final = 256 * 1024
"""Bytes of a body that may wait for their reader before the engine is made to wait."""
_MAX_OVERHEAD: Final = 64 * 1024
"""Bytes in a row that bring no body: heads and trailers have no bound of their own."""
_NOTHING: Final = memoryview(b"")


class ConnectionBrokenError(ConnectionError):
    """The connection ended before the answer did, or what came was no HTTP."""


class Origin(NamedTuple):
    """What connections lead to."""

    tls: bool
    host: str
    port: int


class Connection(asyncio.Protocol):
    """A request is begun with ``ask``; then ``head`` and ``read`` wait for its answer.

    After its answer a connection is idle until the next ``ask``. What breaks one is raised where
    its answer is waited for, after what came before.
    """

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Of the answer, as they came; names in lower case."""
        self.received = False
        """Whether anything came since ``ask``."""
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        """Why it is of no use any more."""
        self._has_head = True
        self._complete = True
        """Whether the answer has come to its end. True while idle."""
        self._keeps_alive = True
        self._no_body = False
        self._until_eof = False
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._overhead = 0
        self._reading_paused = False
        self._unsent = _NOTHING
        self._writing_paused = False

    # ---- for its user

    @property
    def at_end(self) -> bool:
        """Whether the answer was read to its end."""
        return self._complete and not self._chunks

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: nothing is left of this one in either direction."""
        return (
            self._keeps_alive
            and self.at_end
            and self._error is None
            and not self._unsent
            and self._transport.get_write_buffer_size() == 0
        )

    def ask(self, head: bytes, body: bytes | None, *, no_body: bool = False) -> None:
        """Sends a request. ``no_body``: its answer has none, whatever its head says (HEAD)."""
        self.status, self.headers, self.received = 0, [], False
        self._has_head = self._complete = self._until_eof = False
        self._no_body = no_body
        self._overhead = 0
        if not body:
            self._transport.write(head)
        elif len(body) < _SLICE:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._write_on()

    async def head(self) -> None:
        """Returns when ``status`` and ``headers`` are there."""
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body, once there is any; nothing at its end."""
        while not self._chunks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    def abort(self, error: Exception | None = None) -> None:
        """Closes it at once, whatever is still unsent; ``error`` is what a reader is told."""
        if self._error is None:
            self._error = error or ConnectionBrokenError("it was given up")
        self._unsent = _NOTHING
        self._transport.abort()
        self._wake()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _write_on(self) -> None:
        while self._unsent and not self._writing_paused:
            part, self._unsent = self._unsent[:_SLICE], self._unsent[_SLICE:]
            self._transport.write(part)
        if not self._unsent:
            self._unsent = _NOTHING  # an empty view would still hold the body

    # ---- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(ConnectionBrokenError("the engine closed it" if exc is None else str(exc)))

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._write_on()

    def data_received(self, data: bytes) -> None:
        if self._complete or self._error is not None:
            self.abort()  # nobody asked: it must not become the answer to the next request
            return
        self.received = True
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.abort(ConnectionBrokenError(f"no HTTP: {error}"))
        if self._overhead > _MAX_OVERHEAD:
            self.abort(ConnectionBrokenError("the head of the answer is too long"))
        if self._buffered > _READ_AHEAD and not self._complete and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        if self._has_head and self._until_eof and self._error is None:
            self._complete = True
        self.abort(ConnectionBrokenError("the engine closed it"))

    # ---- called by the parser

    def on_message_begin(self) -> None:
        if self._complete:  # another answer in the same piece
            self._keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # trailers stay behind
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:  # the final answer is to come; after 101 the parser gives up
            self.headers = []
            return
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if not 200 <= self.status < 600 or codings not in ([], [b"chunked"]):
            self.abort(ConnectionBrokenError("an answer that was not asked for"))
            return
        self._has_head = True
        self._until_eof = not codings and all(name != b"content-length" for name, _ in self.headers)
        self._keeps_alive = self._parser.should_keep_alive()
        if self._no_body:
            # The parser does not know of it, and waits for a body: it is of no further use.
            self._complete, self._keeps_alive = True, False

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._chunks.append(body)
            self._buffered += len(body)
            self._overhead = 0

    def on_message_complete(self) -> None:
        if self._has_head:
            self._complete = True


class Pool:
    """Connections that wait for their next request, and new ones, without limit.

    Those used last are used first, so that the rest can age. ``idle_s``: for how long one may wait.
    To be made inside the event loop.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        """As long as the event loop knows them."""
        self._idle: dict[Origin, dict[Connection, float]] = {}
        """With the time since when; the one that waits longest comes first."""
        self._timer: asyncio.TimerHandle | None = None

    def take(self, origin: Origin) -> Connection | None:
        """A connection that waits, if there is one."""
        idle = self._idle.get(origin)
        while idle:
            connection, since = idle.popitem()
            if connection.reusable and self._loop.time() - since < self._idle_s:
                return connection
            connection.abort()
        return None

    async def connect(self, origin: Origin) -> Connection:
        """A new connection. Raises OSError."""
        _, connection = await self._loop.create_connection(
            lambda: Connection(origin),
            origin.host,
            origin.port,
            ssl=self._tls if origin.tls else None,
        )
        self._open.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keeps it for the next request, or closes it if there can be none."""
        if not connection.reusable:
            connection.abort()
            return
        self._idle.setdefault(connection.origin, {})[connection] = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._idle_s, self._sweep)

    def close(self) -> None:
        """Closes all connections, also those in use."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._open):
            connection.abort()

    def _sweep(self) -> None:
        """Closes what has waited too long, and drops what engines have closed."""
        self._timer = None
        now = self._loop.time()
        for origin, idle in list(self._idle.items()):
            for connection, since in list(idle.items()):
                if now - since >= self._idle_s or not connection.reusable:
                    del idle[connection]
                    connection.abort()
            if not idle:
                del self._idle[origin]
        if self._idle:
            self._timer = self._loop.call_later(self._idle_s, self._sweep)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context
