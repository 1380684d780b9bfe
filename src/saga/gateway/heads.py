"""What goes before a body: whom a request reaches, its head, and which headers end with a hop."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from saga.gateway.connection import Origin

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
_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_WITH_BODY: Final = frozenset({"PATCH", "POST", "PUT"})
"""Methods that say how long their body is even if it is empty (RFC 9110, 8.6)."""


class Address(NamedTuple):
    """An engine's base URL, taken apart."""

    origin: Origin
    host: str
    """As requests name it: without its scheme's own port."""
    path: str
    """Goes before each request's."""


@functools.lru_cache(maxsize=1024)
def address(url: str) -> Address:
    parts = urlsplit(url)
    tls, usual = parts.scheme == "https", 443 if parts.scheme == "https" else 80
    host, port = parts.hostname or "", parts.port or usual
    shown = f"[{host}]" if ":" in host else host
    origin = Origin(tls, host, port)
    return Address(origin, shown if port == usual else f"{shown}:{port}", parts.path)


def request_head(
    engine: Address,
    method: str,
    path_and_query: str,
    lines: bytes,
    body: bytes | None,
) -> bytes:
    """The head of a request with these ``header_lines``. Raises ValueError for a method or target
    that is none."""
    if _TARGET.fullmatch(path_and_query) is None:
        raise ValueError("a request target starts with / and has no spaces or control codes")
    if _METHOD.fullmatch(method) is None:
        raise ValueError("a request method is one word")
    first = f"{method} {engine.path}{path_and_query} HTTP/1.1\r\nhost: {engine.host}\r\n"
    last = "accept-encoding: identity\r\n"
    if body or method in _WITH_BODY:
        last += f"content-length: {len(body or b'')}\r\n"
    return b"%b%b%b\r\n" % (first.encode(), lines, last.encode())


def header_lines(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as they are sent; names are lower case. A client's must be ``end_to_end``.

    What concerns one connection and one body is left out. Raises ValueError for a header that is
    none.
    """
    lines = [f"{name}: {value}\r\n" for name, value in headers if name not in _OWN]
    text = "".join(lines)
    if text.count("\r") != len(lines) or text.count("\n") != len(lines) or "\0" in text:
        # What comes after it would be another header, or another request.
        raise ValueError("a request header has no line breaks and no zero codes")
    return b"".join(map(_encoded, lines))


def _encoded(line: str) -> bytes:
    """The bytes that a client's header was read from; only text of our own can be no latin-1."""
    try:
        return line.encode("latin-1")
    except UnicodeEncodeError:
        return line.encode()


def end_to_end(
    headers: Mapping[str, str], dropped: frozenset[str] = HOP_BY_HOP
) -> list[tuple[str, str]]:
    """A client's headers without those that concern one connection only; names are lower case.

    To be applied *before* a proxy adds headers of its own: a client may name any header in its
    ``connection`` header, and the added ones are not the client's to drop. ``dropped``: those that
    always stay behind.
    """
    named = headers.get("connection")
    if named is not None:
        dropped = dropped.union(token.strip().lower() for token in named.split(","))
    return [header for header in headers.items() if header[0] not in dropped]


def response_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those of an answer that are not of one connection only."""
    dropped = _HOP_BY_HOP_BYTES
    for name, value in headers:
        if name == b"connection":
            dropped = dropped.union(token.strip().lower() for token in value.split(b","))
    return [header for header in headers if header[0] not in dropped]
