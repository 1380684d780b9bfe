"""An engine that says what it is told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tests.gateway.live import Live, gateway
from tests.gateway.servers import serve

from saga import wire


@dataclass
class Tiny:
    status: int = 200
    answer: bytes = b"{}"
    delay_s: float = 0.0
    reads_hints: bool = False
    sglang: bool = False
    stats: dict[str, Any] = field(default_factory=dict)
    """More figures of its control route, if it reads hints."""
    asked: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Headers, names in lower case, and body of each request to a model."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            owner = "sglang" if self.sglang else "tiny"
            return web.json_response({"data": [{"id": "tiny", "owned_by": owner}]})
        if request.path == f"{wire.CONTROL}/stats" and self.reads_hints:
            figures = {"kv_capacity_tokens": 100_000, "max_num_seqs": 8}
            return web.json_response({**figures, **self.stats})
        if request.method != "POST" or request.path.startswith(wire.CONTROL):
            return web.Response(status=404)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((headers, await request.read()))
        await asyncio.sleep(self.delay_s)
        return web.Response(
            status=self.status, body=self.answer, headers={"x-tiny": "engine", "x-by": "it"}
        )


@asynccontextmanager
async def tiny(engine: Tiny, **settings: Any) -> AsyncIterator[Live]:
    """A gateway in front of such an engine. Its requests wait until it is up."""
    async with serve(engine.handle) as url:
        with gateway(engines=[url], settings=settings) as live:
            yield live
