"""Other ``saga`` commands as processes of this one; none of them outlives it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Child:
    """A command that serves HTTP on a port of this machine."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that it answers. Raises OSError for any other answer, or none."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                raise OSError(f"{self.name}: {method} {path}: {response.status}")
            return json.loads(data)
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{self.name}: {method} {path}: {error!r}") from error
        finally:
            connection.close()

    def wait_until(self, ready: Callable[[Child], bool]) -> None:
        """Until it answers and is ready. Raises OSError, with its last words, if it never is."""
        deadline = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if ready(self):
                    return
            except OSError:
                pass  # it does not listen yet
            time.sleep(0.05)
        code = self.process.poll()
        how = f"not ready within {START_S:g} s" if code is None else f"ended with {code}"
        raise OSError(f"{self.name}: {how}; {self.log} ends with:\n{self._last_words()}")

    def cpu_s(self) -> float | None:
        """Processor time it has used, seconds; None where the system does not tell."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return None
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])


class Children:
    """Starts commands; leaving the ``with`` ends them all, however it is left."""

    def __init__(self, logs: Path, environ: dict[str, str]) -> None:
        self._logs = logs
        self._environ = environ
        self._children: list[Child] = []

    def start(self, name: str, port: int, *arguments: str) -> Child:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        command = [sys.executable, "-m", "saga.cli", *arguments, "--host", HOST, "--port"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, str(port)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,  # Ctrl-C is for us, and we end them in order
            )
        child = Child(name, port, process, log)
        self._children.append(child)
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *exception: object) -> None:
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + STOP_S
        for child in self._children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


class CpuUse:
    """Cores used by processes since it was made."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._before = {child: child.cpu_s() for child in children}
        self._own = time.process_time()
        self._began = time.monotonic()

    def cores(self, own: str) -> dict[str, float]:
        """By name, this process by the name given; without those of which nothing is known."""
        wall_s = time.monotonic() - self._began
        used = {own: (time.process_time() - self._own) / wall_s}
        for child, before in self._before.items():
            now = child.cpu_s()
            if before is not None and now is not None:
                used[child.name] = (now - before) / wall_s
        return used


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP are as Ctrl-C, so that what was begun is ended. In the main thread."""
    signals = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_ports(num: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(num)]
        return [one.getsockname()[1] for one in sockets]
