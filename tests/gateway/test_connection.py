"""Connections: who gets which, what is left of an answer, and bytes that mean another message."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.servers import Talk, head, silence, talk

from saga.gateway.connection import Connection, ConnectionBrokenError, Origin, Pool
from saga.gateway.heads import address
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = OK + b"content-length: 0\r\n\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"
QUICK = Timeouts(connect_s=5.0, first_byte_s=5.0, chunk_s=5.0, total_s=5.0)


class Run(Protocol):
    def __call__(self, scenario: Coroutine[Any, Any, T]) -> T: ...


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Both event loops: their transports differ."""

    def run(scenario: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(scenario)

    return run


def answering(*answers: bytes, hold: bool = True) -> Talk:
    """Answers the requests of each connection in turn, then falls silent or closes."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await head(reader)
            writer.write(answer)
            await writer.drain()
        if hold:
            await silence()

    return conversation


def origin(url: str) -> Origin:
    return address(url).origin


async def read_all(connection: Connection) -> bytes:
    await connection.head()
    parts = []
    while part := await connection.read():
        parts.append(part)
    return b"".join(parts)


async def get(upstream: Upstream, url: str, method: str = "GET") -> tuple[int, bytes]:
    return await upstream.fetch(url, method, "/", timeouts=QUICK, limit=1 << 26)


# ---- the pool


def test_the_connection_used_last_is_used_first(run: Run) -> None:
    async def scenario() -> None:
        async with talk(answering(EMPTY, EMPTY, EMPTY)) as url:
            pool = Pool(idle_s=60)
            first, second = await pool.connect(origin(url)), await pool.connect(origin(url))
            for connection in (first, second):
                connection.ask(REQUEST, None)
            for connection in (second, first):
                assert await read_all(connection) == b""
                pool.give_back(connection)
            taken = [pool.take(origin(url)) for _ in range(3)]
            assert taken == [first, second, None]
            assert pool.take(Origin(True, "127.0.0.1", origin(url).port)) is None
            pool.close()

    run(scenario())


def test_a_connection_that_waited_too_long_is_closed(run: Run) -> None:
    async def scenario() -> None:
        closed = asyncio.Event()

        async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b""
            closed.set()

        async with talk(conversation) as url:
            pool = Pool(idle_s=0.02)
            pool.give_back(await pool.connect(origin(url)))
            await asyncio.wait_for(closed.wait(), 5)
            assert pool.take(origin(url)) is None

    run(scenario())


def test_a_connection_that_the_engine_closed_is_not_used(run: Run) -> None:
    async def scenario() -> None:
        async with talk(answering(EMPTY, hold=False)) as url:
            pool = Pool(idle_s=60)
            connection = await pool.connect(origin(url))
            connection.ask(REQUEST, None)
            await read_all(connection)
            pool.give_back(connection)
            await asyncio.sleep(0.05)  # the end of it arrives
            assert pool.take(origin(url)) is None

    run(scenario())


@pytest.mark.parametrize("pause_s", [0.0, 0.02], ids=["in one piece", "later"])
@pytest.mark.parametrize("surplus", [OK + b"content-length: 3\r\n\r\nbad", b"HT", b"\0"])
def test_an_answer_that_nobody_asked_for_is_nobodys(
    run: Run, surplus: bytes, pause_s: float
) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        good = OK + b"content-length: 4\r\n\r\ngood"
        for part in [good, surplus] if pause_s else [good + surplus]:
            writer.write(part)
            await asyncio.sleep(pause_s)
        await silence()

    async def scenario() -> None:
        async with talk(conversation) as url, Upstream() as upstream:
            for _ in range(3):
                assert await get(upstream, url) == (200, b"good")
                await asyncio.sleep(pause_s * 2)

    run(scenario())


def test_an_answer_that_was_read_has_no_hold_on_who_has_the_connection_next(run: Run) -> None:
    more = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(EMPTY)
        await head(reader)
        writer.write(CHUNKED + b"1\r\na\r\n")
        await more.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")
        await silence()

    async def scenario() -> None:
        async with talk(conversation) as url, Upstream() as upstream:
            first = await upstream.send(url, "GET", "/", [], None, timeouts=QUICK)
            assert await first.read(0) == b""
            second = await upstream.send(url, "GET", "/", [], None, timeouts=QUICK)
            assert await first.read(0) == b""
            first.abort()
            more.set()
            assert await first.read(0) == b""
            assert await second.read(2) == b"ab"

    run(scenario())


def test_an_engine_that_says_it_will_close_is_not_asked_again_there(run: Run) -> None:
    async def scenario() -> None:
        answer = OK + b"connection: close\r\ncontent-length: 0\r\n\r\n"
        async with talk(answering(answer)) as url:
            pool = Pool(idle_s=60)
            connection = await pool.connect(origin(url))
            connection.ask(REQUEST, None)
            assert await read_all(connection) == b""
            pool.give_back(connection)
            assert pool.take(origin(url)) is None

    run(scenario())


def test_closing_the_pool_closes_all_connections(run: Run) -> None:
    async def scenario() -> None:
        ends = asyncio.Semaphore(0)

        async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionResetError):
                await reader.read()
            ends.release()

        async with talk(conversation) as url:
            pool = Pool(idle_s=60)
            idle, used = await pool.connect(origin(url)), await pool.connect(origin(url))
            pool.give_back(idle)
            used.ask(REQUEST, None)
            pool.close()
            with pytest.raises(ConnectionBrokenError):
                await used.head()
            for _ in range(2):
                await asyncio.wait_for(ends.acquire(), 5)

    run(scenario())


# ---- reused connections that end


def counting(
    second: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None],
) -> tuple[list[int], Talk]:
    """Answers the first request of its first connection and all others; the second request of the
    first one is ``second``'s. Counts the requests of each connection."""
    requests: list[int] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(requests)
        requests.append(0)
        while True:
            await head(reader)
            requests[number] += 1
            if (number, requests[number]) == (0, 2):
                return second(reader, writer)
            writer.write(EMPTY)

    return requests, conversation


def test_a_request_that_meets_a_closing_connection_is_sent_again(run: Run) -> None:
    async def scenario() -> None:
        requests, conversation = counting(lambda reader, writer: None)
        async with talk(conversation) as url, Upstream() as upstream:
            assert await get(upstream, url, "POST") == (200, b"")
            assert await get(upstream, url, "POST") == (200, b"")
        assert requests == [2, 1]

    run(scenario())


def test_a_request_is_not_sent_again_once_anything_came(run: Run) -> None:
    async def scenario() -> None:
        requests, conversation = counting(lambda reader, writer: writer.write(b"H"))
        async with talk(conversation) as url, Upstream() as upstream:
            await get(upstream, url)
            with pytest.raises(UpstreamError, match="closed") as caught:
                await get(upstream, url)
            assert (caught.value.kind, caught.value.sent) == ("broken", True)
        assert requests == [2]

    run(scenario())


def test_a_request_is_not_sent_again_on_a_fresh_connection(run: Run) -> None:
    async def scenario() -> None:
        connections = 0

        async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await head(reader)

        async with talk(conversation) as url, Upstream() as upstream:
            with pytest.raises(UpstreamError, match="closed"):
                await get(upstream, url)
        assert connections == 1

    run(scenario())


class ShiftedLoop(asyncio.SelectorEventLoop):
    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def test_a_request_is_not_sent_again_when_the_engine_had_time_to_work_on_it() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ShiftedLoop)

        def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            loop.ahead_s = 2.0

        requests, conversation = counting(later)
        async with talk(conversation) as url, Upstream() as upstream:
            await get(upstream, url)
            with pytest.raises(UpstreamError, match="closed"):
                await get(upstream, url)
        assert requests == [2]

    with asyncio.Runner(loop_factory=ShiftedLoop) as runner:
        runner.run(scenario())


