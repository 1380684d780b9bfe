"""Agents that work at a server: a closed loop of so many at a time, with tools in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from benchmarks.gpu.server import MODEL
from benchmarks.gpu.shapes import FIRST_WORD
from saga import wire
from saga.gateway.upstream import Response, Timeouts, Upstream
from saga.traces.script import StepScript, WorkflowScript

OTHER_TOKENS = 2_000
OTHER_OUTPUT = 100
PATIENT = Timeouts(connect_s=10.0, first_byte_s=None, chunk_s=None, total_s=None)


@dataclass(frozen=True, slots=True)
class Step:
    """``ttft_s``: from sending to the first token."""

    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    resumed: bool
    """Whether the session had a step before."""


@dataclass(frozen=True, slots=True)
class Workflow:
    id: str
    tct_s: float
    steps: tuple[Step, ...]


def shortened(script: WorkflowScript, max_len: int) -> list[StepScript]:
    """The steps of its root session up to the first one that such a model could not serve."""
    steps = []
    for step in script.sessions[0].steps:
        if step.prompt_tokens + step.output_tokens >= max_len:
            break
        steps.append(step)
    return steps


class Agents:
    """Plays scripts at one server. Texts are token ids that depend on the seed and the workflow
    only, so that two servers are asked the same until their answers differ."""

    def __init__(self, upstream: Upstream, url: str, *, vocabulary: int, max_len: int) -> None:
        self._upstream = upstream
        self._url = url
        self._words = range(FIRST_WORD, vocabulary)
        self._max_len = max_len

    async def play(
        self, scripts: Sequence[WorkflowScript], seed: int, at_a_time: int, num_others: int = 0
    ) -> list[Workflow]:
        """All of them, in the order in which they are given, beside so many who ask otherwise."""
        todo = iter(scripts)
        done: list[Workflow] = []

        async def lane() -> None:
            for script in todo:
                done.append(await self._workflow(script, seed))

        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self._other(seed, n)) for n in range(num_others)]
            lanes = [tasks.create_task(lane()) for _ in range(at_a_time)]
            await asyncio.wait(lanes)
            for other in others:
                other.cancel()
        return sorted(done, key=lambda workflow: workflow.id)

    async def _other(self, seed: int, number: int) -> None:
        """Asks one question after another, none of which is a workflow's."""
        chance = Random(f"other {seed} {number}")
        while True:
            prompt = chance.choices(self._words, k=min(OTHER_TOKENS, self._max_len // 2))
            await self._ask(prompt, OTHER_OUTPUT, None, resumed=False, final=False)

    async def _workflow(self, script: WorkflowScript, seed: int) -> Workflow:
        """Its root session, for as long as the context fits into the model."""
        session = script.sessions[0]
        shared = Random(f"prefix {session.prefix}")
        own = Random(f"text {seed} {script.id}")
        context = shared.choices(self._words, k=session.prefix_tokens)
        todo = shortened(script, self._max_len)
        steps: list[Step] = []
        began = time.perf_counter()
        for number, step in enumerate(todo, 1):
            prompt = context[: step.kept_tokens]
            prompt += own.choices(self._words, k=step.prompt_tokens - len(prompt))
            asked = self._ask(
                prompt,
                step.output_tokens,
                f"bench/{seed}-{script.id}",
                resumed=number > 1,
                final=number == len(todo),
            )
            done, answer = await asked
            steps.append(done)
            context = prompt + answer
            if number < len(todo):
                await asyncio.sleep(step.gap_us / 1e6)
        return Workflow(script.id, time.perf_counter() - began, tuple(steps))

    async def _ask(
        self, prompt: list[int], output: int, session: str | None, *, resumed: bool, final: bool
    ) -> tuple[Step, list[int]]:
        hints: dict[str, Any] = {} if session is None else {wire.HINT_SESSION: session}
        if final:
            hints |= {wire.HINT_FINAL: 1, wire.HINT_TTL: 0}
        body: dict[str, Any] = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if hints:
            body[wire.HINTS_FIELD] = hints
        sent = time.perf_counter()
        first: float | None = None
        answer: list[int] = []
        usage: dict[str, Any] = {}
        response = await self._upstream.send(
            self._url,
            "POST",
            "/v1/completions",
            [("content-type", "application/json")],
            msgspec.json.encode(body),
            timeouts=PATIENT,
        )
        async for event in _events(response):
            for choice in event.get("choices", ()):
                if first is None:
                    first = time.perf_counter() - sent
                answer += choice.get("token_ids") or ()
            usage = event.get("usage") or usage
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        assert first is not None
        step = Step(first, usage["prompt_tokens"], cached, usage["completion_tokens"], resumed)
        return step, answer


async def _events(response: Response) -> AsyncIterator[dict[str, Any]]:
    """What a stream says. Raises RuntimeError with the server's words if it is none."""
    rest = b""
    try:
        while chunk := await response.chunk():
            rest += chunk
            if response.status != 200:
                continue
            *whole, rest = rest.split(b"\n\n")
            for event in whole:
                data = event.removeprefix(b"data: ")
                if data != b"[DONE]":
                    yield json.loads(data)
    finally:
        response.abort()
    if response.status != 200:
        raise RuntimeError(f"answered {response.status}: {rest[:500]!r}")
