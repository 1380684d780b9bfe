"""HTTP to engines: one request, its answer as it comes, and what went wrong where none came."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from saga.gateway.connection import Connection, ConnectionBrokenError, Origin, Pool
from saga.gateway.heads import address, header_lines, request_head, response_headers

ErrorKind = Literal["connect", "first_byte", "chunk", "total", "broken"]

_KEEPALIVE_S: Final = 4.0
"""Below the 5 s after which uvicorn (vLLM, SGLang) closes an idle connection: the side that reuses
it must be the first to give it up, or requests are lost on connections that are just closing."""
_CROSSING_S: Final = 1.0
"""A reused connection that ends without a byte so soon after a request was most likely given up
before the engine saw it. Later, the engine may have worked on it: whether to ask again is then not
for this layer to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for an engine, in seconds; None: for ever."""

    connect_s: float | None = 5.0
    first_byte_s: float | None = 600.0
    """From sending to the first byte of the *body*: engines send the head before they queue."""
    chunk_s: float | None = 300.0
    """Between chunks. Counts only while somebody waits for one: a slow client is no slow engine."""
    total_s: float | None = 3600.0


class UpstreamError(Exception):
    """The engine did not answer, or not to the end.

    ``connect``: no connection; ``first_byte``, ``chunk``, ``total``: a timeout; ``broken``: the
    connection or the HTTP on it. ``sent`` False: the engine has certainly not seen the request.
    """

    def __init__(self, kind: ErrorKind, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.sent = sent


class _Request(NamedTuple):
    head: bytes
    body: bytes | None
    is_head: bool
    timeouts: Timeouts
    sent_at: float


class Upstream:
    """The process's one pool of connections to all engines. To be made inside the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(_KEEPALIVE_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._pool.close()
        await asyncio.sleep(0)  # transports close their sockets in the next turn of the loop

    async def send(
        self,
        engine_url: str,
        method: str,
        path_and_query: str,
        headers: Iterable[tuple[str, str]] | bytes,
        body: bytes | None,
        *,
        timeouts: Timeouts = Timeouts(),
    ) -> Response:
        """Sends a request and returns when the head of the answer is there, whatever its status.

        Header names are lower case; a client's must be ``end_to_end``. They may be given as their
        ``header_lines``. Answers are asked for uncompressed, so that they can be read on the way.
        Redirects are answers like others.
        A request that meets a reused connection just when the engine gives it up is sent again.
        Raises UpstreamError, and ValueError for a method, target or header that is none: its text
        would reach the engine as another header or another request. Cancelling closes the
        connection.
        """
        engine = address(engine_url)
        lines = headers if isinstance(headers, bytes) else header_lines(headers)
        head = request_head(engine, method, path_and_query, lines, body)
        request = _Request(head, body, method == "HEAD", timeouts, self._loop.time())
        reused = self._pool.take(engine.origin)
        if reused is not None:
            try:
                return await self._ask(reused, request)
            except ConnectionBrokenError as error:
                late = self._loop.time() - request.sent_at > _CROSSING_S
                if reused.received or late:
                    raise _broken(error) from error
        connection = await self._connect(engine.origin, timeouts, sent=reused is not None)
        try:
            return await self._ask(connection, request)
        except ConnectionBrokenError as error:
            raise _broken(error) from error

    async def _ask(self, connection: Connection, request: _Request) -> Response:
        connection.ask(request.head, request.body, no_body=request.is_head)
        response = Response(connection, self._pool, request.timeouts, request.sent_at)
        try:
            await response.begun()
        except BaseException:  # also when cancelled
            response.abort()
            raise
        return response

    async def _connect(self, origin: Origin, timeouts: Timeouts, *, sent: bool) -> Connection:
        bounds = (timeouts.connect_s, timeouts.first_byte_s, timeouts.total_s)
        seconds = min((bound for bound in bounds if bound is not None), default=None)
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self._pool.connect(origin)
        except OSError as error:
            message = f"no connection within {seconds:g} s" if limit.expired() else str(error)
            raise UpstreamError("connect", message, sent=sent) from error

    async def fetch(
        self,
        engine_url: str,
        method: str,
        path_and_query: str,
        *,
        api_key: str | None = None,
        body: bytes | None = None,
        timeouts: Timeouts,
        limit: int,
    ) -> tuple[int, bytes]:
        """Status and whole body, of at most ``limit`` bytes. Raises UpstreamError."""
        headers = [] if body is None else [("content-type", "application/json")]
        if api_key is not None:
            headers.append(("authorization", f"Bearer {api_key}"))
        response = await self.send(
            engine_url, method, path_and_query, headers, body, timeouts=timeouts
        )
        return response.status, await response.read(limit)


