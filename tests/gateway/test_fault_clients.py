"""Clients that leave, dribble, lie or come in thousands, and a gateway that is told to stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sized
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from tests.gateway import live
from tests.gateway.faults import CHAT, gateway
from tests.gateway.live import ask, chat
from tests.serving import wait_until

from saga import wire
from saga.core.model import RequestState
from saga.engine.server import EngineApp
from saga.gateway.app import App
from saga.gateway.reload import load
from saga.gateway.service import Gateway
from saga.http.server import Server

MIB = 1 << 20


def long(text: str, tokens: int, **options: Any) -> dict[str, Any]:
    return chat(text, max_tokens=tokens, ignore_eos=True, **options)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    """A bare connection."""
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        yield connection


def head(length: int | None) -> bytes:
    """Of a model request; None: its body comes in chunks."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{size}\r\n\r\n"
    ).encode()


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(65_536).split()[1])


# ---- slow ones


def test_a_body_that_dribbles_is_given_up_while_others_are_served() -> None:
    with gateway(engines=1, server__body_timeout_s=0.4) as running:
        with ExitStack() as stack:
            slow = [stack.enter_context(connected(running.url)) for _ in range(50)]
            for connection in slow:
                connection.sendall(head(1_000) + b'{"mod')
            assert ask(f"{running.url}{CHAT}", chat("hello"))[0] == 200
            for connection in slow:
                connection.sendall(b"e")
            assert [status_of(connection) for connection in slow] == [408] * 50
        counts = running.check_nothing_is_lost()
        assert counts["arrived"] == 1, "who has not said what it wants is no request yet"


def test_heads_that_never_end_hold_nobody_up() -> None:
    with gateway(engines=1) as running, ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connected(running.url)).sendall(head(10)[:-20])
        assert ask(f"{running.url}{CHAT}", chat("hello"))[0] == 200


def test_one_that_does_not_read_its_stream_holds_nobody_up() -> None:
    with gateway(engines=1) as running:
        with connected(running.url) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            body = msgspec.json.encode(long("much", 50_000, stream=True))
            connection.sendall(head(len(body)) + body)
            wait_until(lambda: len(running.gateway.host.requests) == 1)
            for number in range(5):
                assert ask(f"{running.url}{CHAT}", chat(f"task {number}"))[0] == 200
        assert running.check_nothing_is_lost()["finished"] >= 5


# ---- ones that leave


