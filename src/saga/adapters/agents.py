"""Agents that replay workflows over HTTP with the official client, as fast as their script says.

Prompts are real conversations of the scripted sizes (``conversation``), answers are as long as the
emulated engine is asked to make them, tools take as long as they took.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from tqdm import tqdm

from saga import wire
from saga.adapters.conversation import Conversation
from saga.traces import StepScript, WorkflowScript

try:
    import openai
except ImportError as error:
    raise ImportError(
        f'agents need {error.name!r}, which is not installed: pip install "saga-serve[demo]"'
    ) from error
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

MODEL: Final = "saga-emulated"
MAX_ERROR: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedStep:
    """One request. Times are seconds since the workflow's first request; tokens as the engine
    counted them."""

    session: int
    index: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    began_s: float
    first_token_s: float
    ended_s: float
    engine: str | None
    """Which engine the gateway chose, if it says so."""

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.began_s


@dataclass(slots=True, kw_only=True)
class Played:
    """What became of one workflow."""

    workflow: str
    steps: list[PlayedStep] = field(default_factory=list)
    """In the order in which they ended."""
    tct_s: float | None = None
    """First request to last answer; None when it was not finished."""
    error: str | None = None
    """Why it was not finished."""
    timed_out: bool = False
    """Nothing failed; the time was over."""


def client_of(url: str, *, timeout_s: float) -> AsyncOpenAI:
    """A client of a gateway, or of an engine, that nothing stands between, and that fails openly:
    no retries, and no proxies from the environment."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    return AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=timeout_s, http_client=http
    )


async def play(
    script: WorkflowScript, client: AsyncOpenAI, *, speed: float = 1.0, model: str = MODEL
) -> Played:
    """Replays one workflow; gaps are divided by ``speed``. What goes wrong is in the result."""
    return await _Workflow(script, client, speed, model).run()


async def play_all(
    scripts: Sequence[WorkflowScript],
    client: AsyncOpenAI,
    *,
    agents: int,
    speed: float = 1.0,
    stagger_s: float = 0.0,
    limit_s: float | None = None,
    label: str = "",
    quiet: bool = False,
) -> list[Played]:
    """A closed loop: so many workflows at a time, in the order of the scripts, as are the results.

    The first ones begin within ``stagger_s``. After ``limit_s`` what is not finished is given up.
    """
    waiting = iter(scripts)
    played: dict[str, Played] = {}
    loop = asyncio.get_running_loop()
    deadline = None if limit_s is None else loop.time() + limit_s

    async def agent(number: int, bar: tqdm[Any]) -> None:
        await asyncio.sleep(stagger_s * number / agents)
        for script in waiting:
            try:
                async with asyncio.timeout_at(deadline):
                    one = await play(script, client, speed=speed)
            except TimeoutError:
                told = f"not finished within {limit_s:g} s"
                one = Played(workflow=script.id, error=told, timed_out=True)
            played[script.id] = one
            bar.set_postfix(failed=sum(p.error is not None for p in played.values()))
            bar.update()

    with tqdm(total=len(scripts), desc=label, unit="workflow", disable=quiet) as bar:
        async with asyncio.TaskGroup() as tasks:
            for number in range(agents):
                tasks.create_task(agent(number, bar))
    return [played[script.id] for script in scripts]


