"""Real processes: vLLM's API servers, and the gateway in front of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from tests.e2e.model import MAX_LEN
from tests.gateway.live import ask

MODEL = "tiny"
BLOCK_SIZE = 32
"""vLLM on a CPU wants a multiple of 32."""
NUM_BLOCKS = 4_096
START_S = 240.0
STOP_S = 30.0

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
SETTINGS = {"SAGA_ENGINES__SCRAPE_S": "0.5", "SAGA_QUEUE__MAX_WAIT_S": "30"}
OPTIONS = {
    "--block-size": BLOCK_SIZE,
    "--dtype": "bfloat16",
    "--host": "127.0.0.1",
    "--max-model-len": MAX_LEN,
    "--max-num-batched-tokens": 2_048,
    "--max-num-seqs": 16,
    "--num-gpu-blocks-override": NUM_BLOCKS,
    "--served-model-name": MODEL,
}
SWITCHES = ("--enable-prefix-caching", "--enable-prompt-tokens-details", "--enforce-eager")


@dataclass
class Server:
    """A process that serves HTTP, and what it said."""

    process: subprocess.Popen[bytes]
    log: Path
    command: Sequence[str]
    url: str = ""

    def lives(self) -> bool:
        return self.process.poll() is None

    def answers(self, path: str) -> bool:
        """Whether it answers with 200. Raises AssertionError if it has ended."""
        assert self.lives(), self.said()
        try:
            return ask(f"{self.url}{path}")[0] == 200
        except aiohttp.ClientError:
            return False

    def said(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-4_000:]

    def stop(self) -> None:
        """As a user would, and by force if that does not end it."""
        if self.lives():
            self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """No goodbye, for it and the processes that it started."""
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)


class Vllm(Server):
    """One of vLLM's servers."""

    @property
    def name(self) -> str:
        """What the gateway calls it."""
        return self.url.removeprefix("http://")

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 if it is not there."""
        page: bytes = ask(f"{self.url}/metrics")[1]
        found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", page.decode(), re.MULTILINE)
        return sum(map(float, found))


def start_vllm(
    model: Path, log: Path, *more: str, environment: Mapping[str, str] | None = None
) -> Vllm:
    """Starts a server and does not wait for it."""
    port = free_port()
    options = [str(word) for option in OPTIONS.items() for word in option]
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command = [*module, "--model", str(model), "--port", str(port), *options, *SWITCHES, *more]
    process = _start(command, log, ENVIRONMENT | dict(environment or {}))
    return Vllm(process, log, command, f"http://127.0.0.1:{port}")


def kv_events() -> tuple[str, str]:
    """Options of a server that publishes its KV events; it binds only where there is a star."""
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{free_port()}",
    }
    return "--kv-events-config", json.dumps(events)


def wait_for(servers: Sequence[Vllm]) -> None:
    for server in servers:
        wait_until(partial(server.answers, "/health"), START_S)


@contextmanager
def two_vllms(model: Path, folder: Path) -> Iterator[list[Vllm]]:
    """Two servers that are up; the second one publishes its KV events."""
    options: tuple[tuple[str, ...], ...] = ((), kv_events())
    servers: list[Vllm] = []
    try:
        for number, more in enumerate(options):
            servers.append(start_vllm(model, folder / f"vllm-{number}.log", *more))
        wait_for(servers)
        yield servers
    finally:
        for server in servers:
            server.stop()


def revive(servers: Sequence[Vllm]) -> None:
    """Starts those again that were killed."""
    for server in servers:
        if not server.lives():
            server.process = _start(server.command, server.log, ENVIRONMENT)
    wait_for(servers)


@contextmanager
def gateway(
    *, engines: Sequence[Vllm], log: Path, preset: str = "saga", **settings: str
) -> Iterator[Server]:
    """``saga serve`` in front of engines; ready when it knows all of them. Settings as variables
    name them."""
    urls = [word for engine in engines for word in ("--engine", engine.url)]
    command = [sys.executable, "-m", "saga.cli", "serve", "--port", "0", "--preset", preset]
    command += urls
    server = Server(_start(command, log, SETTINGS | settings), log, command)

    def announced() -> bool:
        found = re.search(r"SAGA gateway on (\S+) ", server.said())
        assert found or server.lives(), server.said()
        server.url = found[1] if found else ""
        return bool(found)

    try:
        wait_until(announced, STOP_S)
        wait_until(lambda: set(states(server).values()) == {"up"}, STOP_S)
        yield server
    finally:
        server.stop()


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    """Looks ten times a second; AssertionError when it took too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it did not come true within {seconds:g} s"
        time.sleep(0.1)


def post(url: str, body: Mapping[str, Any]) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers of an answer; vLLM insists on the content type."""
    return ask(url, body, headers={"content-type": "application/json"})


def states(server: Server) -> dict[str, str]:
    """How a gateway thinks of each of its engines."""
    engines = ask(f"{server.url}/v1/saga/engines")[1]["engines"]
    return {engine["name"]: engine["state"] for engine in engines}


def _start(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
