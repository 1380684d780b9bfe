"""What holds for all requests, all answers and all nonsense, however they are cut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import h11
from hypothesis import given
from hypothesis import strategies as st
from tests.http.wires import (
    CONTINUE,
    Echo,
    answers,
    ask,
    cut,
    echo,
    get,
    ok,
    pass_time,
    settle,
    shifted,
    wired,
    wired_to,
)

from saga.http.exchange import Headers, Reply, Request
from saga.http.server import Server

# ---- requests


@dataclass(frozen=True)
class Sent:
    """A request as bytes, and what must be read from them."""

    data: bytes
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    last: bool = False

    @property
    def wanted(self) -> bytes:
        """Its answer."""
        body = echo(self.method, self.target, self.body)
        return ok(body, close=self.last, head=self.method == "HEAD")


NAMES = st.text("abcXYZ-_.!19", min_size=1, max_size=9).map("x-{}".format)
VALUES = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"]), max_size=30
).map(lambda text: text.strip(" "))
TARGETS = st.text("abc/%2F?&=;:@~.'", max_size=30).map("/{}".format)
SPACES = st.text(" \t", max_size=3)
EXTENSIONS = st.sampled_from(["", ";a", ";a=b", ';a="b c"'])
ENDS = st.sampled_from(["0\r\n\r\n", "0;x=y\r\nx-trailer: 1\r\nx-y: z\r\n\r\n"])


@st.composite
def chunked(draw: st.DrawFn) -> tuple[list[str], bytes, bytes]:
    """Framing headers, bytes and body."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=100), max_size=4))
    sent = b"".join(
        f"{len(piece):{draw(st.sampled_from('xX'))}}{draw(EXTENSIONS)}\r\n".encode()
        + piece
        + b"\r\n"
        for piece in pieces
    )
    return ["Transfer-Encoding: chunked"], sent + draw(ENDS).encode(), b"".join(pieces)


SIZED = st.binary(max_size=300).map(lambda body: ([f"Content-Length: {len(body)}"], body, body))
NOTHING: st.SearchStrategy[tuple[list[str], bytes, bytes]] = st.just(([], b"", b""))
UPGRADE = ["Connection: Upgrade", "Upgrade: h2c"]


@st.composite
def requests(draw: st.DrawFn, *, last: bool = False) -> Sent:
    old = last and draw(st.booleans())
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "DELETE"]))
    target = draw(TARGETS)
    framing, data, body = draw(NOTHING | SIZED if old else NOTHING | SIZED | chunked())
    told = draw(st.dictionaries(NAMES, VALUES, max_size=5))
    lines = [f"{name}:{draw(SPACES)}{value}{draw(SPACES)}" for name, value in told.items()]
    lines += framing
    lines += draw(st.sampled_from([[], ["Expect: 100-continue"]]))
    if last and not old:
        lines.append("Connection: close")
    elif not last:
        lines += draw(st.sampled_from([[], ["connection: keep-alive"], UPGRADE]))
    lines = draw(st.permutations(lines))
    version = "1.0" if old else "1.1"
    head = "\r\n".join([f"{method} {target} HTTP/{version}", "Host: h", *lines, "", ""])
    headers: dict[str, str] = {"host": "h"}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Sent(head.encode("latin-1") + data, method, target, headers, body, last)


@st.composite
def sequences(draw: st.DrawFn) -> list[Sent]:
    ends: st.SearchStrategy[list[Sent]] = st.just([]) | requests(last=True).map(lambda one: [one])
    return draw(st.lists(requests(), max_size=6)) + draw(ends)


@given(sent=sequences(), places=st.lists(st.integers(0, 5_000)), pauses=st.lists(st.booleans()))
def test_requests_are_the_same_however_they_are_cut(
    sent: list[Sent], places: list[int], pauses: list[bool]
) -> None:
    async def scenario() -> None:
        answer = Echo()
        wire = wired(answer)
        for number, piece in enumerate(cut(b"".join(one.data for one in sent), places)):
            wire.feed(piece)
            if number < len(pauses) and pauses[number]:
                await settle()
        await pass_time(0)
        await pass_time(0)
        written = wire.written
        for one in sent:
            if "expect" in one.headers:
                written = written.removeprefix(CONTINUE)
            assert written.startswith(one.wanted)
            written = written.removeprefix(one.wanted)
        assert written == b""
        assert [
            (request.method, request.target, request.headers) for request in answer.requests
        ] == [(one.method, one.target, one.headers) for one in sent]
        assert wire.lost == any(one.last for one in sent)
        assert not wire.aborted

    shifted(scenario())


# ---- nonsense

PARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /a HTTP/1.1\r\n",
        b"host: h\r\n",
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"connection: upgrade\r\nupgrade: h2c\r\n",
        b"connection: close\r\n",
        b"expect: 100-continue\r\n",
        b"x: y\r\n",
        b"\r\n",
        b"\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"abc",
        get("/whole"),
        ask("POST", "/whole", body=b"abc"),
        b"CONNECT h:1 HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
    ]
)
ANSWERS = {200, 400, 408, 429, 431, 501, 505}


