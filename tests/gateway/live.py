"""A gateway and emulated engines behind real servers, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import uvicorn

from saga.engine.options import EngineOptions
from saga.engine.server import EngineApp
from saga.gateway.app import App
from saga.gateway.host import Observe
from saga.gateway.reload import load
from saga.gateway.server import config
from saga.gateway.service import Gateway

MODEL = "test-model"


@contextmanager
def serving(begin: Callable[[], Any], end: Callable[[], Any]) -> Iterator[int]:
    """Serves the application that ``begin`` makes in a loop of a thread of its own; its port."""
    servers: list[uvicorn.Server] = []
    failures: list[BaseException] = []

    async def run() -> None:
        app = await begin()
        server = uvicorn.Server(config(app, "127.0.0.1", 0, 5))
        servers.append(server)
        try:
            await server.serve()
        finally:
            await end()

    def target() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    wait_until(lambda: bool(failures or (servers and servers[0].started)))
    if failures:
        raise failures[0]
    try:
        yield servers[0].servers[0].sockets[0].getsockname()[1]
    finally:
        servers[0].should_exit = True
        thread.join(10)
        if failures:
            raise failures[0]


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come true in time")
        time.sleep(0.005)


@contextmanager
def engine(**options: Any) -> Iterator[tuple[str, EngineApp]]:
    """One emulated engine, 50 times as fast as real; its URL."""
    apps: list[EngineApp] = []

    async def begin() -> EngineApp:
        apps.append(EngineApp(EngineOptions(**{"speed": 50.0, **options})))
        return apps[0]

    async def end() -> None:
        pass

    with serving(begin, end) as port:
        yield f"http://127.0.0.1:{port}", apps[0]


@dataclass
class Live:
    """A gateway that runs: its address, and itself to look at (from another thread: only look)."""

    url: str
    gateway: Gateway
    engines: Sequence[EngineApp]

    def outcomes(self) -> dict[str, int]:
        """Requests by how they ended, all tenants together, as ``/metrics`` tells."""
        page = asyncio.run(fetch(f"{self.url}/metrics"))[1].decode()
        counts = dict.fromkeys(("finished", "rejected", "cancelled", "failed", "arrived"), 0)
        for line in page.splitlines():
            for name in counts:
                if line.startswith("saga_requests_ended_total") and f'outcome="{name}"' in line:
                    counts[name] += int(float(line.split()[-1]))
            if line.startswith("saga_requests_arrived_total"):
                counts["arrived"] += int(float(line.split()[-1]))
        return counts

    def check_nothing_is_lost(self) -> dict[str, int]:
        """Once all is quiet: every request that arrived has ended, in one way."""

        def settled() -> bool:
            counts = self.outcomes()
            return counts.pop("arrived") == sum(counts.values())

        wait_until(settled)
        assert self.gateway.host.requests == {}
        assert self.gateway.host.num_held == 0
        assert not self.gateway.host.scheduler.state.requests
        return self.outcomes()


@contextmanager
def gateway(
    *,
    engines: int | Sequence[str] = 2,
    engine_options: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    observe: Observe | None = None,
) -> Iterator[Live]:
    """A gateway in front of so many emulated engines, or of the URLs given; ready when yielded."""
    with ExitStack() as stack:
        apps: list[EngineApp] = []
        urls = [] if isinstance(engines, int) else list(engines)
        for _ in range(engines if isinstance(engines, int) else 0):
            url, app = stack.enter_context(engine(**(engine_options or {})))
            urls.append(url)
            apps.append(app)
        flags = {"engines.urls": tuple(urls), "engines.scrape_s": 0.1, **(settings or {})}
        made: list[Gateway] = []

        async def begin() -> App:
            one = Gateway(load(None, {}, flags), observe=observe)
            made.append(one)
            await one.start()
            return App(one)

        async def end() -> None:
            await made[0].stop()

        port = stack.enter_context(serving(begin, end))
        up = len(apps)
        wait_until(lambda: sum(e.state == "up" for e in made[0].fleet.engines.values()) >= up)
        yield Live(f"http://127.0.0.1:{port}", made[0], apps)


async def fetch(
    url: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of one request; a body that is no bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
    method = method or ("GET" if body is None else "POST")
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=data, headers=headers) as response,
    ):
        return response.status, await response.read(), dict(response.headers)


def ask(url: str, *args: Any, **options: Any) -> tuple[int, Any, dict[str, str]]:
    """``fetch`` from a test that is no coroutine; JSON is decoded."""
    status, data, headers = asyncio.run(fetch(url, *args, **options))
    if "json" in headers.get("content-type", headers.get("Content-Type", "")):
        return status, msgspec.json.decode(data), headers
    return status, data, headers


def chat(text: str, *, stream: bool = False, **options: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": text}]
    return {
        "model": MODEL,
        "messages": messages,
        "stream": stream,
        "max_tokens": 20,
        **options,
    }
