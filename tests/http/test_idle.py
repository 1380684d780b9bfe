"""How long a connection waits for its client, and what it keeps meanwhile."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.http.wires import (
    Echo,
    Held,
    Wire,
    ask,
    get,
    pass_time,
    settle,
    shifted,
    statuses,
    wired,
    wired_to,
)

from saga.http.connection import Bounds, Connection
from saga.http.exchange import Reply, Request
from saga.http.server import Server

# ---- time

BOUNDS = Bounds(head_s=10.0, idle_s=30.0, stall_s=20.0)


@pytest.mark.parametrize("before", [b"", get("/")])
def test_an_idle_connection_is_closed(before: bytes) -> None:
    async def scenario() -> None:
        wire = wired(Echo(), BOUNDS)
        await pass_time(20)
        wire.feed(before)
        await settle()
        await pass_time(25 if before else 5)
        assert not wire.closing
        await pass_time(10)
        assert wire.closing
        assert statuses(wire.written) == ([200] if before else [])

    shifted(scenario())


def test_empty_lines_keep_no_connection_open() -> None:
    async def scenario() -> None:
        wire = wired(Echo(), BOUNDS)
        for _ in range(4):
            wire.feed(b"\r\n")
            await pass_time(9)
        assert wire.closing

    shifted(scenario())


def test_a_head_that_dribbles_is_given_up() -> None:
    async def scenario() -> None:
        wire = wired(Echo(), BOUNDS)
        await pass_time(25)
        wire.feed(b"GET / HTTP/1.1\r\n")
        for _ in range(4):
            assert wire.written == b""
            await pass_time(2)
            wire.feed(b"x: a\r\n")
        await pass_time(3)
        assert statuses(wire.written) == [408]
        assert wire.at_eof

    shifted(scenario())


def test_a_head_behind_another_request_is_given_up_too() -> None:
    async def scenario() -> None:
        held = Held()
        wire = wired(held, BOUNDS)
        wire.feed(get("/") + b"GET /next")
        await pass_time(100)
        assert wire.written == b"", "one thing after the other"
        held.answer_one()
        await settle()
        wire.feed(b"a")
        await pass_time(9)
        assert statuses(wire.written) == [200]
        await pass_time(2)
        assert statuses(wire.written) == [200, 408]

    shifted(scenario())


def test_an_answer_may_take_its_time() -> None:
    async def scenario() -> None:
        held = Held()
        wire = wired(held, BOUNDS)
        wire.feed(get("/"))
        await pass_time(1000)
        held.answer_one()
        await settle()
        assert statuses(wire.written) == [200]
        assert not wire.closing

    shifted(scenario())


async def endless(request: Request, reply: Reply) -> None:
    reply.start(200, [])
    while True:
        reply.write(b"a" * 1000)
        await reply.drain()
        await asyncio.sleep(1)


def test_one_that_takes_nothing_of_its_answer_is_given_up() -> None:
    async def scenario() -> None:
        server = Server(endless, BOUNDS)
        wire = wired_to(server)
        wire.feed(get("/"))
        await settle()
        wire.take_nothing()
        await pass_time(19)
        assert not wire.closing
        await pass_time(20)
        await pass_time(20)
        assert wire.aborted
        assert not server.connections

    shifted(scenario())


def test_one_that_takes_its_answer_slowly_is_waited_for() -> None:
    async def scenario() -> None:
        wire = wired(endless, BOUNDS)
        wire.feed(get("/"))
        await settle()
        wire.take_nothing(100_000)
        await pass_time(1)
        for _ in range(10):
            await pass_time(15)
            wire.unsent -= 1_000
        assert not wire.closing
        wire.take_all()
        await pass_time(1000)
        assert not wire.closing, "it is for the application to say what is too slow"

    shifted(scenario())


@pytest.mark.parametrize(
    "sent",
    [
        get("/"),
        get("/", "connection: close"),
        get("/", "connection: keep-alive", version="1.0") + b"GET /ne",
    ],
)
def test_one_that_does_not_take_the_end_of_its_answer_is_given_up(sent: bytes) -> None:
    async def scenario() -> None:
        server = Server(Echo(), BOUNDS)
        wire = wired_to(server)
        wire.unsent = 10_000
        wire.feed(sent)
        await settle()
        assert wire.closing == (sent != get("/"))
        assert not wire.lost
        for _ in range(4):
            await pass_time(25)
        assert wire.aborted
        assert not server.connections

    shifted(scenario())


# ---- what a connection keeps


@contextmanager
def uncollected(kind: type) -> Iterator[list[Any]]:
    """Objects of a kind that are left at the end, without the help of the collector."""
    left: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        before = {id(thing) for thing in gc.get_objects() if isinstance(thing, kind)}
        yield left
        left += [t for t in gc.get_objects() if isinstance(t, kind) and id(t) not in before]
    finally:
        gc.enable()


async def read_and_forget(request: Request, reply: Reply) -> None:
    reply.respond(200, [], await request.body(1 << 20, 60.0))


@pytest.mark.parametrize("pieces", [1, 3])
def test_an_idle_connection_keeps_nothing_of_its_requests(pieces: int) -> None:
    async def scenario(wire: Wire) -> None:
        sent = ask("POST", "/" + "a" * 1000, body=b"b" * 1000)
        size = len(sent) // pieces + 1
        wire.feed(*(sent[at : at + size] for at in range(0, len(sent), size)))
        await settle()
        assert statuses(wire.written) == [200]

    async def scenarios() -> None:
        wire = wired(read_and_forget)
        with uncollected(Request) as left:
            await scenario(wire)
        assert not left
        assert not wire.closing

    shifted(scenarios())


def test_a_connection_that_has_ended_is_gone() -> None:
    async def scenario() -> None:
        server = Server(read_and_forget)
        with uncollected(Connection) as left:
            wire = wired_to(server)
            wire.feed(get("/"), get("/", "connection: close"))
            await settle()
            assert wire.lost
            del wire.protocol
        assert not left

    shifted(scenario())
