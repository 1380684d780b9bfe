"""In what order requests are answered, and how a connection ends."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest
from tests.http.wires import (
    CONTINUE,
    UPGRADE,
    Echo,
    Held,
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


def test_a_client_is_told_to_go_on_once() -> None:
    async def asks_again(request: Request, reply: Reply) -> None:
        with suppress(TimeoutError):
            await request.body(10, 1.0)
        reply.respond(200, [], await request.body(10, 60.0))

    async def scenario() -> None:
        wire = wired(asks_again)
        wire.feed(ask("POST", "/", "expect: 100-continue", "content-length: 2"))
        await settle()
        await pass_time(2)
        wire.feed(b"ab")
        await settle()
        assert wire.written == CONTINUE + ok(b"ab")

    shifted(scenario())


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


OLD = get("/", "connection: keep-alive", version="1.0")


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("first", [b"", get("/first")])
@pytest.mark.parametrize("last", [get("/", "connection: close"), get("/", version="1.0"), OLD])
def test_nothing_is_taken_after_the_last_request(last: bytes, first: bytes, apart: bool) -> None:
    async def scenario() -> None:
        wire = wired(Echo())
        after = [b"\r\n", *[get("/after")] * 10, b"nonsense"]
        wire.feed(first, *([last, *after] if apart else [last + b"".join(after), get("/after")]))
        assert wire.num_pending == 0, "it is thrown away"
        await settle()
        before = ok(echo("GET", "/first")) if first else b""
        assert wire.written == before + ok(echo("GET", "/"), close=True)
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


@pytest.mark.parametrize("number", [2, 5, 6, 20])
def test_one_that_sent_nonsense_and_leaves_is_heard(number: int) -> None:
    """Even one that had to wait for its answers before."""

    async def scenario() -> None:
        held = Held()
        server = Server(held)
        wire = wired_to(server)
        wire.feed(*[get("/")] * (number - 1), get("/") + b"nonsense\r\n\r\n")
        while wire.num_pending:
            held.answer_one()
            await settle()
        assert wire.reading
        wire.leave()
        await settle()
        assert held.cancelled == ["/"]
        assert not server.connections

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


# ---- a server that stops


@pytest.mark.parametrize("number", [1, 2, 10])
def test_what_waits_is_thrown_away_when_the_server_stops(number: int) -> None:
    async def scenario() -> None:
        held = Held()
        server = Server(held)
        wire = wired_to(server)
        wire.feed(*[get("/")] * number, ask("POST", "/", f"content-length: {1 << 20}"))
        await settle()
        stopping = asyncio.create_task(server.stop(60))
        await settle()
        for _ in range(16):
            wire.feed(b"a" * (1 << 16))
        assert wire.reading
        assert wire.num_pending == 0
        held.answer_one()
        await stopping
        assert wire.written == ok(echo("GET", "/"), close=True)
        assert wire.lost

    shifted(scenario())


def test_what_is_under_way_is_read_to_its_end_when_the_server_stops() -> None:
    async def scenario() -> None:
        held = Held()
        server = Server(held)
        wire = wired_to(server)
        wire.feed(ask("POST", "/", "content-length: 4") + b"ab")
        await settle()
        stopping = asyncio.create_task(server.stop(60))
        await settle()
        wire.feed(b"cd", *[get("/")] * 10)
        assert wire.num_pending == 0, "it is thrown away"
        held.answer_one()
        await stopping
        assert wire.written == ok(echo("POST", "/", b"abcd"), close=True)

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
