"""Heads of requests: the bytes that were meant, and never another header or request."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.connection import Origin
from saga.gateway.heads import HOP_BY_HOP, address, end_to_end, header_lines, request_head

ENGINE = address("http://engine:8000/base")


@pytest.mark.parametrize(
    ("url", "to", "host", "path"),
    [
        ("http://engine:8000", Origin(False, "engine", 8000), "engine:8000", ""),
        ("http://engine:80", Origin(False, "engine", 80), "engine", ""),
        ("https://engine/a/b", Origin(True, "engine", 443), "engine", "/a/b"),
        ("https://engine:80", Origin(True, "engine", 80), "engine:80", ""),
        ("http://[::1]:8000/a", Origin(False, "::1", 8000), "[::1]:8000", "/a"),
    ],
)
def test_addresses(url: str, to: Origin, host: str, path: str) -> None:
    assert address(url) == (to, host, path)


def test_values_are_the_bytes_that_a_client_sent() -> None:
    headers = [("x-client", "\xc3\xa9 \xff"), ("x-own", "€"), ("te", "trailers")]
    assert request_head(ENGINE, "GET", "/v1?q", header_lines(headers), None).split(b"\r\n") == [
        b"GET /base/v1?q HTTP/1.1",
        b"host: engine:8000",
        b"x-client: \xc3\xa9 \xff",
        b"x-own: " + "€".encode(),
        b"accept-encoding: identity",
        b"",
        b"",
    ]


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [("GET", None, None), ("GET", b"x", b"1"), ("POST", None, b"0"), ("POST", b"", b"0")],
)
def test_who_may_have_a_body_says_how_long_it_is(
    method: str, body: bytes | None, length: bytes | None
) -> None:
    head = request_head(ENGINE, method, "/", b"", body)
    line = b"" if length is None else b"content-length: " + length + b"\r\n"
    assert head.endswith(b"accept-encoding: identity\r\n" + line + b"\r\n")


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GET", "/", ("x", "a\r\nx-role: admin")),
        ("GET", "/", ("x", "a\n")),
        ("GET", "/", ("x", "\r")),
        ("GET", "/", ("x", "\0")),
        ("GET", "/", ("x: a\r\ny", "b")),
        ("GET / HTTP/1.1\r\nx:", "/", ("x", "a")),
        ("GET /x", "/", ("x", "a")),
        ("", "/", ("x", "a")),
        ("GET", "/ HTTP/1.1\r\nx: y", ("x", "a")),
        ("GET", "//engine\n", ("x", "a")),
    ],
)
def test_what_would_be_another_header_or_request_is_refused(
    method: str, target: str, header: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match="request"):
        request_head(ENGINE, method, target, header_lines([header]), None)


class Reader:
    """What an engine's parser makes of a request."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.num_requests = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        self.num_requests += 1


NAMES = st.sampled_from(["x-a", "x-b", *sorted(HOP_BY_HOP), "content-length", "host", "expect"])
VALUES = st.text(st.characters(max_codepoint=255)) | st.sampled_from(["chunked", "100", "close"])


@given(headers=st.lists(st.tuples(NAMES, VALUES)))
def test_whatever_the_headers_are_an_engine_reads_one_request(
    headers: list[tuple[str, str]],
) -> None:
    reader = Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        lines = header_lines(headers)
        parser.feed_data(request_head(ENGINE, "POST", "/v1", lines, b"body") + b"body")
    except (ValueError, httptools.HttpParserError):  # refused here or there
        assert reader.num_requests == 0
        return
    assert reader.num_requests == 1
    assert [name for name, _ in reader.headers if not name.startswith(b"x-")] == [
        b"host",
        b"accept-encoding",
        b"content-length",
    ]


SAID = st.sampled_from(["x-a", "x-b", "x-key", "te", "connection", "host", "upgrade"])
WORDS = st.sampled_from(["", "x-a", "x-a, X-B", "close,,", "host"])


@given(st.dictionaries(SAID, WORDS))
def test_end_to_end_keeps_order_and_drops_what_concerns_one_hop(headers: dict[str, str]) -> None:
    kept = end_to_end(headers, HOP_BY_HOP | {"x-key"})
    listed = headers.get("connection", "").lower().split(",")
    gone = {"te", "connection", "upgrade", "x-key"} | {token.strip() for token in listed}
    assert kept == [header for header in headers.items() if header[0] not in gone]
    assert end_to_end(dict(kept)) == kept
