"""What an application may do with a request and its reply."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.http.wires import ask, get, ok, pass_time, settle, shifted, statuses, wired

from saga.http.exchange import BadRequest, BodyTooLong, Headers, Reply, Request

Tell = Callable[[Reply], None]
Read = Callable[[Request], Awaitable[object]]


def told(tell: Tell, sent: bytes = get("/")) -> tuple[bytes, bool]:
    """What is written for it, and whether the connection was cut off."""

    async def application(request: Request, reply: Reply) -> None:
        tell(reply)

    async def scenario() -> tuple[bytes, bool]:
        wire = wired(application)
        wire.feed(sent)
        await settle()
        return wire.written, wire.aborted

    return shifted(scenario())


def sized(length: int) -> Headers:
    return [(b"content-length", b"%d" % length)]


# ---- replies


def test_a_whole_answer() -> None:
    assert told(lambda reply: reply.respond(200, [], b"body")) == (ok(b"body"), False)


def test_an_answer_in_pieces() -> None:
    def tell(reply: Reply) -> None:
        reply.start(200, [(b"x", b"y")])
        for piece in (b"a", b"", b"b" * 17):
            reply.write(piece)
        reply.end()

    head = b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n"
    assert told(tell)[0] == head + b"1\r\na\r\n11\r\n" + b"b" * 17 + b"\r\n0\r\n\r\n"


def test_a_head_waits_for_what_follows_it() -> None:
    async def scenario() -> None:
        may = asyncio.Event()

        async def application(request: Request, reply: Reply) -> None:
            reply.start(200, [])
            await may.wait()
            reply.end()

        wire = wired(application)
        wire.feed(get("/"))
        await settle()
        assert wire.written == b""
        may.set()
        await settle()
        assert wire.written.endswith(b"\r\n\r\n0\r\n\r\n")

    shifted(scenario())


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(("length", "cut"), [(3, True), (4, False), (5, True)])
def test_a_body_is_as_long_as_its_head_says(
    length: int, cut: bool, in_pieces: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the rest of it, or what is missing, would be another answer's."""

    def tell(reply: Reply) -> None:
        reply.start(200, sized(length))
        if in_pieces:
            reply.write(b"a")
            reply.write(b"bc")
        reply.end(b"d" if in_pieces else b"abcd")

    written, aborted = told(tell)
    assert aborted == cut
    assert len(caplog.records) == cut
    assert b"abcde" not in written
    if not cut:
        assert statuses(written) == [200]


@pytest.mark.parametrize(("status", "length"), [(204, None), (204, 4), (304, None), (304, 4)])
def test_an_answer_that_has_no_body_is_sent_none(status: int, length: int | None) -> None:
    def tell(reply: Reply) -> None:
        reply.start(status, [] if length is None else sized(length))
        reply.write(b"ab")
        reply.end(b"cd")

    written, aborted = told(tell)
    assert written.endswith(b"\r\n\r\n")
    assert written.count(b"\r\n\r\n") == 1
    assert b"transfer-encoding" not in written
    assert (b"content-length: 4" in written) == (status == 304 and length == 4)
    assert not aborted


def test_the_answer_to_head_tells_the_length_of_what_is_not_sent() -> None:
    written, _ = told(lambda reply: reply.respond(200, [], b"body"), ask("HEAD", "/") * 2)
    assert written == ok(b"body", head=True) * 2


@pytest.mark.parametrize("status", [299, 450, 599])
def test_a_status_without_a_name(status: int) -> None:
    written, _ = told(lambda reply: reply.respond(status, [], b""))
    assert written.startswith(b"HTTP/1.1 %d \r\n" % status)


def before_it_starts(reply: Reply) -> None:
    reply.write(b"a")


def twice(reply: Reply) -> None:
    reply.start(200, [])
    reply.start(200, [])


def no_start(reply: Reply) -> None:
    reply.end()


def no_length(reply: Reply) -> None:
    reply.start(200, [(b"content-length", b"four")])


@pytest.mark.parametrize("tell", [before_it_starts, twice, no_start, no_length])
def test_what_is_no_answer_never_reaches_the_client(
    tell: Tell, caplog: pytest.LogCaptureFixture
) -> None:
    written, aborted = told(tell)
    assert statuses(written) == ([] if aborted else [500])
    assert len(caplog.records) == 1


@pytest.mark.parametrize("late", [lambda reply: reply.write(b"a"), lambda reply: reply.end()])
def test_what_comes_after_the_end_never_reaches_the_client(
    late: Tell, caplog: pytest.LogCaptureFixture
) -> None:
    def tell(reply: Reply) -> None:
        reply.respond(200, [], b"body")
        late(reply)

    assert told(tell, get("/") * 2) == (ok(b"body") * 2, False)
    assert len(caplog.records) == 2


