"""One vLLM server after the other, with the plugin and without."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

MODEL = "m"
START_S = 1_200.0
STOP_S = 60.0
QUICK = Timeouts(connect_s=5.0, first_byte_s=10.0, chunk_s=10.0, total_s=20.0)

_PLUGIN = ("--scheduler-cls", "saga.engine.vllm.Scheduler")
ENGINES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "stock": ((), ""),
    "plugin": (_PLUGIN, "saga,saga_endpoint"),
}
"""Options and ``VLLM_PLUGINS`` of each."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
ON_CPU = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class NoServerError(RuntimeError):
    """A server did not start; the message says where its log is."""


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    async def kv_tokens(self, upstream: Upstream) -> int:
        """Size of its KV memory."""
        _, page = await upstream.fetch(
            self.url, "GET", "/metrics", timeouts=QUICK, limit=16 * 1024 * 1024
        )
        config = re.search(rb"vllm:cache_config_info\{(.*)\}", page)
        found = dict(re.findall(rb'(\w+)="(\w+)"', config[1] if config else b""))
        return int(found[b"num_gpu_blocks"]) * int(found[b"block_size"])

    async def ready(self, upstream: Upstream) -> None:
        """Returns when it answers. Raises NoServerError."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise NoServerError(f"the server ended with {self.process.returncode}: {self.log}")
            with suppress(UpstreamError):
                status, _ = await upstream.fetch(
                    self.url, "GET", "/health", timeouts=QUICK, limit=65_536
                )
                if status == 200:
                    return
            time.sleep(1.0)
        raise NoServerError(f"the server did not answer within {START_S:g} s: {self.log}")


@contextmanager
def running(
    engine: str, python: str, model: Path, port: int, log: Path, more: Sequence[str], *, cpu: bool
) -> Iterator[Server]:
    """A server that is starting; stopped, by force if need be, at the end."""
    options, plugins = ENGINES[engine]
    # Not the command `vllm`: its distribution for CPUs has another name, and that needs it.
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL, "--load-format", "dummy", "--dtype", "bfloat16"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details"]
    environment = {**os.environ, **ENVIRONMENT, **(ON_CPU if cpu else {}), "VLLM_PLUGINS": plugins}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options, *more],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):  # its workers
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)


def accelerator(python: str) -> str | None:
    """The name of the CUDA device that vLLM would use; None without one."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def vllm_version(python: str) -> str | None:
    """None where it is not installed."""
    code = "import vllm; print('version', vllm.__version__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    found = re.search(r"^version (\S+)$", done.stdout, re.MULTILINE)
    return None if found is None else found[1]


HERE = sys.executable
