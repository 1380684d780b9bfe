"""The gateway's libraries and no gateway: ``python -m benchmarks.gateway.bare PORT ENGINE...``.

Passes every request on to the engines in turn: what the gateway would cost if its work were free.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn
import uvloop

Message = MutableMapping[str, Any]
DROPPED = {b"host", b"content-length", b"transfer-encoding"}


class Bare:
    """A plain ASGI application. To be made inside the event loop."""

    def __init__(self, engines: list[str]) -> None:
        self._engines = itertools.cycle(engines)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
        )

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        parts = []
        more = True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        kept = [header for header in scope["headers"] if header[0] not in DROPPED]
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in kept]
        url = next(self._engines) + scope["path"]
        body = b"".join(parts)
        async with self._session.request(scope["method"], url, data=body, headers=headers) as back:
            head = [
                (name, value)
                for name, value in back.raw_headers
                if name.lower() != b"transfer-encoding"
            ]
            await send({"type": "http.response.start", "status": back.status, "headers": head})
            async for chunk in back.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def main() -> None:
    config = uvicorn.Config(
        Bare(sys.argv[2:]),
        port=int(sys.argv[1]),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        backlog=4096,
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
