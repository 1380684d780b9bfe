"""The client side: bytes untouched, headers of one hop only, every timeout, every way to break."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import TypeVar

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.servers import Handler, Talk, head, refusing, serve, silence, talk

from saga.gateway.upstream import (
    ErrorKind,
    Response,
    Timeouts,
    Upstream,
    UpstreamError,
)

T = TypeVar("T")
Client = Callable[[Upstream, str], Awaitable[T]]

QUICK = Timeouts(connect_s=5.0, first_byte_s=5.0, chunk_s=5.0, total_s=5.0)
START = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def with_server(handler: Handler, client: Client[T]) -> T:
    async def run() -> T:
        async with serve(handler) as url, Upstream() as upstream:
            return await client(upstream, url)

    return asyncio.run(run())


def with_talk(conversation: Talk, client: Client[T]) -> T:
    async def run() -> T:
        async with talk(conversation) as url, Upstream() as upstream:
            return await client(upstream, url)

    return asyncio.run(run())


def with_start(*parts: bytes, then_wait: bool = True) -> Talk:
    """Reads a request, sends ``parts`` and falls silent or closes."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then_wait:
            await silence()

    return conversation


async def ask(upstream: Upstream, url: str, timeouts: Timeouts = QUICK) -> Response:
    return await upstream.send(url, "POST", "/v1/x", [], b"{}", timeouts=timeouts)


def failing(timeouts: Timeouts = QUICK) -> Client[UpstreamError]:
    """A client that expects its request to fail, by the head or by the body."""

    async def client(upstream: Upstream, url: str) -> UpstreamError:
        with pytest.raises(UpstreamError) as caught:
            await (await ask(upstream, url, timeouts)).read(1_000)
        return caught.value

    return client


# ---- bytes


@settings(max_examples=20)
@given(parts=st.lists(st.binary(min_size=1, max_size=3_000), max_size=5))
def test_bodies_pass_untouched_both_ways(parts: list[bytes]) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"x-length": str(len(await request.read()))})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    async def client(upstream: Upstream, url: str) -> None:
        body = b"".join(parts)
        response = await upstream.send(url, "POST", "/", [], body, timeouts=QUICK)
        assert dict(response.headers)[b"x-length"] == str(len(body)).encode()
        assert await response.read(100_000) == body

    with_server(echo, client)


def test_a_long_body_has_its_length_and_arrives_whole() -> None:
    body = bytes(range(256)) * 12_000  # 3 MB

    async def echo(request: web.Request) -> web.StreamResponse:
        assert request.headers["content-length"] == str(len(body))
        assert "transfer-encoding" not in request.headers
        return web.Response(body=(await request.read() == body and b"same") or b"different")

    async def client(upstream: Upstream, url: str) -> bytes:
        response = await upstream.send(url, "POST", "/", [], body, timeouts=QUICK)
        return await response.read(100)

    assert with_server(echo, client) == b"same"


def test_chunks_come_as_they_arrive() -> None:
    received = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(START + b"5\r\nfirst\r\n")
        await asyncio.wait_for(received.wait(), 5)  # the second one waits for the first
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        await writer.drain()

    async def client(upstream: Upstream, url: str) -> list[bytes]:
        got = []
        response = await ask(upstream, url)
        while chunk := await response.chunk():
            got.append(chunk)
            received.set()
        return got

    assert with_talk(conversation, client) == [b"first", b"second"]


def test_a_compressed_answer_and_a_redirect_are_passed_on_as_they_are() -> None:
    packed = gzip.compress(b"text")

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/moved":
            return web.Response(status=307, headers={"location": "/elsewhere"})
        return web.Response(body=packed, headers={"content-encoding": "gzip"})

    async def client(upstream: Upstream, url: str) -> None:
        status, body = await upstream.fetch(url, "GET", "/", timeouts=QUICK, limit=1_000)
        assert (status, body) == (200, packed)
        moved = await upstream.send(url, "GET", "/moved", [], None, timeouts=QUICK)
        assert moved.status == 307
        assert (b"location", b"/elsewhere") in moved.headers
        await moved.read(0)

    with_server(handler, client)


def test_a_length_beside_chunks_is_never_passed_on() -> None:
    answer = START.replace(b"transfer", b"content-length: 1\r\ntransfer") + b"2\r\nok\r\n0\r\n\r\n"

    async def client(upstream: Upstream, url: str) -> None:
        try:
            response = await ask(upstream, url)
        except UpstreamError as error:
            assert error.kind == "broken"
        else:
            assert response.headers == []
            assert await response.read(10) == b"ok"

    with_talk(with_start(answer), client)


