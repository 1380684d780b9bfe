"""Listens, and stops without cutting anybody off."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from saga.http.connection import Application, Bounds, Connection

_BACKLOG: Final = 4096
_READ: Final = 256 * 1024
"""Bytes read at once."""
_CANCELLED_S: Final = 1.0
"""For how long what is cut off may clean up."""


class Server:
    """Serves one application on one address. To be made inside the event loop."""

    def __init__(self, application: Application, bounds: Bounds | None = None) -> None:
        self.application = application
        self.bounds = bounds or Bounds()
        self.stopping = False
        self.buffer = memoryview(bytearray(_READ))
        """What every connection reads into; what is read is dealt with before another one reads."""
        self.connections: set[Connection] = set()
        """Until they are closed and nobody works on them."""
        self._listener: asyncio.Server | None = None
        self._left = asyncio.Event()
        self._hurried = False

    async def start(self, host: str, port: int) -> int:
        """Listens from now on; the port, which 0 leaves to the system. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self), host, port, backlog=_BACKLOG
        )
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def stop(self, drain_s: float) -> None:
        """Takes no more requests, and returns when those under way are answered and their clients
        have taken the answers; whatever is left after ``drain_s`` is cut off."""
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self.connections and not self._hurried:
                    await self._next_left()
        for connection in list(self.connections):
            connection.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CANCELLED_S):
                while self.connections:
                    await self._next_left()

    def hurry(self) -> None:
        """Cuts the wait of ``stop`` short."""
        self._hurried = True
        self._left.set()

    def forget(self, connection: Connection) -> None:
        """It is closed, and nobody works on it any more."""
        self.connections.discard(connection)
        self._left.set()

    async def _next_left(self) -> None:
        self._left.clear()
        await self._left.wait()


async def run(
    server: Server,
    host: str,
    port: int,
    *,
    drain_s: float,
    on_start: Callable[[int], None] = lambda port: None,
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is under way; a second SIGINT cuts it off.

    ``on_start`` is told the port, ``on_stop`` that the end was asked for. Raises OSError.
    """
    asked = asyncio.Event()

    def stop(sig: int) -> None:
        if asked.is_set() and sig == signal.SIGINT:
            server.hurry()
        elif not asked.is_set():
            on_stop()
            asked.set()

    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stop, sig)
    try:
        on_start(await server.start(host, port))
        await asked.wait()
        await server.stop(drain_s)
    finally:
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sig)


def event_loop() -> asyncio.AbstractEventLoop:
    """A new one: uvloop's where there is one and ``SAGA_NO_UVLOOP`` is not set."""
    if not os.environ.get("SAGA_NO_UVLOOP"):
        with suppress(ImportError):
            import uvloop

            return uvloop.new_event_loop()
    return asyncio.new_event_loop()
