"""Where engines are: a fixed list, a file that changes, a name in DNS."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

import yaml

FILE_LIMIT = 1024 * 1024
"""Bytes of a file of engines."""

OnError = Callable[[str], None]
"""Is told, in one sentence, why a source keeps what it knew."""
Resolve = Callable[[str, int], Awaitable[Collection[str]]]
"""Name and port to addresses. Raises OSError."""


class DiscoveryError(ValueError):
    """An engine's address, or a list of them, that cannot be used."""


class Source(Protocol):
    def watch(self) -> AsyncGenerator[frozenset[str]]:
        """Yields the full set of engine URLs first and whenever it has changed."""
        ...


def engine_url(text: str) -> str:
    """An engine's base URL in the form in which it is compared. Raises DiscoveryError."""
    parts = _split(text)
    if parts.scheme not in ("http", "https"):
        raise DiscoveryError(f"engine {text!r}: it starts with neither http:// nor https://")
    if parts.query or parts.fragment:
        raise DiscoveryError(f"engine {text!r}: it has a query or a fragment")
    path = parts.path.rstrip("/")
    if path.endswith("/v1"):
        raise DiscoveryError(f"engine {text!r}: leave out /v1, it is part of each request's path")
    return f"{parts.scheme}://{_netloc(parts)}{path}"


def _split(text: str) -> SplitResult:
    if "@" in text:  # first of all, since the other errors show the text
        raise DiscoveryError("an engine's URL has no user or password in it: use engines.api_key")
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise DiscoveryError(f"engine {text!r}: there is a space or a control code in it")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise DiscoveryError(f"engine {text!r}: {error}") from error
    if not parts.hostname:
        raise DiscoveryError(f"engine {text!r}: it names no host (as in http://10.0.0.1:8000)")
    if port == 0:
        raise DiscoveryError(f"engine {text!r}: port 0 is none")
    return parts


def _netloc(parts: SplitResult) -> str:
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class StaticSource:
    """A list that does not change. Raises DiscoveryError for a bad one."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = frozenset(engine_url(url) for url in urls)

    async def watch(self) -> AsyncGenerator[frozenset[str]]:
        yield self._urls


class FileSource:
    """A file with one URL per line (# starts a comment), or with a YAML list of them.

    It is looked at every ``poll_s`` seconds. While it is missing or broken, the last good list
    counts.
    """

    def __init__(self, path: Path, *, on_error: OnError, poll_s: float = 1.0) -> None:
        self._path = path
        self._on_error = on_error
        self._poll_s = poll_s

    async def watch(self) -> AsyncGenerator[frozenset[str]]:
        seen: tuple[int, ...] | None = ()
        urls: frozenset[str] | None = None
        while True:
            stamp = self._stamp()
            if stamp != seen:
                seen = stamp
                new = self._read()
                if new is not None and new != urls:
                    urls = new
                    yield urls
            await asyncio.sleep(self._poll_s)

    def _stamp(self) -> tuple[int, ...] | None:
        """Changes with the file; None: there is none."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> frozenset[str] | None:
        try:
            with self._path.open("rb") as file:
                return parse_urls(file.read(FILE_LIMIT + 1))
        except (OSError, DiscoveryError) as error:
            self._on_error(f"{self._path}: {error}; the last good list of engines is kept")
            return None


def parse_urls(content: bytes) -> frozenset[str]:
    """The engines that a file names. Raises DiscoveryError."""
    if len(content) > FILE_LIMIT:
        raise DiscoveryError(f"a list of engines has no more than {FILE_LIMIT} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DiscoveryError("a list of engines is UTF-8 text") from error
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line and line != "---"]
    if lines and lines[0].startswith(("-", "[")):
        lines = _parse_yaml(text)
    return frozenset(engine_url(line) for line in lines)


def _parse_yaml(text: str) -> list[str]:
    try:
        urls = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DiscoveryError(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise DiscoveryError("not a list of URLs")
    return urls


async def resolve(name: str, port: int) -> frozenset[str]:
    """All addresses of a name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return frozenset(str(address[4][0]) for address in found)


class DnsSource:
    """Every address of a name, such as a headless service's: ``dns://name:port``.

    It is asked every ``poll_s`` seconds. While it has no answer (also: while the service is empty),
    the last one counts; engines that are gone are found out by their silence. Raises DiscoveryError
    for a bad address.
    """

    def __init__(
        self, url: str, *, on_error: OnError, poll_s: float = 5.0, resolve: Resolve = resolve
    ) -> None:
        parts = _split(url)
        if parts.scheme != "dns" or parts.port is None or parts.path.strip("/"):
            raise DiscoveryError(f"engines {url!r}: not of the form dns://name:port")
        self._name, self._port = parts.hostname or "", parts.port
        self._on_error = on_error
        self._poll_s = poll_s
        self._resolve = resolve
        self._failed = False

    async def watch(self) -> AsyncGenerator[frozenset[str]]:
        urls: frozenset[str] | None = None
        while True:
            new = await self._ask()
            if new is not None and new != urls:
                urls = new
                yield urls
            await asyncio.sleep(self._poll_s)

    async def _ask(self) -> frozenset[str] | None:
        """None: no answer, which is said once."""
        try:
            urls = await self._lookup()
        except (OSError, DiscoveryError) as error:
            if not self._failed:
                self._on_error(f"{self._name}: {error}; the last known engines are kept")
            self._failed = True
            return None
        self._failed = False
        return urls

    async def _lookup(self) -> frozenset[str]:
        addresses = await self._resolve(self._name, self._port)
        hosts = (f"[{address}]" if ":" in address else address for address in addresses)
        return frozenset(engine_url(f"http://{host}:{self._port}") for host in hosts)


class AllSources:
    """Several sources as one: what any of them names."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    async def watch(self) -> AsyncGenerator[frozenset[str]]:
        known: list[frozenset[str]] = [frozenset() for _ in self._sources]
        changed = asyncio.Event()

        async def follow(number: int, source: Source) -> None:
            async with aclosing(source.watch()) as sets:
                async for urls in sets:
                    known[number] = urls
                    changed.set()

        tasks = [asyncio.create_task(follow(*item)) for item in enumerate(self._sources)]
        for task in tasks:
            task.add_done_callback(lambda _: changed.set())
        urls: frozenset[str] | None = None
        try:
            while True:
                await changed.wait()
                changed.clear()
                for task in tasks:
                    if task.done():
                        task.result()  # a source may end, but not by an error unseen
                new = frozenset[str]().union(*known)
                if new != urls:
                    urls = new
                    yield urls
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