def test_one_that_leaves_while_it_waits_for_an_engine_is_cancelled() -> None:
    with gateway() as running:

        async def scenario() -> None:
            asking = asyncio.create_task(live.fetch(f"{running.url}{CHAT}", chat("hello")))
            await asyncio.to_thread(wait_until, lambda: running.gateway.host.num_held == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(scenario())
        counts = running.check_nothing_is_lost()
        assert (counts["arrived"], counts["cancelled"]) == (1, 1)


@pytest.mark.parametrize("streams", [False, True])
def test_the_engine_of_one_that_leaves_stops(streams: bool) -> None:
    with live.engine(speed=1.0) as (url, app), gateway(url) as running:

        async def scenario() -> None:
            body = long("go on for ever", 50_000, stream=streams)
            asking = asyncio.create_task(live.fetch(f"{running.url}{CHAT}", body))
            await asyncio.to_thread(wait_until, lambda: app.engine.num_running == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        asyncio.run(scenario())
        wait_until(lambda: app.engine.num_running == 0)
        assert app.engine.ended["abort"] == 1
        assert running.check_nothing_is_lost()["cancelled"] == 1


def test_one_that_leaves_in_the_middle_of_its_body_was_never_there() -> None:
    with gateway(engines=1) as running:
        with connected(running.url) as connection:
            connection.sendall(head(1_000) + b"{")
        assert ask(f"{running.url}{CHAT}", chat("hello"))[0] == 200
        assert running.check_nothing_is_lost()["arrived"] == 1


def test_one_that_leaves_in_the_moment_in_which_its_engine_is_lost_is_not_sent_again() -> None:
    """Both stop the same task; the second must not be taken for the first."""

    async def scenario(url: str, engine: EngineApp) -> None:
        gateway = Gateway(load(None, {}, {"engines.urls": (url,)}))
        await gateway.start()
        server = Server(App(gateway))
        port = await server.start("127.0.0.1", 0)
        _, client = await asyncio.open_connection("127.0.0.1", port)
        body = msgspec.json.encode(long("long", 50_000))
        client.write(head(len(body)) + body)
        while not engine.engine.num_running:
            await asyncio.sleep(0.005)
        (connection,) = server.connections
        connection.connection_lost(None)
        await asyncio.sleep(0)  # the departure has stopped the task, which has not run since
        gateway.fleet.remove(next(iter(gateway.fleet.engines)))
        await asyncio.sleep(0.1)
        assert connection.idle, "it waits for another engine"
        assert not gateway.host.requests
        assert gateway.host.scheduler.state.num_ended[RequestState.CANCELLED] == 1
        client.close()
        await server.stop(0)
        await gateway.stop()

    with live.engine(speed=1.0) as (url, engine):
        asyncio.run(scenario(url, engine))


# ---- bodies


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "a"', b'{"stream": "y"}', b"[" * 100_000],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with gateway(engines=1) as running:
        for path in (CHAT, "/v1/messages"):
            status, document, _ = ask(f"{running.url}{path}", body)
            assert status == 400
            assert document["error"]["message"]
        assert running.outcomes()["arrived"] in (0, 2), "2: the engine refused it"


def test_ten_megabytes_are_served() -> None:
    """As agents send them that show pictures."""
    with gateway(engines=1) as running:
        body = msgspec.json.encode(chat("look", metadata={"picture": "A" * 10_000_000}))
        with connected(running.url) as connection:
            connection.sendall(head(len(body)) + body)
            assert status_of(connection) == 200
        assert running.outcomes()["finished"] == 1


def test_too_large_a_body_is_refused_before_it_is_sent() -> None:
    with gateway(engines=1) as running:
        with connected(running.url) as connection:
            connection.sendall(head(65 * MIB))
            assert status_of(connection) == 413
        assert running.outcomes()["arrived"] == 0


def test_too_large_a_body_in_chunks_is_refused_when_it_is() -> None:
    with gateway(engines=1, server__max_body_mib=1) as running:
        with connected(running.url) as connection:
            connection.sendall(head(None))
            chunk = b"%x\r\n%s\r\n" % (MIB // 4, b"x" * (MIB // 4))
            for _ in range(5):
                connection.sendall(chunk)
            assert status_of(connection) == 413
        assert running.outcomes()["arrived"] == 0


# ---- many


def test_hundreds_of_abandoned_sessions_leave_nothing_behind() -> None:
    with gateway(engines=2, sessions__idle_s=0.2) as running:

        async def one(session: aiohttp.ClientSession, number: int) -> None:
            headers = {wire.SESSION_HEADER: f"s{number}", wire.WORKFLOW_HEADER: f"w{number // 3}"}
            asking = session.post(f"{running.url}{CHAT}", json=chat(f"{number}"), headers=headers)
            try:
                async with asyncio.timeout(0.005 if number % 3 else None), asking as response:
                    await response.read()
            except TimeoutError:
                pass

        async def scenario() -> None:
            connector = aiohttp.TCPConnector(limit=30)
            async with aiohttp.ClientSession(connector=connector) as session:
                await asyncio.gather(*(one(session, number) for number in range(300)))

        asyncio.run(scenario())
        counts = running.check_nothing_is_lost()
        assert counts["finished"] >= 100
        sessions, state = running.gateway.sessions, running.gateway.host.scheduler.state
        wait_until(lambda: not (sessions.sessions or state.workflows))  # one ends after the other
        assert not (state.sessions or state.requests or state.tenants)
        held = {name: len(v) for name, v in vars(sessions).items() if isinstance(v, Sized)}
        assert held.pop("_homes") <= 300
        assert held.pop("_deadlines") <= 64
        assert held.pop("_tokens_per_byte") == 1
        assert not any(held.values()), held


# ---- the end


def test_a_gateway_that_drains_takes_nothing_new_and_ends_what_it_has() -> None:
    with live.engine(speed=2.0) as (url, app), gateway(url) as running:

        async def scenario() -> None:
            begun = asyncio.create_task(
                live.fetch(f"{running.url}{CHAT}", long("long", 100, stream=True))
            )
            await asyncio.to_thread(wait_until, lambda: app.engine.num_running == 1)
            running.gateway.draining = True
            assert (await live.fetch(f"{running.url}/readyz"))[0] == 503
            assert (await live.fetch(f"{running.url}/livez"))[0] == 200
            status, _, headers = await live.fetch(f"{running.url}{CHAT}", chat("new"))
            assert status == 503
            assert {name.lower(): value for name, value in headers.items()}["retry-after"] == "5"
            status, text, _ = await begun
            assert status == 200
            assert text.endswith(b"data: [DONE]\n\n")

        asyncio.run(scenario())


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``saga serve`` as a process of its own; its URL."""
    command = [sys.executable, "-m", "saga.cli", "serve", "--port", "0", *arguments]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SAGA_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        errors = process.stderr
        assert errors is not None
        try:
            found = None
            while found is None:
                line = errors.readline()
                assert line, "it ended before it served"
                found = re.search(r"gateway on (http://\S+:\d+)", line)
            yield found[1], process
        finally:
            process.kill()
            errors.read()


def is_ready(url: str) -> bool:
    try:
        return ask(f"{url}/readyz")[0] == 200
    except aiohttp.ClientError:  # it does not even listen any more
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_stream_is_cut_when_the_process_is_told_to_stop(number: signal.Signals) -> None:
    with (
        live.engine(speed=2.0) as (url, app),
        served("--engine", url) as (gateway_url, process),
    ):
        wait_until(lambda: is_ready(gateway_url))

        async def scenario() -> list[tuple[int, bytes, dict[str, str]]]:
            asking = [
                asyncio.create_task(
                    live.fetch(f"{gateway_url}{CHAT}", long(f"task {n}", 600, stream=bool(n % 2)))
                )
                for n in range(8)
            ]
            await asyncio.to_thread(wait_until, lambda: app.engine.num_running == 8)
            process.send_signal(number)
            await asyncio.to_thread(wait_until, lambda: not is_ready(gateway_url))
            assert app.engine.num_running, "they go on"
            return await asyncio.gather(*asking)

        for n, (status, text, _) in enumerate(asyncio.run(scenario())):
            assert status == 200
            assert text.endswith(b"data: [DONE]\n\n" if n % 2 else b"}")
        assert process.wait(10) == 0


def test_the_recording_of_a_process_that_was_stopped_is_whole(tmp_path: Any) -> None:
    recorded = tmp_path / "run.jsonl"
    with (
        live.engine() as (url, _),
        served("--engine", url, "--record", str(recorded)) as (gateway_url, process),
    ):
        wait_until(lambda: is_ready(gateway_url))
        urgent = {"x-saga-priority": "2.5"}
        assert ask(f"{gateway_url}{CHAT}", chat("hello"), headers=urgent)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    lines = recorded.read_bytes()
    assert b"RequestFinished" in lines
    assert b'"priority":2.5' in lines
    assert lines.endswith(b"\n")
