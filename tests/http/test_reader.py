"""Which bytes are which requests, and which are none."""

from __future__ import annotations

import asyncio

import pytest
from tests.http.wires import (
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

from saga.http.connection import Bounds
from saga.http.exchange import BodyTooLong, Reply, Request
from saga.http.server import Server

CHUNKED = "transfer-encoding: chunked"


def refused(status: int, *pieces: bytes) -> None:
    """No application sees it, its client is told so, and hears that nothing more comes."""

    async def scenario() -> None:
        answer = Echo()
        wire = wired(answer)
        wire.feed(*pieces)
        await settle()
        assert statuses(wire.written) == [status]
        assert b"connection: close\r\n" in wire.written
        assert wire.at_eof
        assert not answer.requests

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


def test_many_heads_are_not_one_long_one() -> None:
    async def scenario() -> None:
        wire = wired(Echo(), Bounds(head_bytes=1000))
        for _ in range(100):
            wire.feed(get("/"))
            await settle()
        assert statuses(wire.written) == [200] * 100

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
        ("/a/b?c=%20", "/a/b"),
        ("/%61%2Fb%20c", "/a/b c"),
        ("/%C3%A9%ff%zz", "/\u00e9\ufffd%zz"),
        ("//a", "//a"),
        ("/?a?b", "/"),
    ],
)
def test_the_path_is_decoded_once_and_the_target_is_as_it_came(target: str, path: str) -> None:
    async def scenario() -> None:
        answer = Echo()
        wire = wired(answer)
        wire.feed(get(target))
        await settle()
        assert (answer.requests[0].target, answer.requests[0].path) == (target, path)

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
        answer = Echo()
        wire = wired(answer)
        wire.feed(get("/", "Trace: a", "x:  \t b \t ", "TRACE: b", "empty:", "trace:c"))
        await settle()
        request = answer.requests[0]
        assert request.headers == {"host": "h", "trace": "a, b, c", "x": "b", "empty": ""}
        assert request.head_size >= len("/hosthtraceaxbtracebemptytracec")
        wire.feed(get("/" + "a" * 5_000))
        await settle()
        assert answer.requests[1].head_size >= 5_000

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
        wire.feed(get("/1") + get("/2"), ask("POST", "/3", f"content-length: {1 << 20}"))
        piece = b"a" * (1 << 16)
        for _ in range(16):
            wire.feed(piece)
        wire.feed(get("/4"))
        await settle()
        assert not wire.reading
        num_pending = wire.num_pending
        assert num_pending >= 12
        held.answer_one()
        await settle()
        assert wire.num_pending == num_pending, "it is not its turn yet"
        for _ in range(3):
            held.answer_one()
        await settle()
        assert statuses(wire.written) == [200] * 4
        assert held.begun == ["/1", "/2", "/3", "/4"]

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


# ---- other protocols


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
