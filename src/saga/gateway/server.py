"""Serves the gateway until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from saga.gateway.app import App
from saga.gateway.reload import Loaded, Reloader, load
from saga.gateway.service import Gateway
from saga.traces import TraceWriter

logger = logging.getLogger("saga.gateway")


class _Server(uvicorn.Server):
    """Says at once that it is not ready any more; what is under way is served to its end."""

    gateway: Gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.gateway.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT  # asked a second time
        # uvicorn's own would raise the signal again after the drain, before anything is closed.
        self.should_exit = True


def serve(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> None:
    """Runs until SIGTERM or SIGINT. Raises SettingsError or KeysError for what cannot be used."""
    loaded = load(path, environ, flags)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with ExitStack() as stack:
        observe = None
        record = loaded.settings.record.file
        if record is not None:
            about = {"preset": loaded.settings.preset, "host": "gateway"}
            observe = stack.enter_context(TraceWriter(record, about))
        gateway = Gateway(loaded, observe=observe)
        reloader = Reloader(
            path,
            lambda: load(path, environ, flags),
            gateway.apply,
            current=loaded,
            on_error=logger.warning,
        )
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(gateway, reloader, loaded))


def _calm_collector() -> None:
    """Looks for cycles less often: a request makes hundreds of objects and hardly any cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _run(gateway: Gateway, reloader: Reloader, loaded: Loaded) -> None:
    settings = loaded.settings.server
    await gateway.start()
    _calm_collector()
    gateway.spawn(reloader.run())
    server = _Server(config(App(gateway), settings.host, settings.port, settings.drain_s))
    server.gateway = gateway
    gateway.spawn(_announce(server, loaded))
    try:
        await server.serve()
    finally:
        await gateway.stop()


def config(app: App, host: str, port: int, drain_s: float) -> uvicorn.Config:
    """How the application is served, in production and in tests."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(drain_s),
        backlog=4096,
    )


async def _announce(server: uvicorn.Server, loaded: Loaded) -> None:
    """Tells where it listens once it does; with port 0 nobody could know otherwise."""
    while not server.started:
        await asyncio.sleep(0.01)
    settings = loaded.settings
    port = server.servers[0].sockets[0].getsockname()[1]
    print(
        f"SAGA gateway on http://{settings.server.host}:{port} with preset {settings.preset}; "
        f"keys: {settings.auth.keys_file or 'none asked for'}",
        file=sys.stderr,
        flush=True,
    )


def _loop_factory() -> Any:
    if os.environ.get("SAGA_NO_UVLOOP"):
        return None
    with suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None