@pytest.mark.parametrize("status", [200, 204, 400, 404, 500, 503])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST"])
def test_any_status_is_an_answer_also_without_a_body(status: int, method: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async def client(upstream: Upstream, url: str) -> tuple[int, bytes]:
        return await upstream.fetch(url, method, "/", timeouts=QUICK, limit=0)

    assert with_server(handler, client) == (status, b"")


def test_an_answer_that_is_too_long_is_an_error() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 1_001)

    error = with_server(handler, failing())
    assert error.kind == "broken"
    assert "1000 bytes" in str(error)


# ---- headers


def test_what_is_on_the_wire_is_what_was_given_and_nothing_else() -> None:
    seen: list[str] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await head(reader))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await silence()

    headers = [
        ("host", "gateway"),
        ("x-kept", "1"),
        ("x-kept", "2"),
        ("content-length", "999"),
        ("accept-encoding", "br"),
        ("connection", "close"),
        ("keep-alive", "?"),
        ("proxy-authorization", "?"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("expect", "100-continue"),
    ]

    async def client(upstream: Upstream, url: str) -> None:
        target = "/v1/%7Ex%2Fy?q=a+b%41&c=%c3%a9"
        response = await upstream.send(url, "POST", target, headers, b"{}", timeouts=QUICK)
        await response.read(0)
        assert seen[0].lower().splitlines() == [
            f"post {target.lower()} http/1.1",
            f"host: {url.removeprefix('http://')}",
            "x-kept: 1",
            "x-kept: 2",
            "accept-encoding: identity",
            "content-length: 2",
            "",
        ]

    with_talk(conversation, client)


def test_hop_by_hop_headers_of_the_answer_stay_behind() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nX-Kept: 1\r\nConnection: X-Mine\r\nX-Mine: 2\r\nKeep-Alive: 3\r\n"
        b"Content-Length: 2\r\nProxy-Authenticate: 4\r\nx-kept: 5\r\n\r\nok"
    )

    async def client(upstream: Upstream, url: str) -> list[tuple[bytes, bytes]]:
        response = await ask(upstream, url)
        assert await response.read(10) == b"ok"
        return response.headers

    assert with_talk(with_start(answer), client) == [
        (b"x-kept", b"1"),
        (b"content-length", b"2"),
        (b"x-kept", b"5"),
    ]


def test_cookies_are_not_remembered() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.Response(text=request.headers.get("cookie", "none"))
        response.set_cookie("tenant", "a")
        return response

    async def client(upstream: Upstream, url: str) -> bytes:
        await upstream.fetch(url, "GET", "/", timeouts=QUICK, limit=100)
        return (await upstream.fetch(url, "GET", "/", timeouts=QUICK, limit=100))[1]

    assert with_server(handler, client) == b"none"


@pytest.mark.parametrize("target", ["", "v1", "@evil.test/", "/a b", "/a\r\nx: y", "/é"])
def test_a_target_that_is_none_is_refused(target: str) -> None:
    async def run() -> None:
        async with Upstream() as upstream:
            with pytest.raises(ValueError, match="target"):
                await upstream.send("http://127.0.0.1:1", "GET", target, [], None)

    asyncio.run(run())


# ---- connections


def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        return web.Response(text=str(request.transport.get_extra_info("peername")[1]) + " " * 300)

    async def client(upstream: Upstream, url: str) -> None:
        ports = [(await upstream.fetch(url, "GET", "/", timeouts=QUICK, limit=500))[1]]
        ports.append((await upstream.fetch(url, "GET", "/", timeouts=QUICK, limit=500))[1])
        assert ports[0] == ports[1]

    with_server(handler, client)


async def abort(upstream: Upstream, url: str) -> None:
    response = await ask(upstream, url)
    assert await response.chunk() == b"first"
    response.abort()


