"""A gateway and emulated engines behind real servers, each in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec
from tests.serving import always, serving, wait_until

from saga.engine.options import EngineOptions
from saga.engine.server import EngineApp
from saga.gateway.app import App
from saga.gateway.host import Observe
from saga.gateway.reload import load
from saga.gateway.service import Gateway
from saga.http.connection import Application

MODEL = "test-model"

T = TypeVar("T")


@contextmanager
def engine(**options: Any) -> Iterator[tuple[str, EngineApp]]:
    """One emulated engine, 50 times as fast as real; its URL."""
    app = EngineApp(EngineOptions(**{"speed": 50.0, **options}))
    with serving(lambda: always(app)) as port:
        yield f"http://127.0.0.1:{port}", app


@dataclass
class Live:
    """A gateway that runs: its address, and itself to look at (from another thread: only look)."""

    url: str
    gateway: Gateway
    engines: Sequence[EngineApp]
    loop: asyncio.AbstractEventLoop
    """The gateway's."""

    def told(self, call: Callable[[Gateway], T]) -> T:
        """What a call on the gateway gives, made in its own thread."""

        async def made() -> T:
            return call(self.gateway)

        return asyncio.run_coroutine_threadsafe(made(), self.loop).result(10)

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
        loops: list[asyncio.AbstractEventLoop] = []

        @asynccontextmanager
        async def begin() -> AsyncIterator[Application]:
            one = Gateway(load(None, {}, flags), observe=observe)
            made.append(one)
            loops.append(asyncio.get_running_loop())
            await one.start()
            try:
                yield App(one)
            finally:
                await one.stop()

        port = stack.enter_context(serving(begin))
        up = len(apps)
        wait_until(lambda: sum(e.state == "up" for e in made[0].fleet.engines.values()) >= up)
        yield Live(f"http://127.0.0.1:{port}", made[0], apps, loops[0])


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
