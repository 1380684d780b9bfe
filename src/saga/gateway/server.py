"""Serves the gateway until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from saga.gateway.app import App
from saga.gateway.reload import Loaded, Reloader, load
from saga.gateway.service import Gateway
from saga.http.server import Server, event_loop, run
from saga.traces import TraceWriter

logger = logging.getLogger("saga.gateway")


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
        with asyncio.Runner(loop_factory=event_loop) as runner:
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

    def announce(port: int) -> None:  # with port 0 nobody could know it otherwise
        print(
            f"SAGA gateway on http://{settings.host}:{port} with preset {loaded.settings.preset}; "
            f"keys: {loaded.settings.auth.keys_file or 'none asked for'}",
            file=sys.stderr,
            flush=True,
        )

    def drain() -> None:
        gateway.draining = True

    server = Server(App(gateway))
    try:
        await run(
            server,
            settings.host,
            settings.port,
            drain_s=settings.drain_s,
            on_start=announce,
            on_stop=drain,
        )
    finally:
        await gateway.stop()