@given(
    parts=st.lists(PARTS | st.binary(max_size=20), max_size=20),
    places=st.lists(st.integers(0, 1_000), max_size=10),
    pause=st.booleans(),
    leaves=st.booleans(),
)
def test_nonsense_is_refused_or_its_connection_closed(
    parts: list[bytes], places: list[int], pause: bool, leaves: bool
) -> None:
    async def scenario() -> None:
        server = Server(Echo())
        wire = wired_to(server)
        for piece in cut(b"".join(parts), places):
            wire.feed(piece)
            if pause:
                await settle()
        if leaves:
            wire.leave()
        for _ in range(4):
            await pass_time(1_000)
        assert wire.lost
        assert not server.connections
        found = [status for status, _ in answers(wire.written)]
        assert set(found) <= ANSWERS
        assert all(status == 200 for status in found[:-1]), "nothing follows a refusal"

    shifted(scenario())


@given(st.data())
def test_a_request_with_one_byte_changed_does_no_harm(data: st.DataObject) -> None:
    sent = data.draw(requests(), label="sent").data
    place = data.draw(st.integers(0, len(sent) - 1), label="place")
    changed = sent[:place] + bytes([data.draw(st.integers(0, 255), label="by")]) + sent[place + 1 :]

    async def scenario() -> None:
        server = Server(Echo())
        wire = wired_to(server)
        wire.feed(changed + get("/next"))
        for _ in range(4):
            await pass_time(1_000)
        assert wire.lost
        assert not server.connections

    shifted(scenario())


# ---- answers


@dataclass(frozen=True)
class Told:
    """An answer as an application writes it."""

    status: int
    headers: Headers
    pieces: list[bytes]
    sized: bool

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def write(self, reply: Reply) -> None:
        length = [(b"content-length", b"%d" % len(self.body))] if self.sized else []
        reply.start(self.status, [*self.headers, *length])
        *first, last = self.pieces
        for piece in first:
            reply.write(piece)
        reply.end(last)


PIECES = st.binary(max_size=100) | st.integers(65_530, 65_540).map(lambda size: b"a" * size)
TOLD = st.builds(
    Told,
    status=st.sampled_from([200, 201, 204, 299, 304, 404, 500, 599]),
    headers=st.lists(st.tuples(st.sampled_from([b"x-a", b"x-b"]), st.just(b"v")), max_size=3),
    pieces=st.lists(PIECES, min_size=1, max_size=4),
    sized=st.booleans(),
)


def parsed(method: str, written: bytes) -> tuple[int, bytes, Headers, bytes]:
    """The first answer in it, as another library reads it, and what follows."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(written)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return response.status_code, body, list(response.headers), client.trailing_data[0]


@given(told=st.lists(TOLD, min_size=1, max_size=3), method=st.sampled_from(["GET", "HEAD"]))
def test_an_answer_is_read_as_it_was_written(told: list[Told], method: str) -> None:
    async def scenario() -> bytes:
        left = iter(told)

        async def tell(request: Request, reply: Reply) -> None:
            next(left).write(reply)
            await reply.drain()

        wire = wired(tell)
        wire.feed(ask(method, "/") * len(told))
        await settle()
        assert not wire.closing
        return wire.written

    written = shifted(scenario())
    for one in told:
        bodiless = method == "HEAD" or one.status in (204, 304)
        status, body, headers, written = parsed(method, written)
        assert (status, body) == (one.status, b"" if bodiless else one.body)
        assert [header for header in headers if header[0].startswith(b"x-")] == one.headers
    assert written == b""


@given(told=TOLD, version=st.sampled_from(["1.0", "1.1"]))
def test_the_last_answer_on_a_connection_ends_with_it(told: Told, version: str) -> None:
    async def scenario() -> bytes:
        async def tell(request: Request, reply: Reply) -> None:
            told.write(reply)

        wire = wired(tell)
        wire.feed(get("/", "connection: close", version=version))
        await settle()
        assert wire.lost
        assert not wire.aborted
        return wire.written

    status, body, headers, rest = parsed("GET", shifted(scenario()))
    assert (status, body) == (told.status, b"" if told.status in (204, 304) else told.body)
    assert (b"connection", b"close") in headers
    assert rest == b""
    if version == "1.0":
        assert (b"transfer-encoding", b"chunked") not in headers


# ---- whoever leaves, whenever


@given(
    sent=sequences(),
    left=st.integers(0, 3_000),
    places=st.lists(st.integers(0, 3_000), max_size=5),
    turns=st.integers(0, 5),
)
def test_nothing_is_left_of_one_that_leaves_at_any_moment(
    sent: list[Sent], left: int, places: list[int], turns: int
) -> None:
    async def slow(request: Request, reply: Reply) -> None:
        await request.body(1 << 20, 60.0)
        reply.start(200, [])
        for _ in range(3):
            await asyncio.sleep(0)
            reply.write(b"a")
            await reply.drain()
        reply.end()

    async def scenario() -> None:
        server = Server(slow)
        wire = wired_to(server)
        for piece in cut(b"".join(one.data for one in sent)[:left], places):
            wire.feed(piece)
            for _ in range(turns):
                await asyncio.sleep(0)
        wire.leave()
        for _ in range(5):  # its end is not heard while it has sent too much ahead
            await settle()
        assert not server.connections
        assert len(asyncio.all_tasks()) == 1

    shifted(scenario())
