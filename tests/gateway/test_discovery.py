"""Addresses good and bad, a file that changes and breaks, a name that resolves now and then."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.discovery import (
    FILE_LIMIT,
    AllSources,
    DiscoveryError,
    DnsSource,
    FileSource,
    Source,
    StaticSource,
    engine_url,
    parse_urls,
    resolve,
)

GOOD = {
    "http://a:1": "http://a:1",
    "http://A.Example:8000/": "http://a.example:8000",
    "HTTP://a": "http://a:80",
    "https://a": "https://a:443",
    "http://[::1]:8000": "http://[::1]:8000",
    "http://a:8000/pool//": "http://a:8000/pool",
}
BAD = {
    "": "names no host",
    "a:8000": "names no host",
    "//a:8000": "neither http",
    "ftp://a:1": "neither http",
    "http://": "names no host",
    "http://a:99999": "[Pp]ort",
    "http://a:0": "port 0",
    "http://a:b": "[Pp]ort",
    "http://[::1": "IPv6",
    "http://a b:1": "space",
    "http://a:1\nx": "space",
    "http://a:1/?q=1": "query",
    "http://a:1/#x": "fragment",
    "http://a:1/v1": "leave out /v1",
    "http://a:1/v1/": "leave out /v1",
}


@pytest.mark.parametrize("text", GOOD)
def test_good_addresses(text: str) -> None:
    assert engine_url(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_bad_addresses_say_why(text: str) -> None:
    with pytest.raises(DiscoveryError, match=BAD[text]):
        engine_url(text)


@pytest.mark.parametrize("text", ["http://me:hunter2@a:1", "me:hunter2@a", "http://hunter2@a:b"])
def test_a_password_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(DiscoveryError, match="no user or password") as caught:
        engine_url(text)
    assert "hunter2" not in str(caught.value)


@given(text=st.text() | st.text(alphabet="htps:/[]@.a1%#?").map(lambda text: "http://" + text))
def test_an_address_is_in_its_form_or_an_error(text: str) -> None:
    try:
        url = engine_url(text)
    except DiscoveryError:
        return
    assert engine_url(url) == url


LISTS = {
    "lines": b"# engines\nhttp://a:1\n\n  http://b:2  # the second\r\n",
    "yaml": b"---\n# engines\n- http://a:1\n- 'http://b:2'\n",
    "flow": b"[http://a:1, http://b:2]",
    "twice": b"http://a:1\nhttp://b:2/\nhttp://b:2\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str) -> None:
    assert parse_urls(LISTS[name]) == {"http://a:1", "http://b:2"}


@pytest.mark.parametrize("content", [b"", b"# none\n", b"[]", b"---\n"])
def test_an_empty_list_is_a_list(content: bytes) -> None:
    assert parse_urls(content) == frozenset()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"http://a:1\nb:2\n", "names no host"),
        (b"- http://a:1\n- [\n", "not YAML"),
        (b"- url: http://a:1\n", "not a list of URLs"),
        (b"[" * 2_000, "not YAML"),
        (b"#" * (FILE_LIMIT + 1), "no more than"),
    ],
)
def test_broken_lists_say_why(content: bytes, why: str) -> None:
    with pytest.raises(DiscoveryError, match=why):
        parse_urls(content)


async def following(sets: AsyncGenerator[frozenset[str]]) -> frozenset[str]:
    return await asyncio.wait_for(anext(sets), 5)


def write(path: Path, content: str) -> None:
    """As careful tools do it: the whole file at once."""
    draft = path.with_suffix(".new")
    draft.write_text(content)
    os.replace(draft, path)


def test_a_file_is_followed_and_its_last_good_list_kept(tmp_path: Path) -> None:
    path = tmp_path / "engines.txt"
    errors: list[str] = []

    async def run() -> None:
        source = FileSource(path, on_error=errors.append, poll_s=0.01)
        async with aclosing(source.watch()) as sets:
            first = asyncio.create_task(following(sets))
            await asyncio.sleep(0.05)
            assert len(errors) == 1  # said once, not at every look
            assert "No such file" in errors[0]
            write(path, "http://a:1\n")
            assert await first == {"http://a:1"}

            write(path, "http://a:1\nhttp://b:2\n")
            assert await following(sets) == {"http://a:1", "http://b:2"}

            later = asyncio.create_task(following(sets))
            write(path, "nonsense\n")
            while len(errors) < 2:
                await asyncio.sleep(0.01)
            assert "nonsense" in errors[1]
            assert "last good list" in errors[1]
            path.unlink()
            while len(errors) < 3:
                await asyncio.sleep(0.01)
            write(path, "# the same\nhttp://b:2\nhttp://a:1\n")
            await asyncio.sleep(0.05)
            assert not later.done()  # nothing has changed for those who follow
            write(path, "")
            assert await later == frozenset()

    asyncio.run(run())
    assert len(errors) == 3


def test_a_name_is_followed_and_its_last_addresses_kept() -> None:
    errors: list[str] = []
    answers: list[Collection[str] | OSError] = [
        OSError("no such name"),
        OSError("no such name"),
        ["10.0.0.1"],
        ["10.0.0.1"],
        OSError("servfail"),
        ["fd00::1", "10.0.0.2"],
    ]

    async def answer(name: str, port: int) -> Collection[str]:
        assert (name, port) == ("engines.svc", 8000)
        found = answers.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    async def run() -> None:
        source = DnsSource(
            "dns://engines.svc:8000", on_error=errors.append, poll_s=0.0, resolve=answer
        )
        async with aclosing(source.watch()) as sets:
            assert await following(sets) == {"http://10.0.0.1:8000"}
            assert await following(sets) == {"http://10.0.0.2:8000", "http://[fd00::1]:8000"}

    asyncio.run(run())
    assert len(errors) == 2  # each time that it starts to fail
    assert "no such name" in errors[0]
    assert "servfail" in errors[1]


def test_the_systems_resolver() -> None:
    assert asyncio.run(resolve("127.0.0.1", 80)) == {"127.0.0.1"}


@pytest.mark.parametrize("url", ["dns://a", "http://a:1", "dns://:1", "dns://a:1/x", "a:1"])
def test_bad_names_are_refused(url: str) -> None:
    with pytest.raises(DiscoveryError):
        DnsSource(url, on_error=print)


class Given:
    """A source that says what the test tells it to."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[frozenset[str] | Exception] = asyncio.Queue()

    async def watch(self) -> AsyncGenerator[frozenset[str]]:
        while True:
            said = await self.queue.get()
            if isinstance(said, Exception):
                raise said
            yield said


def test_several_sources_are_one() -> None:
    async def run() -> None:
        given = Given()
        sources: list[Source] = [StaticSource(["http://a:1", "http://a:1/"]), given]
        async with aclosing(AllSources(sources).watch()) as sets:
            assert await following(sets) == {"http://a:1"}
            given.queue.put_nowait(frozenset({"http://b:2"}))
            assert await following(sets) == {"http://a:1", "http://b:2"}
            given.queue.put_nowait(frozenset({"http://a:1"}))
            assert await following(sets) == {"http://a:1"}
            given.queue.put_nowait(RuntimeError("lost"))
            with pytest.raises(RuntimeError, match="lost"):
                await following(sets)

    asyncio.run(run())


def test_a_bad_fixed_list_is_refused() -> None:
    with pytest.raises(DiscoveryError):
        StaticSource(["http://a:1", "b"])
