"""What is measured: the engine alone, this gateway, and others."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.processes import free_port

Command = Callable[[int, Sequence[str]], list[str]]
"""Of a port and the engines' URLs."""

PEERS = Path("out/peers")
"""Each in an environment of its own, so that none moves what another needs."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    name: str
    command: Command | None
    """None: the engine itself."""
    named: bool = True
    """Whether requests tell their session."""


def _saga(port: int, engines: Sequence[str]) -> list[str]:
    told = [part for url in engines for part in ("--engine", url)]
    return [sys.executable, "-m", "saga.cli", "serve", "--port", str(port), *told]


def _bare(port: int, engines: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gateway.bare", str(port), *engines]


DIRECT = Target("direct", None)
SAGA = Target("saga", _saga)
SAGA_UNNAMED = Target("saga, no session id", _saga, named=False)
BARE = Target("its libraries alone", _bare)


def peers() -> list[Target]:
    """Installs what is not there yet, from the package index."""
    return [
        _peer("sglang-router", "0.3.2", "round robin", "launch", "--policy", "round_robin"),
        _peer("sglang-router", "0.3.2", "cache aware", "launch", "--policy", "cache_aware"),
        _peer("vllm-router", "0.1.17", "round robin", "--policy", "round_robin"),
        _peer("vllm-router", "0.1.17", "cache aware", "--policy", "cache_aware"),
        _peer("vllm-router", "0.1.17", "programs", "--enable-program-scheduling"),
        _peer("smg", "1.13.0", "round robin", "launch", "--policy", "round_robin"),
        _peer("smg", "1.13.0", "cache aware", "launch", "--policy", "cache_aware"),
    ]


def _peer(package: str, version: str, mode: str, *arguments: str) -> Target:
    program = _installed(package, version)

    def command(port: int, engines: Sequence[str]) -> list[str]:
        address = ["--host", "127.0.0.1", "--port", str(port)]
        metrics = ["--prometheus-port", str(free_port())]  # by default they all take the same one
        return [str(program), *arguments, *address, *metrics, "--worker-urls", *engines]

    return Target(f"{package} {version}, {mode}", command)


def _installed(package: str, version: str) -> Path:
    folder = PEERS / f"{package}-{version}"
    program = folder / "bin" / package
    if not program.exists():
        print(f"installing {package} {version} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq"]
        subprocess.run([*pip, f"{package}=={version}"], check=True)
    return program.absolute()