def test_an_engine_that_is_gone_when_asked_again_may_have_seen_the_request(run: Run) -> None:
    async def scenario() -> UpstreamError:
        server: asyncio.Server

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await head(reader)
            writer.write(EMPTY)
            await head(reader)
            server.close()
            writer.close()

        server = await asyncio.start_server(converse, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Upstream() as upstream:
            await get(upstream, url)
            with pytest.raises(UpstreamError) as caught:
                await get(upstream, url)
        return caught.value

    error = run(scenario())
    assert (error.kind, error.sent) == ("connect", True)


# ---- answers

ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "a length": (OK + b"content-length: 2\r\n\r\nok", b"ok"),
    "chunks": (CHUNKED + b"1;x=y\r\no\r\n1\r\nk\r\n0\r\nx-trailer: 1\r\n\r\n", b"ok"),
    "until its end": (OK + b"\r\nok", b"ok"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nok", b"ok"),
    "connection: close": (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "informational ones first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + EMPTY,
        b"",
    ),
    "no content, with a length": (b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_way_to_end_an_answer(run: Run, name: str) -> None:
    answer, body = ANSWERS[name]

    async def scenario() -> None:
        async with talk(answering(answer, hold=False)) as url, Upstream() as upstream:
            response = await upstream.send(url, "GET", "/", [], None, timeouts=QUICK)
            assert response.status in (200, 204)
            assert dict(response.headers).keys() <= {b"content-length"}
            assert await response.read(10) == body

    run(scenario())


def test_the_answer_to_head_has_a_length_and_no_body(run: Run) -> None:
    async def scenario() -> None:
        answer = OK + b"content-length: 5\r\n\r\n"
        async with talk(answering(answer)) as url, Upstream() as upstream:
            for _ in range(2):
                response = await upstream.send(url, "HEAD", "/", [], None, timeouts=QUICK)
                assert response.headers == [(b"content-length", b"5")]
                assert await response.read(0) == b""

    run(scenario())


BROKEN = {
    "length and chunks": OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "two lengths": OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\na",
    "a length that is none": OK + b"content-length: +1\r\n\r\na",
    "another coding": OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding that hides chunks": OK + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a folded header": OK + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "a bare line feed": OK + b"x: a\ny: b\r\ncontent-length: 0\r\n\r\n",
    "a space before the colon": OK + b"content-length : 0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "a status that is none": b"HTTP/1.1 099 x\r\ncontent-length: 0\r\n\r\n",
    "too high a status": b"HTTP/1.1 600 x\r\ncontent-length: 0\r\n\r\n",
    "a long header": OK + b"x: " + b"a" * 400_000,
    "a long trailer": CHUNKED + b"0\r\nx: " + b"a" * 400_000,
    "many informational ones": b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_answer_that_can_be_read_in_two_ways_is_none(run: Run, name: str) -> None:
    async def scenario() -> None:
        async with talk(answering(BROKEN[name])) as url, Upstream() as upstream:
            with pytest.raises(UpstreamError) as caught:
                await get(upstream, url)
            assert caught.value.kind == "broken"

    run(scenario())


def test_a_reset_is_no_end_of_a_body(run: Run) -> None:
    got_half = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(OK + b"\r\nhalf")
        await got_half.wait()
        opened: socket.socket = writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def scenario() -> None:
        async with talk(conversation) as url:
            connection = await Pool(idle_s=60).connect(origin(url))
            connection.ask(REQUEST, None)
            await connection.head()
            assert await connection.read() == b"half"
            got_half.set()
            with pytest.raises(ConnectionBrokenError):
                await connection.read()

    run(scenario())


def test_what_came_before_the_break_is_read(run: Run) -> None:
    async def scenario() -> None:
        answer = CHUNKED + b"4\r\nhalf\r\n"
        async with talk(answering(answer, hold=False)) as url, Upstream() as upstream:
            response = await upstream.send(url, "GET", "/", [], None, timeouts=QUICK)
            await asyncio.sleep(0.02)  # both have come before anybody looks
            assert await response.chunk() == b"half"
            with pytest.raises(UpstreamError, match="closed"):
                await response.chunk()

    run(scenario())


# ---- who is slow makes the other wait


def test_an_engine_waits_for_a_slow_reader(run: Run) -> None:
    size, piece = 64 << 20, bytes(range(256)) * 256
    sent = 0

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head(reader)
        writer.write(OK + b"content-length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
        await head(reader)
        writer.write(EMPTY)
        await silence()

    async def scenario() -> None:
        async with talk(conversation) as url, Upstream() as upstream:
            response = await upstream.send(url, "GET", "/", [], None, timeouts=QUICK)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.05)
            assert sent < size // 2  # what the system's own buffers hold
            digest = hashlib.blake2b(await response.read(size))
            assert digest.digest() == hashlib.blake2b(piece * (size // len(piece))).digest()
            assert await get(upstream, url) == (200, b"")  # and it reads again

    run(scenario())


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def wired() -> tuple[Connection, Wire]:
    """To be called inside an event loop."""
    connection, wire = Connection(Origin(False, "engine", 80)), Wire()
    connection.connection_made(wire)
    return connection, wire


def test_a_long_body_is_handed_over_as_the_engine_takes_it() -> None:
    async def scenario() -> None:
        connection, wire = wired()
        body = bytes(1_000_000)
        connection.pause_writing()
        connection.ask(REQUEST, body)
        assert wire.written == [REQUEST]
        assert not connection.reusable
        connection.data_received(EMPTY)
        assert connection.at_end
        assert not connection.reusable  # half a request must not go before the next one
        connection.resume_writing()
        assert b"".join(wire.written) == REQUEST + body
        assert max(map(len, wire.written)) <= 256 * 1024
        assert connection.reusable

    asyncio.run(scenario())


def test_nothing_may_come_while_nobody_asks() -> None:
    async def scenario() -> None:
        connection, wire = wired()
        assert connection.reusable
        connection.data_received(b"\r\n")
        assert wire.aborted
        assert not connection.reusable

    asyncio.run(scenario())


def test_a_short_body_goes_out_with_its_head() -> None:
    async def scenario() -> None:
        connection, wire = wired()
        connection.ask(REQUEST, b"body")
        assert wire.written == [REQUEST + b"body"]

    asyncio.run(scenario())


# ---- laws


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


@given(name=st.sampled_from(sorted(ANSWERS)), places=st.lists(st.integers(0, 300)))
def test_an_answer_is_the_same_however_it_is_cut(name: str, places: list[int]) -> None:
    answer, body = ANSWERS[name]

    async def scenario() -> None:
        connection, _ = wired()
        connection.ask(REQUEST, None)
        for piece in cut(answer, places):
            connection.data_received(piece)
        connection.eof_received()
        assert await read_all(connection) == body

    asyncio.run(scenario())


PIECES = st.sampled_from(
    [OK, EMPTY, CHUNKED, b"\r\n", b"1\r\na\r\n", b"0\r\n\r\n", b"HTTP/1.1 100 C"]
)


@given(pieces=st.lists(PIECES | st.binary(max_size=20)))
def test_whatever_comes_a_reader_is_told_an_end_and_nothing_is_left(pieces: list[bytes]) -> None:
    async def scenario() -> None:
        connection, wire = wired()
        connection.ask(REQUEST, None)
        for piece in pieces:
            connection.data_received(piece)
        connection.eof_received()
        try:
            await asyncio.wait_for(read_all(connection), 1)
        except ConnectionBrokenError:
            assert not connection.at_end
        assert not connection.reusable
        assert wire.aborted

    asyncio.run(scenario())


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself; with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "engine.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.mark.parametrize("trusted", [True, False])
def test_tls_to_an_engine_that_can_prove_who_it_is(
    run: Run, certificate: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            writer.write(EMPTY)

    async def scenario() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        async with talk(conversation, tls=context) as url, Upstream() as upstream:
            if trusted:
                for _ in range(2):
                    assert await get(upstream, url) == (200, b"")
                return
            with pytest.raises(UpstreamError, match="certificate") as caught:
                await get(upstream, url)
            assert (caught.value.kind, caught.value.sent) == ("connect", False)

    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    run(scenario())
