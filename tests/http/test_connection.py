"""Connections: which bytes are which requests, in what order they are answered, and how it ends."""

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
    Echo,
    Held,
    Wire,
    ask,
    echo,
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
from saga.http.exchange import BodyTooLong, Reply, Request
from saga.http.server import Server

CHUNKED = "transfer-encoding: chunked"


async def exchanged(*pieces: bytes, answer: Any = None) -> bytes:
    """What a client gets that sends these pieces at once and reads to the end of the answers."""
    wire = wired(answer or Echo())
    wire.feed(*pieces)
    await settle()
    return wire.written


def refused(status: int, *pieces: bytes) -> None:
    """No application sees it, its client is told so, and hears that nothing more comes."""

    async def scenario() -> None:
        echo = Echo()
        wire = wired(echo)
        wire.feed(*pieces)
        await settle()
        assert statuses(wire.written) == [status]
        assert b"connection: close\r\n" in wire.written
        assert wire.at_eof
        assert not echo.requests

    shifted(scenario())


# ---- heads

BAD: dict[str, bytes] = {
    "nothing like it": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method of its own": b"FETCH / HTTP/1.1\r\nhost: h\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nhost: h\r\n\r\n",
    "a target without a slash": b"GET v1/models HTTP/1.1\r\nhost: h\r\n\r\n",
    "a target of other bytes": b"GET /\xff HTTP/1.1\r\nhost: h\r\n\r\n",
    "a target with a fragment": get("/v1/chat/completions#x"),
    "an address with a fragment": get("http://h/v1/chat/completions#x"),
    "an address of a file": get("ftp://h/a"),
    "an address that is none": get("http://["),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": get("/", "host: other"),
    "two equal hosts": get("/", "host: h"),
    "an asterisk for one resource": get("*"),
    "bare line feeds": b"GET / HTTP/1.1\nhost: h\n\n",
    "a bare line feed": get("/", "x: a\ny: b"),
    "a bare carriage return": get("/", "x: a\rb"),
    "a zero": get("/", "x: a\0b"),
    "a folded line": get("/", "x: a\r\n b"),
    "a folded length": get("/", "content-length:\r\n 3"),
    "a space before a colon": get("/", "x : a"),
    "a space before a name": get("/", " x: a"),
    "no name": get("/", ": a"),
    "no colon": get("/", "x"),
    "two lengths": get("/", "content-length: 1", "content-length: 2"),
    "two equal lengths": get("/", "content-length: 1", "content-length: 1"),
    "a list of lengths": get("/", "content-length: 1, 1"),
    "a length with a sign": get("/", "content-length: +1"),
    "a length below nothing": get("/", "content-length: -1"),
    "a length in hexadecimal": get("/", "content-length: 0x1"),
    "an empty length": get("/", "content-length:"),
    "a length beyond all": get("/", f"content-length: {10**30}"),
    "a length and chunks": get("/", "content-length: 1", CHUNKED),
    "chunks and a length": get("/", CHUNKED, "content-length: 1"),
    "chunks twice": get("/", CHUNKED, CHUNKED),
    "chunks, then nothing": get("/", "transfer-encoding: chunked, identity"),
    "a coding and then chunks": get("/", "transfer-encoding: gzip", CHUNKED),
    "a coding that hides chunks": get("/", "transfer-encoding: \x0bchunked"),
    "chunks to one who knows none": get("/", CHUNKED, "connection: keep-alive", version="1.0"),
}
OTHERS: dict[str, tuple[int, bytes]] = {
    "another coding": (501, get("/", "transfer-encoding: gzip, chunked")),
    "no coding": (501, get("/", "transfer-encoding: identity")),
    "a coding of its own": (501, get("/", "transfer-encoding: xchunked")),
    "a tunnel": (501, b"CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\nsecret"),
    "a tunnel to a path": (501, ask("CONNECT", "/health") + b"secret"),
    "a long target": (414, get("/" + "%41" * 10_000)),
    "a long target without end": (414, b"GET /" + b"a" * 20_000),
    "no version": (505, b"GET /\r\n\r\n"),
    "an old version": (505, get("/", version="0.9")),
    "a new version": (505, get("/", version="2.0")),
    "a header of many lines": (431, get("/", *["x: " + "a" * 100] * 100)),
    "many headers": (431, get("/", *[f"x-{number}: a" for number in range(300)])),
    "headers without end": (431, get("/", *[f"x-{number}: a" for number in range(300)])[:-2]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_be_read_in_two_ways_is_refused(name: str) -> None:
    refused(400, BAD[name])


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_too_when_it_comes_byte_by_byte(name: str) -> None:
    refused(400, *(BAD[name][at : at + 1] for at in range(len(BAD[name]))))


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_served_is_refused(name: str) -> None:
    refused(*OTHERS[name])


def test_a_preface_of_another_protocol_is_refused() -> None:
    refused(400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


@pytest.mark.parametrize("part", [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nx"])
def test_a_head_that_does_not_end_is_refused(part: bytes) -> None:
    async def scenario() -> None:
        wire = wired(Echo(), Bounds(head_bytes=1000))
        wire.feed(part)
        for _ in range(50):
            wire.feed(b"a" * 50)
        await settle()
        assert statuses(wire.written) == [431]

    shifted(scenario())


def test_empty_lines_without_end_are_refused() -> None:
    async def scenario() -> None:
        wire = wired(Echo(), Bounds(head_bytes=1000))
        wire.feed(*[b"\r\n" * 100] * 6)
        await settle()
        assert statuses(wire.written) == [431]

    shifted(scenario())


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a/b?c=%20#"[:-1], "/a/b"),
        ("/%61%2Fb%20c", "/a/b c"),
        ("/%C3%A9%ff%zz", "/\u00e9\ufffd%zz"),
        ("//a", "//a"),
        ("/?a?b", "/"),
    ],
)
def test_the_path_is_decoded_once_and_the_target_is_as_it_came(target: str, path: str) -> None:
    async def scenario() -> None:
        echo = Echo()
        wire = wired(echo)
        wire.feed(get(target))
        await settle()
        assert (echo.requests[0].target, echo.requests[0].path) == (target, path)

    shifted(scenario())


@pytest.mark.parametrize(
    ("method", "address", "target"),
    [
        ("GET", "http://h:80/a?b", "/a?b"),
        ("GET", "HTTPS://other/a", "/a"),
        ("GET", "http://h", "/"),
        ("GET", "http://h?b", "/?b"),
        ("OPTIONS", "*", "*"),
    ],
)
def test_other_forms_of_targets(method: str, address: str, target: str) -> None:
    written = shifted(exchanged(ask(method, address)))
    assert written == ok(echo(method, target))


def test_headers_of_several_lines_are_one() -> None:
    async def scenario() -> None:
        echo = Echo()
        wire = wired(echo)
        wire.feed(get("/", "Trace: a", "x:  \t b \t ", "TRACE: b", "empty:", "trace:c"))
        await settle()
        request = echo.requests[0]
        assert request.headers == {"host": "h", "trace": "a, b, c", "x": "b", "empty": ""}
        assert request.head_size >= len("/hosthtraceaxbtracebemptytracec")

    shifted(scenario())


# ---- bodies


def test_chunks_are_put_together_and_trailers_left_behind() -> None:
    body = b'3;ext="q"\r\nabc\r\n2\r\nde\r\n0\r\nhost: other\r\nx: 1\r\n\r\n'

    async def scenario() -> None:
        answer = Echo()
        wire = wired(answer)
        wire.feed(ask("POST", "/", CHUNKED) + body + get("/next"))
        await settle()
        assert wire.written == ok(echo("POST", "/", b"abcde")) + ok(echo("GET", "/next"))
        assert answer.requests[0].headers.keys() == {"host", "transfer-encoding"}

    shifted(scenario())


BROKEN = {
    "no size": b"\r\n",
    "a size that is none": b"0x1\r\na\r\n",
    "too large a size": b"f" * 17 + b"\r\n",
    "more than its size": b"1\r\nab\r\n",
    "a bare line feed": b"1\na\r\n",
    "a bare line feed after it": b"1\r\na\n",
    "a line feed in an extension": b'1;x="a\nb"\r\na\r\n',
    "a length at the end": b"0\r\ncontent-length: 5\r\n\r\n",
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_is_refused(name: str, later: bool) -> None:
    async def scenario() -> None:
        wire = wired(Echo())
        wire.feed(ask("POST", "/", CHUNKED) + b"1\r\na\r\n")
        if later:
            await settle()
        wire.feed(BROKEN[name])
        await settle()
        assert statuses(wire.written) == [400]
        assert wire.at_eof

    shifted(scenario())


@pytest.mark.parametrize("around", [b"0\r\nx: ", b"1;"])
def test_a_body_with_too_much_around_it_is_refused(around: bytes) -> None:
    async def scenario() -> None:
        wire = wired(Echo(), Bounds(head_bytes=1000))
        wire.feed(ask("POST", "/", CHUNKED), around, *[b"a" * 100] * 12)
        await settle()
        assert statuses(wire.written) == [431]

    shifted(scenario())


def test_an_answer_that_has_begun_ends_with_the_body_that_broke() -> None:
    async def early(request: Request, reply: Reply) -> None:
        reply.start(200, [])
        reply.write(b"half")
        await request.body(100, 60.0)
        raise AssertionError("there is no body")

    async def scenario() -> None:
        wire = wired(early)
        wire.feed(ask("POST", "/", CHUNKED))
        await settle()
        wire.feed(b"nonsense")
        await settle()
        assert wire.written.endswith(b"4\r\nhalf\r\n")
        assert wire.aborted

    shifted(scenario())


def test_a_body_that_nobody_wants_yet_makes_its_client_wait() -> None:
    async def scenario() -> None:
        held = Held()
        wire = wired(held)
        wire.feed(ask("POST", "/", f"content-length: {1 << 20}"))
        piece = b"a" * (1 << 16)
        for _ in range(16):
            wire.feed(piece)
        await settle()
        assert not wire.reading
        assert wire.num_pending >= 11
        held.answer_one()
        await settle()
        assert wire.written == ok(echo("POST", "/", piece * 16))
        assert wire.reading

    shifted(scenario())


def test_so_does_the_body_of_a_request_that_waits_for_its_turn() -> None:
    async def scenario() -> None:
        held = Held()
        wire = wired(held)
        wire.feed(get("/first"), ask("POST", "/next", f"content-length: {1 << 20}"))
        piece = b"a" * (1 << 16)
        for _ in range(16):
            wire.feed(piece)
        wire.feed(get("/last"))
        await settle()
        assert not wire.reading
        assert wire.num_pending >= 12
        for _ in range(3):
            held.answer_one()
        await settle()
        assert statuses(wire.written) == [200, 200, 200]
        assert held.begun == ["/first", "/next", "/last"]

    shifted(scenario())


def test_a_body_too_long_is_refused_and_heard_out() -> None:
    async def small(request: Request, reply: Reply) -> None:
        try:
            await request.body(10, 60.0)
        except BodyTooLong:
            reply.respond(413, [], b"too long")

    async def scenario(head: bytes) -> None:
        server = Server(small)
        wire = wired_to(server)
        wire.feed(head)
        for _ in range(100):
            wire.feed(b"1\r\na\r\n")
            await asyncio.sleep(0)
        await settle()
        assert statuses(wire.written) == [413]
        assert wire.at_eof
        assert not wire.closing
        assert wire.reading, "what it sends is thrown away"
        wire.leave()
        await settle()
        assert wire.lost
        assert not server.connections

    shifted(scenario(ask("POST", "/", "content-length: 11")))
    shifted(scenario(ask("POST", "/", CHUNKED)))


def test_one_that_sends_for_ever_is_not_heard_for_ever() -> None:
    async def scenario() -> None:
        wire = wired(Echo(most=10))
        wire.feed(ask("POST", "/", "content-length: 1000"))
        await settle()
        assert wire.at_eof
        await pass_time(29)
        wire.feed(b"a")
        assert not wire.closing
        await pass_time(2)
        assert wire.aborted

    shifted(scenario())


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    caught = []

    async def patient(request: Request, reply: Reply) -> None:
        try:
            await request.body(10, 5.0)
        except TimeoutError as error:
            caught.append(error)
            reply.respond(408, [], b"")

    async def scenario() -> None:
        wire = wired(patient)
        wire.feed(ask("POST", "/", "content-length: 2") + b"a")
        await settle()
        await pass_time(4)
        assert not caught
        await pass_time(2)
        assert caught
        assert statuses(wire.written) == [408]
        assert wire.at_eof

    shifted(scenario())


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
    "request_",
    [
        ask("POST", "/", "expect: 100-continue", body=b"ab"),
        ask("POST", "/", "expect: 100-continue", body=b"ab", version="1.0"),
        ask("GET", "/", "expect: 100-continue"),
        ask("POST", "/", "expect: something-else", body=b"ab"),
    ],
)
@pytest.mark.parametrize("cut", [0, -1])
def test_one_that_need_not_be_told_is_not(request_: bytes, cut: int) -> None:
    if cut and b"100-" in request_ and b"HTTP/1.1" in request_:
        return

    async def scenario() -> None:
        wire = wired(Echo())
        wire.feed(request_[:cut] if cut else request_)
        await settle()
        wire.feed(request_[cut:] if cut else b"")
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


# ---- other protocols

UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABk")
"""As Java's client asks on every connection."""


@pytest.mark.parametrize("body", [b"", b"some body"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_offer_of_another_protocol_is_ignored(body: bytes, size: int) -> None:
    sent = ask("POST", "/a", *UPGRADE, body=body) * 2 + get("/b")
    chunked = ask("POST", "/c", *UPGRADE, CHUNKED) + b"3\r\nabc\r\n0\r\n\r\n" + get("/d")
    sent += chunked
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    wanted = ok(echo("POST", "/a", body)) * 2 + ok(echo("GET", "/b"))
    wanted += ok(echo("POST", "/c", b"abc")) + ok(echo("GET", "/d"))
    assert shifted(exchanged(*pieces)) == wanted


def test_an_offer_and_the_end_of_the_connection() -> None:
    sent = ask("POST", "/", "connection: upgrade, close", "upgrade: h2c", body=b"abc")

    async def scenario() -> None:
        wire = wired(Echo())
        wire.feed(sent + get("/not-seen"))
        await settle()
        assert wire.written == ok(echo("POST", "/", b"abc"), close=True)
        assert wire.closing

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