class _Workflow:
    """One workflow under way: a task for each session."""

    def __init__(
        self, script: WorkflowScript, client: AsyncOpenAI, speed: float, model: str
    ) -> None:
        self._script = script
        self._client = client
        self._speed = speed
        self._model = model
        self._began = time.monotonic()
        self._tasks = asyncio.TaskGroup()
        self._children: dict[tuple[int, int], list[int]] = defaultdict(list)
        """Sub-agents by parent and the step that starts them."""
        for index, session in enumerate(script.sessions):
            if session.parent is not None:
                self._children[session.parent, session.spawn_step].append(index)
        self._played = Played(workflow=script.id)

    async def run(self) -> Played:
        root = self._script.sessions[0]
        conversation = Conversation.begin(self._name(0), root.prefix, root.prefix_tokens)
        try:
            async with self._tasks:
                self._tasks.create_task(self._session(0, conversation))
            self._played.tct_s = max(step.ended_s for step in self._played.steps)
        except* Exception as group:
            self._played.error = _told(group)
        with suppress(openai.APIError):  # an engine without a gateway does not know of workflows
            await self._say_done()
        return self._played

    async def _session(self, index: int, conversation: Conversation) -> None:
        script = self._script.sessions[index]
        for number, step in enumerate(script.steps):
            conversation.ask(step)
            await self._step(index, number, step, conversation)
            blocking = self._spawn(index, number, conversation)
            if number + 1 < len(script.steps):
                if blocking:
                    await asyncio.wait(blocking)
                await asyncio.sleep(step.gap_us / 1e6 / self._speed)

    def _spawn(
        self, parent: int, step: int, conversation: Conversation
    ) -> list[asyncio.Task[None]]:
        """Starts the sub-agents of a step; those to wait for."""
        blocking = []
        for index in self._children[parent, step]:
            script = self._script.sessions[index]
            if script.forked_tokens:
                own = conversation.fork(self._name(index))
            else:
                own = Conversation.begin(self._name(index), script.prefix, script.prefix_tokens)
            task = self._tasks.create_task(self._begin_later(index, own))
            if script.blocking:
                blocking.append(task)
        return blocking

    async def _begin_later(self, index: int, conversation: Conversation) -> None:
        await asyncio.sleep(self._script.sessions[index].delay_us / 1e6 / self._speed)
        await self._session(index, conversation)

    async def _step(
        self, session: int, number: int, step: StepScript, conversation: Conversation
    ) -> None:
        began = self._now()
        last = number + 1 == len(self._script.sessions[session].steps)
        wish = {"output_tokens": step.output_tokens, "tool": None if last else step.tool}
        stream = await self._client.chat.completions.create(
            model=self._model,
            messages=conversation.messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=self._headers(session),
            extra_body={wire.EMULATE: wish},
        )
        answer = _Answer()
        async with stream:
            await answer.read(stream, self._now)
        usage = answer.usage
        if usage is None or answer.finish is None:
            raise ConnectionError("the stream ended before the answer did")
        details = usage.prompt_tokens_details
        conversation.answer(answer.message, usage.completion_tokens)
        self._played.steps.append(
            PlayedStep(
                session=session,
                index=number,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=(details and details.cached_tokens) or 0,
                output_tokens=usage.completion_tokens,
                began_s=began,
                first_token_s=answer.first_s if answer.first_s is not None else self._now(),
                ended_s=self._now(),
                engine=stream.response.headers.get(wire.ENGINE_HEADER),
            )
        )

    def _headers(self, session: int) -> dict[str, str]:
        headers = {
            wire.WORKFLOW_HEADER: self._script.id,
            wire.SESSION_HEADER: self._name(session),
            wire.AGENT_HEADER: self._script.agent_type,
        }
        parent = self._script.sessions[session].parent
        if parent is not None:
            headers[wire.PARENT_HEADER] = self._name(parent)
        return headers

    async def _say_done(self) -> None:
        path = f"/saga/workflows/{quote(self._script.id, safe='')}"
        await self._client.delete(path, cast_to=object)

    def _name(self, session: int) -> str:
        return f"{self._script.id}/{session}"

    def _now(self) -> float:
        return time.monotonic() - self._began


class _Answer:
    """A streamed answer, put together again."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.finish: str | None = None
        self.usage: Any = None
        self._texts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}

    async def read(
        self, stream: AsyncStream[ChatCompletionChunk], now: Callable[[], float]
    ) -> None:
        async for chunk in stream:
            self.usage = chunk.usage or self.usage
            for choice in chunk.choices:
                self.finish = choice.finish_reason or self.finish
                delta = choice.delta
                if self.first_s is None and (delta.content or delta.tool_calls):
                    self.first_s = now()
                if delta.content:
                    self._texts.append(delta.content)
                for call in delta.tool_calls or ():
                    self._add_call(call)

    def _add_call(self, call: Any) -> None:
        empty = {"id": call.id, "type": "function", "function": {"name": "", "arguments": ""}}
        function = self._calls.setdefault(call.index, empty)["function"]
        function["name"] += call.function.name or ""
        function["arguments"] += call.function.arguments or ""

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts) or None}
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return message


def _told(group: BaseExceptionGroup[BaseException]) -> str:
    """The first thing that went wrong, in one line."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:MAX_ERROR]