async def cancel(upstream: Upstream, url: str) -> None:
    got = asyncio.Event()

    async def read() -> None:
        response = await ask(upstream, url)
        while await response.chunk():
            got.set()

    task = asyncio.create_task(read())
    await got.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_before_the_head(upstream: Upstream, url: str) -> None:
    task = asyncio.create_task(ask(upstream, f"{url}/silent"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("ending", [abort, cancel, cancel_before_the_head])
def test_the_engine_sees_that_nobody_waits(ending: Client[None]) -> None:
    async def run() -> None:
        gone = asyncio.Event()

        async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if "/silent/" not in await head(reader):
                writer.write(START + b"5\r\nfirst\r\n")
            with suppress(ConnectionResetError):
                assert await reader.read() == b"{}"
            gone.set()

        async with talk(conversation) as url, Upstream() as upstream:
            await ending(upstream, url)
            await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(run())


def test_an_abort_does_not_wait_for_an_engine_that_does_not_read() -> None:
    async def client(upstream: Upstream, url: str) -> None:
        response = await upstream.send(url, "POST", "/", [], b"x" * 20_000_000, timeouts=QUICK)
        await asyncio.sleep(0.05)  # by now nothing more fits into the connection
        open_files = len(os.listdir("/dev/fd"))
        response.abort()
        await asyncio.sleep(0.05)
        assert len(os.listdir("/dev/fd")) == open_files - 1

    with_talk(with_start(START), client)


def test_a_reader_of_an_aborted_answer_is_told() -> None:
    async def client(upstream: Upstream, url: str) -> UpstreamError:
        response = await ask(upstream, url)
        task = asyncio.create_task(response.read(100))
        await asyncio.sleep(0.02)
        response.abort()
        with pytest.raises(UpstreamError) as caught:
            await task
        return caught.value

    assert with_talk(with_start(START), client).kind == "broken"


# ---- timeouts and failures

BROKEN: dict[str, tuple[Talk, ErrorKind, Timeouts]] = {
    "never answers": (with_start(), "first_byte", Timeouts(first_byte_s=0.05)),
    "head, then nothing": (with_start(START), "first_byte", Timeouts(first_byte_s=0.05)),
    "half a head": (with_start(b"HTTP/1.1 200"), "first_byte", Timeouts(first_byte_s=0.05)),
    "stalls": (with_start(START + b"1\r\na\r\n"), "chunk", Timeouts(chunk_s=0.05)),
    "stalls, no total": (
        with_start(START + b"1\r\na\r\n"),
        "chunk",
        Timeouts(first_byte_s=None, chunk_s=0.05, total_s=None),
    ),
    "never answers, total": (with_start(), "total", Timeouts(total_s=0.05)),
    "stalls, total": (with_start(START + b"1\r\na\r\n"), "total", Timeouts(total_s=0.05)),
    "closes at once": (with_start(then_wait=False), "broken", QUICK),
    "closes after the head": (with_start(START, then_wait=False), "broken", QUICK),
    "closes in a chunk": (with_start(START + b"9\r\nhalf", then_wait=False), "broken", QUICK),
    "closes before its length": (
        with_start(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", then_wait=False),
        "broken",
        QUICK,
    ),
    "no HTTP": (with_start(b"220 mail.test ESMTP\r\n\r\n"), "broken", QUICK),
    "bad chunk": (with_start(START + b"zz\r\n"), "broken", QUICK),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_fail_has_its_kind(name: str) -> None:
    conversation, kind, timeouts = BROKEN[name]
    error = with_talk(conversation, failing(timeouts))
    assert (error.kind, error.sent) == (kind, True)
    assert str(error)


def test_a_refused_connection_was_certainly_not_used() -> None:
    async def run() -> UpstreamError:
        async with Upstream() as upstream:
            with refusing() as url:
                return await failing()(upstream, url)

    error = asyncio.run(run())
    assert (error.kind, error.sent) == ("connect", False)


def test_a_connection_that_never_comes_about_times_out() -> None:
    async def run() -> UpstreamError:
        async with AsyncExitStack() as stack:
            # A backlog of none and nobody who accepts: the system leaves the third one waiting.
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            address = server.getsockname()
            for _ in range(3):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            upstream = await stack.enter_async_context(Upstream())
            url = f"http://127.0.0.1:{address[1]}"
            return await failing(Timeouts(connect_s=0.05))(upstream, url)

    error = asyncio.run(run())
    assert (error.kind, error.sent) == ("connect", False)
    assert "0.05 s" in str(error)


def test_an_error_says_nothing_of_the_request() -> None:
    async def client(upstream: Upstream, url: str) -> UpstreamError:
        with pytest.raises(UpstreamError) as caught:
            await upstream.send(
                url,
                "POST",
                "/secret-path",
                [("authorization", "Bearer secret-key")],
                b"secret prompt",
                timeouts=Timeouts(first_byte_s=0.05),
            )
        return caught.value

    error = with_talk(with_start(), client)
    assert "secret" not in f"{error} {error.__cause__}"


def test_a_slow_client_is_no_slow_engine() -> None:
    async def run() -> list[bytes]:
        more = asyncio.Semaphore(1)

        async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(START)
            for chunk in (b"1\r\na\r\n", b"1\r\nb\r\n", b"1\r\nc\r\n0\r\n\r\n"):
                await more.acquire()
                writer.write(chunk)
                await writer.drain()

        async with talk(conversation) as url, Upstream() as upstream:
            got = []
            response = await ask(upstream, url, Timeouts(chunk_s=0.1))
            while chunk := await response.chunk():
                got.append(chunk)
                if chunk == b"b":
                    await asyncio.sleep(0.25)
                more.release()
            return got

    assert asyncio.run(run()) == [b"a", b"b", b"c"]


def test_steady_chunks_may_take_longer_than_the_chunk_timeout_together() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(START)
        for _ in range(8):
            writer.write(b"1\r\na\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def client(upstream: Upstream, url: str) -> bytes:
        timeouts = Timeouts(first_byte_s=0.3, chunk_s=0.3)
        return await (await ask(upstream, url, timeouts)).read(100)

    assert with_talk(conversation, client) == b"a" * 8