def test_several_may_wait_for_the_same_client() -> None:
    async def scenario() -> None:
        returned: list[int] = []

        async def application(request: Request, reply: Reply) -> None:
            reply.start(200, [])
            reply.write(b"a")
            await asyncio.sleep(1)

            async def wait(number: int) -> None:
                await reply.drain()
                returned.append(number)

            waiting = [asyncio.create_task(wait(number)) for number in range(3)]
            await asyncio.sleep(1)
            waiting[0].cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            reply.end()

        wire = wired(application)
        wire.feed(get("/"))
        await settle()
        wire.take_nothing()
        await pass_time(1)
        await pass_time(1)
        assert returned == []
        wire.take_all()
        await settle()
        assert returned == [1, 2]
        assert wire.written.endswith(b"0\r\n\r\n")

    shifted(scenario())


# ---- bodies


def whole(most: int, timeout_s: float = 60.0) -> Read:
    return lambda request: request.body(most, timeout_s)


async def asked(read: Read, *pieces: bytes, step: int = 0) -> list[object]:
    """What reading a request of these pieces comes to."""
    results: list[object] = []

    async def application(request: Request, reply: Reply) -> None:
        try:
            results.append(await read(request))
        except (BodyTooLong, TimeoutError) as error:
            results.append(type(error))
        reply.respond(200, [], b"")

    wire = wired(application)
    for piece in pieces:
        wire.feed(piece)
        await pass_time(step)
    return results


BODY = b"0123456789"
WAYS = {
    "at once": [ask("POST", "/", body=BODY)],
    "later": [ask("POST", "/", "content-length: 10"), BODY],
    "in pieces": [ask("POST", "/", "content-length: 10") + BODY[:3], BODY[3:6], BODY[6:]],
    "in chunks": [
        ask("POST", "/", "transfer-encoding: chunked"),
        b"5\r\n01234\r\n",
        b"5\r\n56789\r\n0\r\n\r\n",
    ],
}


@pytest.mark.parametrize("name", WAYS)
def test_a_body_may_be_as_long_as_it_may_be(name: str) -> None:
    for most, wanted in ((10, BODY), (9, BodyTooLong)):
        read = shifted(asked(whole(most), *WAYS[name]))
        assert read == [wanted]


def test_a_body_can_be_read_again() -> None:
    async def twice(request: Request) -> tuple[bytes, bytes]:
        return await request.body(10, 60.0), await request.body(10, 60.0)

    for pieces in WAYS.values():
        assert shifted(asked(twice, *pieces)) == [(BODY, BODY)]


def test_a_body_has_its_time_as_a_whole() -> None:
    pieces = [ask("POST", "/", "content-length: 10"), *(b"%d" % digit for digit in range(10))]
    for timeout_s, wanted in ((100.0, BODY), (5.5, TimeoutError)):
        read = shifted(asked(whole(10, timeout_s), *pieces, step=1))
        assert read == [wanted]


class Counted:
    """Something to be awaited, and how often it waited."""

    def __init__(self, work: Awaitable[bytes]) -> None:
        self.num_waits = 0
        self._work = work

    def __await__(self) -> Generator[object, None, bytes]:
        steps = self._work.__await__()
        while True:
            try:
                waited_for = next(steps)
            except StopIteration as end:
                return bytes(end.value)
            self.num_waits += 1
            yield waited_for


def test_a_body_that_comes_in_many_pieces_wakes_its_reader_once() -> None:
    async def scenario() -> None:
        reading: list[Counted] = []

        async def application(request: Request, reply: Reply) -> None:
            reading.append(Counted(request.body(1 << 20, 60.0)))
            reply.respond(200, [], await reading[0])

        wire = wired(application)
        wire.feed(ask("POST", "/", "content-length: 100"))
        for _ in range(100):
            await asyncio.sleep(0)
            wire.feed(b"a")
        await settle()
        assert wire.written == ok(b"a" * 100)
        assert reading[0].num_waits == 1

    shifted(scenario())


def test_an_application_may_refuse_what_it_cannot_read() -> None:
    async def application(request: Request, reply: Reply) -> None:
        raise BadRequest(418, "no coffee")

    async def scenario() -> None:
        wire = wired(application)
        wire.feed(get("/"))
        await settle()
        assert wire.written.startswith(b"HTTP/1.1 418 ")
        assert wire.written.endswith(b"\r\n\r\nno coffee\n")

    shifted(scenario())


PIECES = st.lists(st.integers(1, 40_000), min_size=1, max_size=12)


@given(length=st.integers(1, 100_000), cuts=PIECES, pause=st.booleans(), after=st.booleans())
def test_a_body_is_the_same_in_whatever_pieces_it_comes(
    length: int, cuts: list[int], pause: bool, after: bool
) -> None:
    """Some come before anybody waits for them, others into the place that is waiting; what follows
    in the same piece is the next request."""
    body = random.Random(length).randbytes(length)

    async def application(request: Request, reply: Reply) -> None:
        reply.respond(200, [], await request.body(1 << 20, 60.0))

    async def scenario() -> bytes:
        wire = wired(application)
        sent = ask("POST", "/", f"content-length: {length}") + body
        sent += get("/next") if after else b""
        for cut in cycle(cuts):
            wire.feed(sent[:cut])
            sent = sent[cut:]
            if pause:
                await settle()
            if not sent:
                break
        await settle()
        return wire.written

    assert shifted(scenario()) == ok(body) + (ok(b"") if after else b"")
