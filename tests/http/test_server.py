"""Servers on real sockets, in both event loops: what clients see, and how a server stops."""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import aiohttp
import pytest
import uvloop
from tests.http.wires import Echo, Held, ask, echo, get, ok, statuses

from saga.http.connection import Application, Bounds
from saga.http.exchange import Reply, Request
from saga.http.server import Server, event_loop, run

T = TypeVar("T")
MIB = 1 << 20


class Run(Protocol):
    def __call__(self, scenario: Coroutine[Any, Any, T]) -> T: ...


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Run:
    """Runs in both event loops, as their transports differ. Nothing may go wrong where nobody
    looks."""

    def run(scenario: Coroutine[Any, Any, T]) -> T:
        unseen: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: unseen.append(context))
            result = runner.run(asyncio.wait_for(scenario, 30))
        assert not unseen
        return result

    return run


@asynccontextmanager
async def serving(
    application: Application, bounds: Bounds | None = None
) -> AsyncIterator[tuple[Server, int]]:
    """The server and its port. At the end nothing may be left of any connection."""
    server = Server(application, bounds)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.stop(0)
        assert not server.connections
        assert len(asyncio.all_tasks()) <= 2, "of the test itself"


class Client:
    """One end of a connection, and nothing between a test and its bytes."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def receive(self, size: int = 65_536) -> bytes:
        return await self._loop.sock_recv(self._socket, size)

    async def rest(self) -> bytes:
        """Until the server says that no more comes."""
        parts = []
        while part := await self.receive():
            parts.append(part)
        return b"".join(parts)

    def say_no_more(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def connected(port: int, *, small: bool = False) -> AsyncIterator[Client]:
    """``small``: hardly anything is received that was not asked for."""
    with socket.socket() as opened:
        opened.setblocking(False)
        if small:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", port))
        yield Client(opened)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


# ---- what clients see


async def backwards(request: Request, reply: Reply) -> None:
    """Answers with the body turned around, in pieces."""
    body = (await request.body(1 << 26, 10.0))[::-1]
    reply.start(200, [(b"content-type", b"application/octet-stream")])
    for start in range(0, len(body), 100_000):
        reply.write(body[start : start + 100_000])
        await reply.drain()
    reply.end()


@pytest.mark.parametrize("size", [0, 1, 70_000, 1_000_000])
def test_a_client_library_gets_what_was_written(loop: Run, size: int) -> None:
    body = random.Random(size).randbytes(size)

    async def in_chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 60_000):
            yield body[start : start + 60_000]

    async def scenario() -> None:
        async with serving(backwards) as (server, port), aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/"
            for data in (body, in_chunks()):
                async with session.post(url, data=data, expect100=True) as response:
                    assert response.status == 200
                    assert await response.read() == body[::-1]
            assert len(server.connections) == 1, "it was kept"

    loop(scenario())


def test_a_client_of_the_standard_library(loop: Run) -> None:
    def talk(port: int) -> list[tuple[int, bytes]]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        answers = []
        for method, body in [("GET", None), ("HEAD", None), ("POST", b"ab"), ("DELETE", None)]:
            client.request(method, "/a?b", body)
            response = client.getresponse()
            answers.append((response.status, response.read()))
        client.close()
        return answers

    async def scenario() -> None:
        async with serving(Echo()) as (_, port):
            assert await asyncio.to_thread(talk, port) == [
                (200, echo("GET", "/a?b")),
                (200, b""),
                (200, echo("POST", "/a?b", b"ab")),
                (200, echo("DELETE", "/a?b")),
            ]

    loop(scenario())


def test_requests_that_come_together_are_answered_in_order(loop: Run) -> None:
    async def scenario() -> None:
        async with serving(Echo()) as (_, port), connected(port) as client:
            targets = [f"/{number}" for number in range(50)]
            await client.send(b"".join(map(get, targets)) + get("/last", "connection: close"))
            wanted = b"".join(ok(echo("GET", target)) for target in targets)
            assert await client.rest() == wanted + ok(echo("GET", "/last"), close=True)

    loop(scenario())


def test_a_client_reads_why_its_upload_was_refused(loop: Run) -> None:
    """Although it sends it all before it reads anything."""

    async def scenario() -> None:
        async with serving(Refusing()) as (_, port), connected(port) as client:
            await client.send(ask("POST", "/", f"content-length: {16 * MIB}"))
            for _ in range(16):
                await client.send(b"a" * MIB)
            assert statuses(await client.rest()) == [413]

    loop(scenario())


class Refusing:
    async def __call__(self, request: Request, reply: Reply) -> None:
        reply.respond(413, [], b"too long")


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", get("/") + b"nonsense\r\n\r\n"])
def test_a_client_reads_why_it_was_not_understood(loop: Run, sent: bytes) -> None:
    async def scenario() -> None:
        async with serving(Echo()) as (server, port):
            async with connected(port) as client:
                await client.send(sent)
                await client.send(b"more " * 100_000)
                assert statuses(await client.rest())[-1] == 400
            await until(lambda: not server.connections)

    loop(scenario())


async def halves(request: Request, reply: Reply) -> None:
    reply.start(200, [])
    reply.write(b"half an answer")


def test_half_an_answer_is_seen_to_be_one(loop: Run) -> None:
    async def scenario() -> None:
        async with serving(halves) as (_, port):
            async with connected(port) as client:
                await client.send(get("/", version="1.0"))
                with pytest.raises(ConnectionResetError):
                    await client.rest()
            async with connected(port) as client:
                await client.send(get("/"))
                assert not (await client.rest()).endswith(b"0\r\n\r\n")

    loop(scenario())


def test_a_client_that_says_no_more_has_left(loop: Run) -> None:
    async def scenario() -> None:
        held = Held()
        async with serving(held) as (server, port), connected(port) as client:
            await client.send(get("/1") + get("/2"))
            await until(lambda: held.begun)
            client.say_no_more()
            assert await client.rest() == b""
            await until(lambda: not server.connections)
            assert (held.begun, held.cancelled) == (["/1"], ["/1"])

    loop(scenario())


# ---- slow ones


class Endless:
    def __init__(self) -> None:
        self.num_written = 0
        self.cancelled = False

    async def __call__(self, request: Request, reply: Reply) -> None:
        reply.start(200, [])
        try:
            while True:
                reply.write(b"a" * 65_536)
                self.num_written += 65_536
                await reply.drain()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def test_who_does_not_read_makes_the_application_wait_and_is_given_up(loop: Run) -> None:
    async def scenario() -> None:
        endless = Endless()
        async with (
            serving(endless, Bounds(stall_s=0.1)) as (server, port),
            connected(port, small=True) as client,
        ):
            await client.send(get("/"))
            await until(lambda: endless.cancelled)
            assert endless.num_written < 32 * MIB, "what the system's own buffers hold"
            assert not server.connections

    loop(scenario())


def test_who_sends_what_nobody_reads_yet_has_to_wait(loop: Run) -> None:
    async def scenario() -> None:
        held, sent = Held(), 0

        async def upload(client: Client) -> None:
            nonlocal sent
            for _ in range(32):
                await client.send(b"a" * MIB)
                sent += MIB

        async with serving(held) as (_, port), connected(port) as client:
            await client.send(get("/first") + ask("POST", "/", f"content-length: {32 * MIB}"))
            uploading = asyncio.create_task(upload(client))
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 16 * MIB, "what the system's own buffers hold"
            for _ in range(2):
                held.answer_one()
            await uploading
            received = b""
            while len(received) < 32 * MIB:
                received += await client.receive(MIB)
            assert statuses(received) == [200, 200]

    loop(scenario())


# ---- the end of a server


def test_a_server_that_stops_answers_what_is_under_way(loop: Run) -> None:
    async def scenario() -> None:
        held = Held()
        server = Server(held)
        port = await server.start("127.0.0.1", 0)
        async with connected(port) as busy, connected(port) as idle, connected(port) as begun:
            await busy.send(get("/1") + get("/not-begun"))
            await begun.send(b"GET / HTT")
            await until(lambda: held.begun and len(server.connections) == 3)
            stopping = asyncio.create_task(server.stop(10))
            assert await idle.rest() == b""
            assert await begun.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                async with connected(port):
                    pass
            assert not stopping.done()
            held.answer_one()
            assert await busy.rest() == ok(echo("GET", "/1"), close=True)
            await stopping
            assert held.begun == ["/1"]
            assert not server.connections

    loop(scenario())


def test_a_server_that_stops_waits_until_answers_are_taken(loop: Run) -> None:
    body = bytes(20 * MIB)

    async def large(request: Request, reply: Reply) -> None:
        reply.respond(200, [], body)

    async def scenario() -> None:
        server = Server(large)
        port = await server.start("127.0.0.1", 0)
        async with connected(port, small=True) as client:
            await client.send(get("/"))
            start = await client.receive(100)
            (connection,) = server.connections
            assert connection.idle, "it was answered, but it did not read it yet"
            stopping = asyncio.create_task(server.stop(10))
            assert len(start) + len(await client.rest()) > len(body)
            await stopping

    loop(scenario())


@pytest.mark.parametrize("hurried", [False, True])
def test_what_takes_too_long_is_cut_off_and_may_clean_up(loop: Run, hurried: bool) -> None:
    async def scenario() -> None:
        cleaned = False

        async def stuck(request: Request, reply: Reply) -> None:
            nonlocal cleaned
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                cleaned = True

        server = Server(stuck)
        port = await server.start("127.0.0.1", 0)
        async with connected(port) as client:
            await client.send(get("/"))
            await until(lambda: any(not one.idle for one in server.connections))
            stopping = asyncio.create_task(server.stop(60 if hurried else 0.01))
            await asyncio.sleep(0)
            if hurried:
                server.hurry()
            await stopping
            assert cleaned
            assert await client.rest() == b""

    loop(scenario())


def test_one_that_comes_while_the_server_stops_is_closed_at_once(loop: Run) -> None:
    async def scenario() -> None:
        async with serving(Echo()) as (server, port):
            server.stopping = True
            async with connected(port) as client:
                assert await client.rest() == b""

    loop(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_server_after_its_answers(loop: Run, number: signal.Signals) -> None:
    async def scenario() -> None:
        held, told, ports = Held(), list[int](), list[int]()

        def stopped() -> None:
            told.append(number)

        server = Server(held)
        serving = asyncio.create_task(
            run(server, "127.0.0.1", 0, drain_s=10, on_start=ports.append, on_stop=stopped)
        )
        await until(lambda: ports)
        async with connected(ports[0]) as client:
            await client.send(get("/"))
            await until(lambda: held.begun)
            for _ in range(2 if number == signal.SIGTERM else 1):
                os.kill(os.getpid(), number)
                await until(lambda: told)
            assert told == [number]
            await until(lambda: server.stopping)
            held.answer_one()
            assert statuses(await client.rest()) == [200]
        await serving

    loop(scenario())


def test_a_second_interrupt_does_not_wait_for_answers(loop: Run) -> None:
    async def scenario() -> None:
        held, ports = Held(), list[int]()
        server = Server(held)
        serving = asyncio.create_task(
            run(server, "127.0.0.1", 0, drain_s=60, on_start=ports.append)
        )
        await until(lambda: ports)
        async with connected(ports[0]) as client:
            await client.send(get("/"))
            await until(lambda: held.begun)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: server.stopping)
            os.kill(os.getpid(), signal.SIGINT)
            await serving
            assert held.cancelled == ["/"]
            assert await client.rest() == b""

    loop(scenario())


def test_an_address_that_is_taken(loop: Run) -> None:
    async def scenario() -> None:
        async with serving(Echo()) as (_, port):
            with pytest.raises(OSError, match="in use"):
                await run(Server(Echo()), "127.0.0.1", port, drain_s=1)

    loop(scenario())


@pytest.mark.parametrize("unwanted", ["", "1"])
def test_the_loop_is_uvloops_unless_it_is_unwanted(
    unwanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGA_NO_UVLOOP", unwanted)
    made = event_loop()
    made.close()
    assert isinstance(made, uvloop.Loop) == (not unwanted)


# ---- many


def test_hundreds_that_come_and_leave_in_all_ways(loop: Run) -> None:
    rng = random.Random(7)

    async def one(port: int) -> None:
        async with connected(port) as client:
            await client.send(get("/")[: rng.randint(0, 60)])
            if rng.random() < 0.5:
                await client.send(get("/", "connection: close"))
                await client.rest()

    async def scenario() -> None:
        async with serving(Echo()) as (server, port):
            for _ in range(10):
                await asyncio.gather(*(one(port) for _ in range(30)), return_exceptions=True)
            await until(lambda: not server.connections)

    loop(scenario())
