"""A proxy that takes turns between engines and does nothing else, with the gateway's own HTTP: what
the gateway could be at best if identity, scheduling and metrics cost nothing.

``python -m benchmarks.gateway.bare PORT URL...``
"""

from __future__ import annotations

import asyncio
import itertools
import sys

from saga.gateway.upstream import Upstream
from saga.http.exchange import Reply, Request
from saga.http.server import Server, event_loop, run

MAX_BODY = 1 << 26


class Bare:
    """An application."""

    def __init__(self, upstream: Upstream, engines: list[str]) -> None:
        self._upstream = upstream
        self._engines = itertools.cycle(engines)

    async def __call__(self, request: Request, reply: Reply) -> None:
        body = await request.body(MAX_BODY, 60.0)
        response = await self._upstream.send(
            next(self._engines), request.method, request.target, request.headers.items(), body
        )
        reply.start(response.status, response.headers)
        while chunk := await response.chunk():
            reply.write(chunk)
            await reply.drain()
        reply.end()


async def main(port: int, engines: list[str]) -> None:
    async with Upstream() as upstream:
        await run(Server(Bare(upstream, engines)), "127.0.0.1", port, drain_s=5.0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2:]))