class Response:
    """An answer whose head has arrived.

    Its body is to be read to the end or ended with ``abort``; else the connection stays open until
    the total timeout.
    """

    __slots__ = (
        "_connection",
        "_due",
        "_first_byte_at",
        "_loop",
        "_pool",
        "_timeouts",
        "_timer",
        "_total_at",
        "headers",
        "status",
    )

    def __init__(
        self, connection: Connection, pool: Pool, timeouts: Timeouts, sent_at: float
    ) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """End-to-end headers in their order; names in lower case."""
        self._connection: Connection | None = connection
        """None once it may serve others: an ``abort`` from then on must not reach it."""
        self._pool = pool
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._first_byte_at: float | None = _after(sent_at, timeouts.first_byte_s)
        self._total_at = _after(sent_at, timeouts.total_s)
        self._due: float | None = self._first_byte_at
        """When what is being waited for is late; None while nobody waits."""
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    async def begun(self) -> None:
        """Returns when status and headers are there; to be called once, before anything else."""
        connection = self._connection
        assert connection is not None
        await connection.head()
        self._due = None
        self.status, self.headers = connection.status, response_headers(connection.headers)

    async def chunk(self) -> bytes:
        """What has come of the body, once there is any, untouched; nothing at its end.

        Raises UpstreamError. Cancelling aborts.
        """
        connection = self._connection
        if connection is None:
            return b""
        self._due = self._first_byte_at or _after(self._loop.time(), self._timeouts.chunk_s)
        try:
            chunk = await connection.read()
        except ConnectionBrokenError as error:
            self.abort()
            raise _broken(error) from error
        except BaseException:
            self.abort()
            raise
        self._due = self._first_byte_at = None
        if connection.at_end:
            self._end(connection)
        return chunk

    async def read(self, limit: int) -> bytes:
        """The whole body; one of more than ``limit`` bytes is aborted and an UpstreamError."""
        parts: list[bytes] = []
        size = 0
        while chunk := await self.chunk():
            size += len(chunk)
            if size > limit:
                self.abort()
                raise UpstreamError("broken", f"the answer is longer than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def abort(self) -> None:
        """Drops the connection at once, which is how an engine learns that nobody waits."""
        self._stop_watching()
        if self._connection is not None:
            self._connection.abort()

    def _end(self, connection: Connection) -> None:
        """Lets others have the connection, as the answer was read."""
        self._stop_watching()
        self._connection = None
        self._pool.give_back(connection)

    # ---- timeouts: one timer per answer, not one per chunk

    def _watch(self) -> None:
        """Looks whether something is late, and when to look again."""
        now = self._loop.time()
        late: ErrorKind = "chunk" if self._first_byte_at is None else "first_byte"
        if now >= self._total_at:
            self._expire("total")
        elif self._due is not None and now >= self._due:
            self._expire(late)
        else:
            # Chunks that are waited for from now on are due no earlier than now + chunk_s.
            soonest = min(
                self._total_at,
                _after(now, self._timeouts.chunk_s),
                self._first_byte_at or float("inf") if self._due is None else self._due,
            )
            if _finite(soonest) is not None:
                self._timer = self._loop.call_at(soonest, self._watch)

    def _expire(self, kind: ErrorKind) -> None:
        self._stop_watching()
        if self._connection is not None:
            self._connection.abort(_timeout(kind, self._timeouts))

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _after(now: float, seconds: float | None) -> float:
    return float("inf") if seconds is None else now + seconds


def _finite(at: float) -> float | None:
    """uvloop has no timers at infinity."""
    return None if at == float("inf") else at


def _timeout(kind: ErrorKind, timeouts: Timeouts) -> UpstreamError:
    match kind:
        case "total":
            message = f"the answer was not complete within {timeouts.total_s:g} s"
        case "chunk":
            message = f"the answer stopped for {timeouts.chunk_s:g} s"
        case _:
            message = f"no answer within {timeouts.first_byte_s:g} s"
    return UpstreamError(kind, message)


def _broken(error: ConnectionBrokenError) -> UpstreamError:
    return UpstreamError("broken", f"the connection broke: {error}")
