"""What the head of a request says, and which heads are refused (RFC 9110, 9112).

The parser has refused already what can be read in two ways: two lengths, a length and chunks, bare
line feeds, folded lines, spaces before colons.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

import httptools

from saga.http.exchange import BadRequest, Request

MAX_TARGET: Final = 16 * 1024
"""Bytes, percent-encoded."""
MAX_FIELDS: Final = 256
_MAX_JOINED: Final = 8 * 1024
"""Characters of a value that came in several lines."""
_ONCE: Final = frozenset({"content-length", "host", "transfer-encoding"})
"""Two of them could be two opinions about where a request goes or ends."""


def read(request: Request, method: str, version: str, keeps_alive: bool, target: bytes) -> None:
    """Completes the head of a request whose headers are there. Raises BadRequest."""
    headers = request.headers
    request.method = method
    request.takes_chunks = version == "1.1"
    request.keeps_alive = keeps_alive and request.takes_chunks
    request.head_size += len(target)
    if request.takes_chunks:
        if "host" not in headers:
            raise BadRequest(400, "there is no host")
        if "expect" in headers:
            request.expects_continue = headers["expect"].lower() == "100-continue"
    elif version != "1.0":
        raise BadRequest(505, "this version of HTTP is not served")
    if method == "CONNECT":  # what follows its answer is no HTTP
        raise BadRequest(501, "there are no tunnels here")
    if "transfer-encoding" in headers:
        _check_coding(headers["transfer-encoding"], version)
    if len(headers) > MAX_FIELDS:
        raise BadRequest(431, f"there are more than {MAX_FIELDS} headers")
    request.target, request.path = _target(method, target)


def joined(name: str, before: str, more: str) -> str:
    """The value of a header that came in two lines (RFC 9110, 5.3). Raises BadRequest."""
    if name in _ONCE:
        raise BadRequest(400, f"there are two headers {name}")
    if len(before) + len(more) > _MAX_JOINED:
        raise BadRequest(431, f"the headers {name} are too long")
    return f"{before}, {more}"


def _check_coding(coding: str, version: str) -> None:
    if version == "1.0":  # who speaks it knows no codings, and may see another body
        raise BadRequest(400, "HTTP/1.0 has no transfer codings")
    if coding.lower() != "chunked":
        raise BadRequest(501, "there is no transfer coding here but chunked")


def _target(method: str, target: bytes) -> tuple[str, str]:
    """Path with query as they came, and the path decoded."""
    if b"#" in target:  # an engine would take what is before it for the path
        raise BadRequest(400, "a request target has no fragment")
    text = target.decode("latin-1")
    if not text.startswith("/"):
        text = _origin_form(method, target)
    path = text.partition("?")[0]
    return text, unquote(path) if "%" in path else path


def _origin_form(method: str, target: bytes) -> str:
    """A target that begins with no slash (RFC 9112, 3.2.2 and 3.2.4)."""
    if method == "OPTIONS" and target == b"*":
        return "*"
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise BadRequest(400, "the request target cannot be read") from None
    if not parsed.schema or parsed.schema.lower() not in (b"http", b"https") or not parsed.host:
        raise BadRequest(400, "the request target is no path and no HTTP address")
    query = b"?" + parsed.query if parsed.query else b""
    return ((parsed.path or b"/") + query).decode("latin-1")
