"""Applications behind real servers, each in a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from saga.http.connection import Application, Bounds
from saga.http.server import Server, event_loop

Begin = Callable[[], AbstractAsyncContextManager[Application]]


@contextmanager
def serving(begin: Begin, *, bounds: Bounds | None = None, drain_s: float = 5.0) -> Iterator[int]:
    """Serves the application that ``begin`` makes in its loop, on a free port of the loopback
    device; the port. On uvloop, unless ``SAGA_NO_UVLOOP`` is set."""
    ports: list[int] = []
    failures: list[BaseException] = []
    told: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop = asyncio.Event()
        async with begin() as application:
            server = Server(application, bounds)
            told.append((asyncio.get_running_loop(), stop))
            ports.append(await server.start("127.0.0.1", 0))
            await stop.wait()
            await server.stop(drain_s)

    def target() -> None:
        try:
            with asyncio.Runner(loop_factory=event_loop) as runner:
                runner.run(run())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    wait_until(lambda: bool(failures or ports))
    if failures:
        raise failures[0]
    try:
        yield ports[0]
    finally:
        loop, stop = told[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        if failures:
            raise failures[0]
        assert not thread.is_alive(), "the server did not stop"


@asynccontextmanager
async def always(application: Application) -> AsyncIterator[Application]:
    """One that needs no beginning and no end."""
    yield application


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come true in time")
        time.sleep(0.005)
