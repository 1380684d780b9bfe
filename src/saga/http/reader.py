"""What a client sends: bytes become requests, or reasons why they are none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import httptools

from saga.http import head
from saga.http.exchange import BadRequest, Request

if TYPE_CHECKING:
    from saga.http.connection import Bounds, Connection

logger = logging.getLogger(__name__)

_MOST_WAITING: Final = 64
"""Requests of one client that may be here. The first one beyond is refused."""


class Reader:
    """Hands each request to its connection when its head is complete. Once it is ``deaf`` all that
    comes is thrown away."""

    __slots__ = (
        "_bounds",
        "_connection",
        "_incoming",
        "_overhead",
        "_parser",
        "_timed",
        "_url",
        "deaf",
        "in_head",
    )  # fmt: skip

    def __init__(self, connection: Connection, bounds: Bounds) -> None:
        self.deaf = False
        self.in_head = False
        """Whether a head has begun to come."""
        self._timed = False
        """Whether its connection waits for the end of it."""
        self._connection = connection
        self._bounds = bounds
        self._parser = httptools.HttpRequestParser(self)
        self._incoming: Request | None = None
        """The request that is being read."""
        self._url = b""
        self._overhead = 0
        """Bytes in a row that brought no body."""

    def feed(self, data: bytes | memoryview) -> None:
        if self.deaf:
            return
        self._overhead += len(data)
        upgrade_at = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            upgrade_at = upgrade.args[0]
        except httptools.HttpParserError as error:
            self.refuse(_reason(error))
        if upgrade_at is not None:
            self._stay(bytes(data[upgrade_at:]))
        elif self.in_head or self._overhead:
            self._watch()

    @property
    def room(self) -> memoryview | None:
        """Where bytes can be put at once instead of being fed, as they are known to be a body."""
        return None if self._incoming is None or self.in_head else self._incoming.room

    def filled(self, size: int) -> None:
        """So many bytes were put into ``room``."""
        request = self._incoming
        if request is not None and request.filled(size):
            self._parser = httptools.HttpRequestParser(self)  # the old one still waits for them
            self._complete(request)

    def refuse(self, error: BadRequest) -> None:
        """For what is no request: nothing after it can be told from it. What came before it is
        answered first."""
        if self.deaf:
            return
        request = self._incoming or Request(self._connection)
        is_known = self._incoming is not None and not self.in_head
        request.refuse(error)
        self.hear_no_more()
        if not is_known:
            self._connection.take(request)

    def finish(self, *, current: bool) -> None:
        """No further request is wanted. ``current``: what is being read is being answered."""
        if self._incoming is None or self.in_head or not current:
            self.hear_no_more()

    def hear_no_more(self) -> None:
        self.deaf, self.in_head, self._incoming = True, False, None
        self._connection.read_on()  # its end is to be heard

    def close(self) -> None:
        """Lets go of what holds it in turn."""
        self.deaf, self._incoming = True, None
        del self._parser, self._connection

    # ---- called by the parser

    def on_message_begin(self) -> None:
        if self._incoming is None and not self.deaf:
            self._incoming = Request(self._connection)
            self.in_head, self._timed = True, False

    def on_url(self, url: bytes) -> None:
        if self.in_head:
            self._url += url
            if len(self._url) > head.MAX_TARGET:
                raise BadRequest(414, "the request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._incoming
        if request is None or not self.in_head:  # trailers stay behind
            return
        headers, key = request.headers, name.decode("latin-1").lower()
        text = value.decode("latin-1").rstrip(" \t")
        headers[key] = head.joined(key, headers[key], text) if key in headers else text
        request.head_size += len(name) + len(value)

    def on_headers_complete(self) -> None:
        request, parser = self._incoming, self._parser
        if request is None or not self.in_head:
            return
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        url, self._url = self._url, b""
        head.read(request, method, version, parser.should_keep_alive(), url)
        if len(self._connection.waiting) >= _MOST_WAITING:
            raise BadRequest(429, f"more than {_MOST_WAITING} requests wait here")
        self.in_head, self._overhead = False, 0
        self._connection.take(request)

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        if self._incoming is not None:
            self._incoming.add(body)

    def on_message_complete(self) -> None:
        request = self._incoming
        if request is None or ("upgrade" in request.headers and self._parser.should_upgrade()):
            return
        self._complete(request)

    # ---- inside

    def _complete(self, request: Request) -> None:
        self._incoming = None
        request.finish()
        if self._connection.closes or not request.keeps_alive:
            self.hear_no_more()

    def _watch(self) -> None:
        """Over a head that has not come to its end, or a body with much around it."""
        fields = len(self._incoming.headers) if self._incoming is not None else 0
        if self._overhead > self._bounds.head_bytes or fields > head.MAX_FIELDS:
            self.refuse(BadRequest(431, "the head is too long"))
        elif self.in_head and not self._timed:
            self._timed = self._connection.wait_for_head()

    def _stay(self, rest: bytes) -> None:
        """Nothing here changes its protocol. The parser does, and has left out the body of the
        request that asked for it: a new one is told how it is framed."""
        self._parser = httptools.HttpRequestParser(self)
        if self._incoming is not None:
            headers, framing = self._incoming.headers, b""
            if "content-length" in headers:
                framing = f"content-length: {headers['content-length']}\r\n".encode()
            elif "transfer-encoding" in headers:
                framing = b"transfer-encoding: chunked\r\n"
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        if rest:
            self.feed(rest)


def _reason(error: httptools.HttpParserError) -> BadRequest:
    """Why the parser stopped: of itself, or because one of our methods told it to."""
    reason = error.__context__
    if isinstance(reason, BadRequest):
        return reason
    if reason is not None:
        logger.error("a request could not be read", exc_info=reason)
    return BadRequest(400, f"this is no HTTP: {error}")
