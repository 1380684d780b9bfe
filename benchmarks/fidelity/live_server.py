"""A live vLLM server on the CPU, a client that plays agents at it, and how fast it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import aiohttp
from tests.e2e.model import CONFIG, make_model
from tests.e2e.processes import BLOCK_SIZE, MODEL, Vllm, start_vllm, wait_for

from saga.sim.hardware import ModelSpec
from saga.traces.script import WorkflowScript

SHAPE = ModelSpec(
    name="small",
    num_layers=4,
    hidden_size=384,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    ffn_size=1024,
    vocab_size=259,
)
"""Large enough for a prefill to take longer than HTTP does."""
NUM_BLOCKS = 128
"""A little more than two contexts."""
MAX_LEN = 2_560
MAX_TOKENS = 2_048
MAX_SEQS = 16
PROBE_TOKENS = 2_000
"""Of the prompt by which a prefill is measured; one step."""
PROBE_OUTPUT = 100
PROBES = 5


@contextmanager
def server() -> Iterator[Vllm]:
    """One with little KV memory, and random weights that need no file."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        shape = {
            "hidden_size": SHAPE.hidden_size,
            "intermediate_size": SHAPE.ffn_size,
            "num_hidden_layers": SHAPE.num_layers,
            "num_attention_heads": SHAPE.num_heads,
            "num_key_value_heads": SHAPE.num_kv_heads,
            "head_dim": SHAPE.head_dim,
        }
        (model / "config.json").write_text(json.dumps({**CONFIG, **shape}), encoding="utf-8")
        more = {
            "--load-format": "dummy",
            "--max-model-len": MAX_LEN,
            "--max-num-batched-tokens": MAX_TOKENS,
            "--max-num-seqs": MAX_SEQS,
            "--num-gpu-blocks-override": NUM_BLOCKS,
        }
        words = [str(word) for option in more.items() for word in option]
        engine = start_vllm(model, folder / "vllm.log", *words)
        try:
            wait_for([engine])
            yield engine
        finally:
            engine.stop()


@dataclass(slots=True)
class Answer:
    tokens: list[int]
    cached_tokens: int


class Client:
    """Plays workflows with token ids as prompts; texts that nobody else has."""

    def __init__(self, http: aiohttp.ClientSession, url: str, seed: int) -> None:
        self._http, self._url = http, url
        self._random = Random(f"text {seed}")

    def text(self, tokens: int) -> list[int]:
        return self._random.choices(range(32, 127), k=tokens)

    async def ask(self, prompt: list[int], output: int) -> Answer:
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "return_token_ids": True,
        }
        async with self._http.post(f"{self._url}/v1/completions", json=body) as response:
            reply = await response.json()
            assert response.status == 200, reply
        details = reply["usage"]["prompt_tokens_details"] or {}
        return Answer(reply["choices"][0]["token_ids"], details.get("cached_tokens") or 0)

    async def play(self, script: WorkflowScript, after_s: float) -> tuple[float, int, int]:
        """Its TCT in seconds, prompt tokens, and those of them that were cached."""
        await asyncio.sleep(after_s)
        began, context, prompts, cached = perf_counter(), list[int](), 0, 0
        for step in script.sessions[0].steps:
            context += self.text(step.new_tokens)
            answer = await self.ask(context, step.output_tokens)
            prompts, cached = prompts + len(context), cached + answer.cached_tokens
            context += answer.tokens
            ended = perf_counter()
            await asyncio.sleep(step.gap_us / 1e6)
        return ended - began, prompts, cached


def connect() -> aiohttp.ClientSession:
    """One connection for each request: the server closes those that idle while a tool runs."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


async def measure(url: str) -> tuple[float, float]:
    """Seconds of a prefill, and of a decode step, each alone."""
    async with connect() as http:
        client = Client(http, url, 0)
        prefills, decodes = [], []
        for _ in range(PROBES):
            prompt = client.text(PROBE_TOKENS)
            began = perf_counter()
            await client.ask(prompt, 1)
            prefills.append(perf_counter() - began)
            short = client.text(BLOCK_SIZE)
            began = perf_counter()
            await client.ask(short, 1)
            first = perf_counter()
            await client.ask(short, 1 + PROBE_OUTPUT)
            decodes.append((perf_counter() - first - (first - began)) / PROBE_OUTPUT)
    return median(prefills), median(decodes)


async def empty(url: str, seed: int) -> None:
    """Fills the cache with what nobody asks for again."""
    async with connect() as http:
        client = Client(http, url, -seed)
        for _ in range(1 + NUM_BLOCKS * BLOCK_SIZE // PROBE_TOKENS):
            await client.ask(client.text(PROBE_TOKENS), 1)
