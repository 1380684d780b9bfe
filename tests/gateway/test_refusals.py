"""Requests that are too long, too slow or broken, refused in the words of the API they asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import msgspec
import pytest
from tests.gateway.live import Live, ask, chat, gateway
from tests.gateway.raw import CHAT, DIALECTS, MESSAGES, raw, refusal, request

SMALL = {
    "server.max_body_mib": 1,
    "server.max_header_kib": 2,
    "server.body_timeout_s": 0.2,
}
BAD_REQUEST = {CHAT: "BadRequestError", MESSAGES: "invalid_request_error"}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with gateway(engines=1, engine_options={"speed": 500.0}, settings=SMALL) as one:
        yield one
        one.check_nothing_is_lost()


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b'{"stream": 7}', b'{"secret": "\xff"}', b"[" * 10_000]
)
def test_what_is_no_request(live: Live, path: str, body: bytes) -> None:
    status, document, _ = ask(live.url + path, body)
    kind, message = refusal(path, document)
    assert (status, kind) == (400, BAD_REQUEST[path])
    assert "secret" not in message


@pytest.mark.parametrize("path", DIALECTS)
def test_a_body_may_not_be_too_long(live: Live, path: str) -> None:
    length = f"content-length: {2 << 20}"
    status, _, told = asyncio.run(raw(live.url, request(path, length, method="POST")))
    assert (status, refusal(path, msgspec.json.decode(told))[1]) == (
        413,
        "the body is longer than 1 MiB",
    )


def test_a_body_of_no_told_length_may_not_be_too_long_either(live: Live) -> None:
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    head = request(CHAT, "transfer-encoding: chunked", method="POST")
    assert asyncio.run(raw(live.url, head, chunk, chunk))[0] == 413


def test_a_body_of_the_longest_length_is_served(live: Live) -> None:
    for longer, expected in ((0, 200), (1, 413)):
        filling = "x" * ((1 << 20) - len(msgspec.json.encode(chat(""))) + longer)
        body = msgspec.json.encode(chat(filling))
        head = request(CHAT, f"content-length: {len(body)}", method="POST")
        assert asyncio.run(raw(live.url, head, body))[0] == expected


@pytest.mark.parametrize("path", DIALECTS)
def test_headers_may_not_be_too_long(live: Live, path: str) -> None:
    status, document, _ = ask(live.url + path, chat("x"), headers={"x-long": "x" * 3_000})
    assert (status, refusal(path, document)[0]) == (431, BAD_REQUEST[path])


@pytest.mark.parametrize("path", DIALECTS)
def test_a_body_must_come_in_time(live: Live, path: str) -> None:
    head = request(path, "content-length: 10", method="POST")
    status, _, told = asyncio.run(raw(live.url, head, b"{"))
    assert (status, refusal(path, msgspec.json.decode(told))[1]) == (
        408,
        "the body did not come within 0.2 s",
    )


def test_a_client_that_leaves_before_it_is_done_is_no_fault(
    live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        host, _, port = live.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(request(CHAT, "content-length: 10", method="POST") + b"{")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    asyncio.run(leave())
    assert ask(f"{live.url}/health")[0] == 200
    time.sleep(0.05)
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []
