"""In what order requests are answered, and how a connection ends."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.http.wires import (
    CONTINUE,
    UPGRADE,
    Echo,
    Held,
    Wire,
    ask,
    echo,
    exchanged,
    get,
    ok,
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

# ---- expectations


def test_a_client_is_told_to_go_on_when_somebody_wants_its_body() -> None:
    async def scenario() -> None:
        held = Held()
        wire = wired(held)
        wire.feed(ask("POST", "/", "Expect: 100-Continue", "content-length: 2"))
        await settle()
        assert wire.written == b""
        held.answer_one()
        await settle()
        assert wire.written == CONTINUE
        wire.feed(b"ab" + get("/next"))
        held.answer_one()
        await settle()
        assert wire.written == CONTINUE + ok(echo("POST", "/", b"ab")) + ok(echo("GET", "/next"))

    shifted(scenario())


@pytest.mark.parametrize(
    "pieces",
    [
        [ask("POST", "/", "expect: 100-continue", body=b"ab")],
        [get("/", "expect: 100-continue")],
        [ask("POST", "/", "expect: 100-continue", "content-length: 2", version="1.0"), b"ab"],
        [ask("POST", "/", "expect: something-else", "content-length: 2"), b"ab"],
    ],
    ids=["all is here", "nothing will come", "an older version", "something else"],
)
def test_one_that_need_not_be_told_is_not(pieces: list[bytes]) -> None:
    async def scenario() -> None:
        wire = wired(Echo())
        for piece in pieces:
            wire.feed(piece)
            await settle()
        assert wire.written.startswith(b"HTTP/1.1 200")

    shifted(scenario())


def test_one_whose_body_nobody_wants_is_not_told_to_send_it() -> None:
    written = shifted(
        exchanged(
            ask("POST", "/", "expect: 100-continue", "content-length: 11"), answer=Echo(most=10)
        )
    )
    assert b"100" not in written


def test_nobody_is_told_to_go_on_after_the_answer_has_begun() -> None:
    async def early(request: Request, reply: Reply) -> None:
        reply.start(200, [])
        reply.write(b"a")
        reply.end(await request.body(10, 60.0))

    async def scenario() -> None:
        wire = wired(early)
        wire.feed(ask("POST", "/", "expect: 100-continue", "content-length: 2"))
        await settle()
        wire.feed(b"bc")
        await settle()
        assert wire.written.endswith(b"\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
        assert CONTINUE not in wire.written
        assert wire.closing, "it was told so before all had come"

    shifted(scenario())


# ---- one after the other


def test_requests_are_answered_in_their_order() -> None:
    async def scenario() -> None:
        held = Held()
        wire = wired(held)
        wire.feed(get("/1") + get("/2"), get("/3")[:9])
        await settle()
        assert held.begun == ["/1"]
        held.answer_one()
        await settle()
        assert held.begun == ["/1", "/2"]
        assert wire.written == ok(echo("GET", "/1"))
        wire.feed(get("/3")[9:])
        held.answer_one()
        held.answer_one()
        await settle()
        assert wire.written == b"".join(ok(echo("GET", f"/{number}")) for number in (1, 2, 3))

    shifted(scenario())


def test_only_some_requests_are_read_ahead() -> None:
    async def scenario() -> None:
        held = Held()
        wire = wired(held)
        wire.feed(*[get(f"/{number}") for number in range(10)])
        await settle()
        assert not wire.reading
        assert wire.num_pending == 5
        for _ in range(10):
            held.answer_one()
        await settle()
        assert held.begun == [f"/{number}" for number in range(10)]
        assert wire.reading

    shifted(scenario())


def test_a_flood_of_requests_in_one_piece_is_refused_in_its_turn() -> None:
    async def scenario() -> None:
        wire = wired(Echo())
        wire.feed(b"".join(get(f"/{number}") for number in range(1000)))
        for _ in range(10):
            await settle()
        assert statuses(wire.written) == [200] * 65 + [429]
        assert wire.at_eof

    shifted(scenario())


def test_so_is_a_flood_of_offers_of_another_protocol() -> None:
    async def scenario() -> None:
        wire = wired(Echo())
        wire.feed(b"".join(get(f"/{number}", *UPGRADE) for number in range(2000)))
        for _ in range(10):
            await settle()
        assert statuses(wire.written) == [200] * 65 + [429]

    shifted(scenario())


def test_one_that_takes_no_answers_gets_no_more_of_them() -> None:
    async def scenario() -> None:
        answer = Echo()
        wire = wired(answer)
        wire.feed(get("/1"))
        await settle()
        wire.take_nothing()
        wire.feed(get("/2"), get("/3"))
        await settle()
        assert len(answer.requests) == 1
        wire.take_all()
        await settle()
        assert statuses(wire.written) == [200, 200, 200]

    shifted(scenario())


def test_what_came_before_nonsense_is_answered() -> None:
    async def scenario(pieces: list[bytes]) -> None:
        held = Held()
        wire = wired(held)
        wire.feed(*pieces)
        await settle()
        assert held.begun == ["/1"]
        held.answer_one()
        held.answer_one()
        await settle()
        assert held.begun == ["/1", "/2"]
        assert statuses(wire.written) == [200, 200, 400]
        assert wire.at_eof

    good, nonsense = get("/1") + get("/2"), b"nonsense\r\n\r\n" + get("/3")
    shifted(scenario([good + nonsense]))
    shifted(scenario([good, nonsense, get("/4")]))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("last", [get("/", "connection: close"), get("/", version="1.0")])
def test_nothing_is_taken_after_the_last_request(last: bytes, apart: bool) -> None:
    async def scenario() -> None:
        wire = wired(Echo())
        after = [b"\r\n", get("/after"), b"nonsense"]
        wire.feed(*([last, *after] if apart else [last + b"".join(after)]))
        await settle()
        assert wire.written == ok(echo("GET", "/"), close=True)
        assert wire.closing
        assert not wire.aborted

    shifted(scenario())


def test_one_who_speaks_an_older_version_gets_no_chunks() -> None:
    async def streams(request: Request, reply: Reply) -> None:
        reply.start(200, [])
        reply.write(b"a")
        reply.end(b"b")

    sent = get("/", "connection: keep-alive", version="1.0")
    written = shifted(exchanged(sent, answer=streams))
    assert written == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab"


# ---- clients that leave


def test_one_that_leaves_is_worked_for_no_more() -> None:
    async def scenario() -> None:
        held = Held()
        server = Server(held)
        wire = wired_to(server)
        wire.feed(get("/1"), get("/2"))
        await settle()
        wire.leave()
        await settle()
        assert (held.begun, held.cancelled) == (["/1"], ["/1"])
        assert not server.connections
        assert wire.written == b""

    shifted(scenario())


def test_one_that_leaves_at_once_was_never_there() -> None:
    """Its request is cancelled before it has begun."""

    async def scenario() -> None:
        held = Held()
        server = Server(held)
        wire = wired_to(server)
        wire.feed(get("/1"))
        wire.protocol.connection_lost(ConnectionResetError())
        await settle()
        assert not held.begun
        assert not server.connections

    shifted(scenario())


def test_one_that_leaves_in_the_middle_of_its_body() -> None:
    async def scenario() -> None:
        answer = Echo()
        server = Server(answer)
        wire = wired_to(server)
        wire.feed(ask("POST", "/", "content-length: 2") + b"a")
        await settle()
        wire.leave()
        await settle()
        assert len(answer.requests) == 1
        assert wire.written == b""
        assert not server.connections

    shifted(scenario())


def test_one_that_leaves_is_known_until_nobody_works_for_it() -> None:
    may = asyncio.Event()

    async def tidy(request: Request, reply: Reply) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may.wait()

    async def scenario() -> None:
        server = Server(tidy)
        wire = wired_to(server)
        wire.feed(get("/"))
        await settle()
        wire.leave()
        await settle()
        assert server.connections
        stopping = asyncio.create_task(server.stop(60))
        await settle()
        assert not stopping.done()
        may.set()
        await stopping
        assert not server.connections

    shifted(scenario())


def test_writing_to_one_that_has_left_goes_nowhere() -> None:
    replies: list[Reply] = []

    async def keeps(request: Request, reply: Reply) -> None:
        replies.append(reply)
        reply.start(200, [])
        await asyncio.Event().wait()

    async def scenario() -> None:
        wire = wired(keeps)
        wire.feed(get("/"))
        await settle()
        wire.leave()
        await settle()
        assert wire.lost
        replies[0].write(b"a")
        await replies[0].drain()
        replies[0].end(b"b")
        assert wire.written == b""

    shifted(scenario())


# ---- failures


def test_an_application_that_fails_is_told_of_and_the_next_one_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(request: Request, reply: Reply) -> None:
        if request.path == "/fails\n":
            raise ConnectionRefusedError("engine")
        await Echo()(request, reply)

    written = shifted(exchanged(get("/fails%0A?key=secret") + get("/next"), answer=fails))
    assert statuses(written) == [500, 200]
    assert "engine" not in written.decode()
    assert [record.getMessage() for record in caplog.records] == ["GET /fails%0A failed"]


@pytest.mark.parametrize("error", [KeyError("x"), ConnectionResetError("the engine left")])
def test_half_an_answer_is_cut_off(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(request: Request, reply: Reply) -> None:
        reply.start(200, [])
        reply.write(b"half")
        raise error

    async def scenario() -> None:
        wire = wired(fails)
        wire.feed(get("/") + get("/next"))
        await settle()
        assert wire.written.endswith(b"\r\n4\r\nhalf\r\n")
        assert wire.aborted

    shifted(scenario())
    assert len(caplog.records) == isinstance(error, KeyError), "who resets knows why"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_one_that_knows_no_chunks_cannot_take_half_an_answer_for_a_whole_one(version: str) -> None:
    """The end of its connection is all that ends its answer: it must look like no end."""

    async def halves(request: Request, reply: Reply) -> None:
        reply.start(200, [])
        reply.write(b"half")

    async def scenario() -> None:
        wire = wired(halves)
        wire.feed(get("/", version=version))
        await settle()
        assert wire.aborted
        reset = (socket.SOL_SOCKET, socket.SO_LINGER)
        assert wire.socket.options == ([reset] if version == "1.0" else [])

    shifted(scenario())


def test_an_answer_that_was_given_stays_given_whatever_fails_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(request: Request, reply: Reply) -> None:
        await Echo()(request, reply)
        raise KeyError("afterwards")

    assert shifted(exchanged(get("/") * 2, answer=fails)) == ok(echo("GET", "/")) * 2
    assert len(caplog.records) == 2


def test_no_answer_is_no_empty_answer() -> None:
    async def silent(request: Request, reply: Reply) -> None:
        pass

    async def scenario() -> None:
        wire = wired(silent)
        wire.feed(get("/"))
        await settle()
        assert wire.written == b""
        assert wire.aborted

    shifted(scenario())


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


@pytest.mark.parametrize("header", ["connection: close", "x: a"])
def test_one_that_does_not_take_the_end_of_its_answer_is_given_up(header: str) -> None:
    async def scenario() -> None:
        server = Server(Echo(), BOUNDS)
        wire = wired_to(server)
        wire.unsent = 10_000
        wire.feed(get("/", header))
        await settle()
        assert wire.closing == (header != "x: a")
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
