"""Engines that fail on demand, and a gateway that is asked afterwards whether it lost anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.gateway import live
from tests.gateway.live import Live
from tests.serving import always, serving, wait_until

from saga.engine.options import EngineOptions
from saga.engine.server import EngineApp
from saga.http.exchange import Reply, Request

T = TypeVar("T")

CHAT = "/v1/chat/completions"
SILENCE = 0
"""A status that stands for no answer at all."""


@contextmanager
def aside(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """What runs in a loop, run in the loop of a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(step: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(step, loop).result(10)

    try:
        yield run(manager.__aenter__())
    finally:
        run(manager.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class Cable:
    """The way to an engine. Once it is cut the engine is, from outside, a process that was killed:
    its connections are reset and new ones refused."""

    def __init__(self, url: str) -> None:
        self.url = ""
        self._port = 0
        self._target = urlsplit(url)
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """What the gateway calls the engine."""
        return urlsplit(self.url).netloc

    def cut(self) -> None:
        """From any thread."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    def mend(self) -> None:
        """From any thread: as if a process was started again at the same address."""
        asyncio.run_coroutine_threadsafe(self.open(), self._loop).result(10)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def close(self) -> None:
        await self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _cut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _connect(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far, forth = await asyncio.open_connection(self._target.hostname, self._target.port)
        ends = {back, forth}
        self._writers |= ends
        await asyncio.gather(self._pump(near, forth), self._pump(far, back))
        self._writers -= ends
        self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()


@asynccontextmanager
async def _cable(url: str) -> AsyncIterator[Cable]:
    made = Cable(url)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


@contextmanager
def cabled(**options: Any) -> Iterator[tuple[Cable, EngineApp]]:
    """An emulated engine that can be killed."""
    with live.engine(**options) as (url, app), aside(_cable(url)) as way:
        yield way, app


class Moody:
    """An emulated engine that answers its next model requests as told, then as it should."""

    def __init__(self, answers: Iterable[tuple[int, bytes]]) -> None:
        self.engine = EngineApp(EngineOptions(speed=50.0))
        self.asked = 0
        """Requests to its models."""
        self._answers = iter(answers)

    async def __call__(self, request: Request, reply: Reply) -> None:
        told = None
        if request.path == CHAT:
            self.asked += 1
            told = next(self._answers, None)
        if told is None:
            await self.engine(request, reply)
            return
        await request.body(1 << 26, 10.0)
        status, body = told
        if status == SILENCE:
            await asyncio.Event().wait()
        _say(reply, status, body)


def _say(reply: Reply, status: int, body: bytes) -> None:
    """``body`` as the whole answer, or as its half if it ends in an ellipsis."""
    half = body.endswith(b"...")
    length = str(len(body) + (100 if half else 0)).encode()
    reply.start(status, [(b"content-type", b"application/json"), (b"content-length", length)])
    reply.write(body)
    if not half:
        reply.end()


@contextmanager
def moody(*answers: tuple[int, bytes], ever: tuple[int, bytes] | None = None) -> Iterator[Any]:
    """Its URL and itself. ``ever``: what it goes on answering."""

    def told() -> Iterator[tuple[int, bytes]]:
        yield from answers
        while ever is not None:
            yield ever

    one = Moody(told())
    with serving(lambda: always(one)) as port:
        yield f"http://127.0.0.1:{port}", one


@contextmanager
def gateway(*urls: str, engines: int = 0, **settings: Any) -> Iterator[Live]:
    """A gateway whose engines are all up. At the end nothing that arrived may be lost, and no task
    of a request be left."""
    loops: list[asyncio.AbstractEventLoop] = []

    def note(*_: object) -> None:
        if not loops:
            loops.append(asyncio.get_running_loop())

    given = {name.replace("__", "."): value for name, value in settings.items()}
    with live.gateway(engines=urls or engines, settings=given, observe=note) as running:
        fleet = running.gateway.fleet
        wait_until(lambda: sum(e.state == "up" for e in fleet.engines.values()) >= len(urls))
        yield running
        running.check_nothing_is_lost()
        for loop in loops:
            wait_until(lambda loop=loop: not _of_requests(loop))  # type: ignore[misc]


def _of_requests(loop: asyncio.AbstractEventLoop) -> set[str]:
    """Tasks that serve requests, or were begun by one."""
    names = {getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks(loop)}
    return {name for name in names if name.startswith(("Connection._run", "Relay"))}
