"""HTTP to engines: one request, its answer as it comes, and what went wrong where none came."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

import aiohttp
from yarl import URL

ErrorKind = Literal["connect", "first_byte", "chunk", "total", "broken"]

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""They concern one connection only (RFC 9110, 7.6.1)."""
_HOP_BY_HOP_BYTES: Final = frozenset(name.encode() for name in HOP_BY_HOP)

_OWN: Final = HOP_BY_HOP | {"accept-encoding", "content-length", "expect", "host"}
"""Request headers that are ours to write: they follow from this connection and this body."""

_TARGET: Final = re.compile(r"/[\x21-\x7e]*")
_SLICE: Final = 256 * 1024
"""Longer bodies are written in slices of so many bytes, so that others get their turn between."""
_KEEPALIVE_S: Final = 4.0
"""Below the 5 s after which uvicorn (vLLM, SGLang) closes an idle connection: the side that reuses
it must be the first to give it up, or requests are lost on connections that are just closing."""


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


class Upstream:
    """The process's one pool of connections to all engines. To be made inside the event loop."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=0, keepalive_timeout=_KEEPALIVE_S
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            auto_decompress=False,
            raise_for_status=False,
            trust_env=False,
        )

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
        await self._session.close()

    async def send(
        self,
        engine_url: str,
        method: str,
        path_and_query: str,
        headers: Iterable[tuple[str, str]],
        body: bytes | None,
        *,
        timeouts: Timeouts = Timeouts(),
    ) -> Response:
        """Sends a request and returns when the head of the answer is there, whatever its status.

        Header names are lower case. Hop-by-hop headers stay behind, and answers are asked for
        uncompressed, so that they can be read on the way. Redirects are answers like others.
        Raises UpstreamError, and ValueError for a target that is none. Cancelling closes the
        connection.
        """
        if _TARGET.fullmatch(path_and_query) is None:
            raise ValueError("a request target starts with / and has no spaces or control codes")
        sent_at = asyncio.get_running_loop().time()
        first_byte_at = _after(sent_at, timeouts.first_byte_s)
        total_at = _after(sent_at, timeouts.total_s)
        late: ErrorKind = "total" if total_at < first_byte_at else "first_byte"
        try:
            async with asyncio.timeout_at(_finite(min(first_byte_at, total_at))):
                response = await self._session.request(
                    method,
                    URL(engine_url + path_and_query, encoded=True),
                    headers=_request_headers(headers, body),
                    data=_slices(body) if body and len(body) > _SLICE else body,
                    timeout=aiohttp.ClientTimeout(connect=timeouts.connect_s),
                    allow_redirects=False,
                )
        except aiohttp.ServerTimeoutError:
            message = f"no connection within {timeouts.connect_s:g} s"
            raise UpstreamError("connect", message, sent=False) from None
        except TimeoutError:
            raise _timeout(late, timeouts) from None
        except aiohttp.ClientConnectorError as error:
            raise UpstreamError("connect", str(error.os_error), sent=False) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        return Response(response, timeouts, first_byte_at, total_at)

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
        "_due",
        "_first_byte_at",
        "_loop",
        "_response",
        "_timeouts",
        "_timer",
        "_total_at",
        "headers",
        "status",
    )

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        timeouts: Timeouts,
        first_byte_at: float,
        total_at: float,
    ) -> None:
        self.status = response.status
        self.headers: list[tuple[bytes, bytes]] = _response_headers(response)
        """End-to-end headers in their order; names in lower case."""
        self._response = response
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._first_byte_at: float | None = first_byte_at
        self._total_at = total_at
        self._due: float | None = None
        """When the chunk that is being waited for is late; None while nobody waits."""
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it arrives, untouched. Raises UpstreamError.

        Leaving it before its end aborts; to be sure when, close it (``contextlib.aclosing``).
        """
        content, chunk_s = self._response.content, self._timeouts.chunk_s
        try:
            while not content.at_eof():
                self._due = self._first_byte_at or _after(self._loop.time(), chunk_s)
                chunk = await content.readany()
                self._due = self._first_byte_at = None
                if chunk:
                    yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise _broken(error) from error
        finally:
            if content.at_eof():
                self._stop_watching()
            else:
                self.abort()

    async def read(self, limit: int) -> bytes:
        """The whole body; one of more than ``limit`` bytes is aborted and an UpstreamError."""
        parts: list[bytes] = []
        size = 0
        async with contextlib.aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise UpstreamError("broken", f"the answer is longer than {limit} bytes")
                parts.append(chunk)
        return b"".join(parts)

    def abort(self) -> None:
        """Drops the connection at once, which is how an engine learns that nobody waits."""
        self._stop_watching()
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._response.close()

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
        content = self._response.content
        if not content.is_eof():
            content.set_exception(_timeout(kind, self._timeouts))
            self.abort()

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without those that concern one connection only; names are lower case.

    A proxy applies it to what a client sent *before* it adds headers of its own: a client may name
    any header in its ``connection`` header, and the added ones are not the client's to drop.
    """
    headers = list(headers)
    dropped = HOP_BY_HOP
    for name, value in headers:
        if name == "connection":
            dropped = dropped.union(token.strip().lower() for token in value.split(","))
    return [header for header in headers if header[0] not in dropped]


def _request_headers(
    headers: Iterable[tuple[str, str]], body: bytes | None
) -> list[tuple[str, str]]:
    kept = [header for header in end_to_end(headers) if header[0] not in _OWN]
    kept.append(("accept-encoding", "identity"))
    if body:
        kept.append(("content-length", str(len(body))))
    return kept


def _response_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    headers = [(name.lower(), value) for name, value in response.raw_headers]
    dropped = _HOP_BY_HOP_BYTES
    for name, value in headers:
        if name == b"connection":
            dropped = dropped.union(token.strip().lower() for token in value.split(b","))
    return [header for header in headers if header[0] not in dropped]


async def _slices(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(body), _SLICE):
        yield view[start : start + _SLICE]


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


def _broken(error: Exception) -> UpstreamError:
    return UpstreamError("broken", f"the connection broke ({type(error).__name__})")
