"""The programs of a run: the engines, the load, and what stands between them."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGES_PER_MIB = (1 << 20) // os.sysconf("SC_PAGE_SIZE")
START_S = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator saw; times in microseconds."""

    ok: int
    failed: int
    events: int
    """Of streams, all together."""
    p50_us: int
    p99_us: int
    gap_p50_us: int
    """Between the pieces of a stream."""
    gap_p99_us: int
    seconds: float
    cpu_s: float
    """What the gateway worked meanwhile ..."""
    rss_mib: float
    """... and its memory at the end; both 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Server:
    """A program that listens, with all the processes that it started."""

    port: int
    pid: int
    """Also of its process group."""

    def cpu_s(self) -> float:
        return sum(int(user) + int(system) for user, system in self._stats(13, 14)) / TICKS_PER_S

    def rss_mib(self) -> float:
        return sum(int(pages) for (pages,) in self._stats(23)) / PAGES_PER_MIB

    def _stats(self, *at: int) -> Iterator[list[str]]:
        """Those fields (proc_pid_stat(5), from 0) of each process of the group."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = ["", "", *path.read_text().rpartition(")")[2].split()]
                if int(fields[4]) == self.pid:
                    yield [fields[index] for index in at]


class Machine:
    """Starts programs: gateways on the first core, all else on the others."""

    def __init__(self, folder: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.cores = cores if len(cores) > 1 and shutil.which("taskset") else []
        """Empty: nothing is pinned."""
        self._folder = folder
        for name in ("engine", "load"):
            source = str(HERE / f"{name}.c")
            command = ["cc", "-std=c11", "-O2", "-o", str(folder / name), source]
            subprocess.run(command, check=True)

    @contextlib.contextmanager
    def gateway(
        self, command: Sequence[str], port: int, environ: Mapping[str, str]
    ) -> Iterator[Server]:
        """Runs one until the block ends; RuntimeError with its last words if it does not serve."""
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                [*self._pin(gateway=True), *command],
                env={**os.environ, **environ},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                if not _serves(process, port):
                    log.seek(0)
                    last = "\n".join(log.read().splitlines()[-5:])
                    raise RuntimeError(f"{command[0]} does not serve:\n{last}")
                yield Server(port, process.pid)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @contextlib.contextmanager
    def engine(self, num_chunks: int = 0, interval_us: int = 0) -> Iterator[int]:
        """The port of one that answers as ``engine.c`` says."""
        port = free_port()
        arguments = [str(part) for part in (port, num_chunks, interval_us)]
        process = subprocess.Popen([*self._pin(), str(self._folder / "engine"), *arguments])
        try:
            if not _serves(process, port):
                raise RuntimeError("the engine does not serve")
            yield port
        finally:
            process.kill()
            process.wait()

    def play(
        self,
        port: int,
        requests: Path,
        connections: int,
        seconds: float,
        *,
        rate: float = 0.0,
        settle_s: float = 0.0,
        watched: Server | None = None,
    ) -> Load:
        """Plays requests for ``seconds`` after a warm-up; see ``load.c``."""
        warmup_s = max(0.5, seconds / 4) + settle_s
        arguments = [str(part) for part in (port, requests, connections, warmup_s, seconds, rate)]
        command = [*self._pin(), str(self._folder / "load"), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()  # begin
            before = watched.cpu_s() if watched else 0.0
            process.stdout.readline()  # end
            cpu_s = watched.cpu_s() - before if watched else 0.0
            rss_mib = watched.rss_mib() if watched else 0.0
            output = process.stdout.read()
        if process.returncode:
            raise RuntimeError("the load generator failed")
        return Load(**json.loads(output), seconds=seconds, cpu_s=cpu_s, rss_mib=rss_mib)

    def _pin(self, *, gateway: bool = False) -> list[str]:
        if not self.cores:
            return []
        cores = self.cores[:1] if gateway else self.cores[1:]
        return ["taskset", "-c", ",".join(map(str, cores))]


def free_port() -> int:
    """One that no connection takes: those have the kernel's, which begin higher."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


_ports = itertools.count(18_000)


def _serves(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until it lists the models of its engines; False if it ends or takes too long."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/v1/models")
            if connection.getresponse().status == 200:
                connection.close()
                return True
        connection.close()
        time.sleep(0.1)
    return False
