"""Requests that wait for an engine: kept alive, turned away in time, and told what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anthropic
import msgspec
import openai
import pytest
from tests.gateway.live import MODEL, Live, chat, fetch, gateway
from tests.gateway.raw import CHAT, DIALECTS, MESSAGES, refusal
from tests.gateway.tiny import Tiny, tiny

NARROW = {"engines.max_num_seqs": 1, "server.keepalive_s": 0.03}
"""One request at a time on the only engine."""
SIGNS = {CHAT: b": keepalive\n\n", MESSAGES: b'event: ping\ndata: {"type": "ping"}\n\n'}


@pytest.fixture(scope="module")
def narrow() -> Iterator[Live]:
    with gateway(engines=1, engine_options={"speed": 20.0}, settings=NARROW) as one:
        yield one
        one.check_nothing_is_lost()


def narrow_with(**settings: Any) -> Any:
    """Such a gateway with other settings: underscores for dots."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return gateway(engines=1, engine_options={"speed": 20.0}, settings={**NARROW, **named})


@asynccontextmanager
async def engaged(live: Live) -> AsyncIterator[None]:
    """The engine works on something that takes longer than any test, until its client leaves."""
    endless = chat("endless", stream=True, saga_emulate={"output_tokens": 100_000})
    del endless["max_tokens"]
    async with (
        aiohttp.ClientSession() as session,
        session.post(live.url + CHAT, json=endless) as response,
    ):
        assert response.status == 200
        await response.content.readany()
        yield


async def until_held(live: Live, number: int) -> None:
    async with asyncio.timeout(10):
        while live.gateway.host.num_held != number:
            await asyncio.sleep(0.005)


# ---- turned away


@pytest.mark.parametrize("path", DIALECTS)
def test_a_full_queue_takes_no_more(path: str) -> None:
    async def scenario(live: Live) -> None:
        async with engaged(live):
            waiting = asyncio.create_task(fetch(live.url + CHAT, chat("waits", stream=True)))
            await until_held(live, 1)
            for stream in (False, True):
                status, data, headers = await fetch(live.url + path, chat("more", stream=stream))
                kinds = {CHAT: "RateLimitError", MESSAGES: "rate_limit_error"}
                assert (status, refusal(path, msgspec.json.decode(data))[0]) == (429, kinds[path])
                assert 1 <= int(headers["Retry-After"]) <= 60
        assert (await waiting)[0] == 200

    with narrow_with(queue__max_requests=1) as live:
        asyncio.run(scenario(live))
        assert live.check_nothing_is_lost()["rejected"] == 0, "they were never let in"


@pytest.mark.parametrize("path", DIALECTS)
def test_who_waited_too_long_is_turned_away(path: str) -> None:
    async def scenario(live: Live) -> None:
        async with engaged(live):
            for stream in (False, True):
                status, data, headers = await fetch(live.url + path, chat("wait", stream=stream))
                message = refusal(path, msgspec.json.decode(data))[1]
                assert (status, message) == (429, "no engine had room within 0.1 s")
                assert 1 <= int(headers["Retry-After"]) <= 60

    late = {"queue__max_wait_s": 0.1, "queue__max_wait_streaming_s": 0.1}
    with narrow_with(server__keepalive_s=10, **late) as live:
        asyncio.run(scenario(live))
        assert live.check_nothing_is_lost()["rejected"] == 2


def test_a_stream_that_was_kept_alive_is_turned_away_by_an_event() -> None:
    async def scenario(live: Live) -> None:
        messages: Any = [{"role": "user", "content": "wait"}]
        async with engaged(live):
            async with openai.AsyncOpenAI(
                base_url=f"{live.url}/v1", api_key="any", max_retries=0
            ) as client:
                with pytest.raises(openai.APIError, match=r"no engine had room within 0\.2 s"):
                    await whole(
                        await client.chat.completions.create(
                            model=MODEL, messages=messages, stream=True
                        )
                    )
            async with anthropic.AsyncAnthropic(
                base_url=live.url, api_key="any", max_retries=0
            ) as claude:
                with pytest.raises(anthropic.APIStatusError, match="rate_limit_error"):
                    await whole(
                        await claude.messages.create(
                            model=MODEL, max_tokens=9, messages=messages, stream=True
                        )
                    )

    with narrow_with(queue__max_wait_streaming_s=0.2) as live:
        asyncio.run(scenario(live))
        assert live.check_nothing_is_lost()["rejected"] == 2


async def whole(stream: Any) -> list[Any]:
    return [event async for event in stream]


# ---- kept alive


@pytest.mark.parametrize("path", DIALECTS)
def test_a_stream_that_waits_shows_signs_of_life(narrow: Live, path: str) -> None:
    async def scenario() -> None:
        asked = {"x-saga-session-id": f"alive on {path}"}
        async with aiohttp.ClientSession() as session, engaged(narrow):
            body = chat("waits", stream=True)
            async with session.post(narrow.url + path, json=body, headers=asked) as response:
                assert (response.status, response.content_type) == (200, "text/event-stream")
                assert response.headers["x-saga-session-id"] == f"alive on {path}"
                assert "x-saga-engine" not in response.headers, "nobody knows yet"
                signs = await response.content.readexactly(3 * len(SIGNS[path]))
                assert signs == 3 * SIGNS[path]

    asyncio.run(scenario())


@pytest.mark.parametrize("path", DIALECTS)
def test_what_follows_the_signs_of_life_is_the_engines_stream(narrow: Live, path: str) -> None:
    async def scenario() -> None:
        body = chat("late", stream=True)
        async with aiohttp.ClientSession() as session:
            async with engaged(narrow):
                response = await session.post(narrow.url + path, json=body)
                await response.content.readexactly(len(SIGNS[path]))
            late = await response.read()
        _, direct, _ = await fetch(narrow.url + path, body)
        assert words(late.replace(SIGNS[path], b"")) == words(direct) != ""

    asyncio.run(scenario())


def words(stream: bytes) -> str:
    """The text of a stream of either API."""
    text = ""
    for line in stream.splitlines():
        if line.startswith(b"data: {"):
            event = msgspec.json.decode(line.removeprefix(b"data: "))
            deltas = [choice["delta"] for choice in event.get("choices", [])] or [event]
            for delta in deltas:
                text += delta.get("content") or ""
                text += delta["delta"].get("text", "") if "delta" in delta else ""
    return text


def test_the_sdks_do_not_mind_the_signs_of_life(narrow: Live) -> None:
    async def scenario() -> None:
        messages: Any = [{"role": "user", "content": "patience"}]
        async with (
            openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key="any") as client,
            anthropic.AsyncAnthropic(base_url=narrow.url, api_key="any") as claude,
        ):
            async with engaged(narrow):
                chunks = asyncio.create_task(
                    client.chat.completions.create(model=MODEL, messages=messages, stream=True)
                )
                events = asyncio.create_task(
                    claude.messages.create(
                        model=MODEL, max_tokens=9, messages=messages, stream=True
                    )
                )
                await asyncio.wait({chunks, events})
            told = [chunk.choices[0].delta.content async for chunk in await chunks]
            assert "".join(text or "" for text in told)
            assert [event.type async for event in await events][-1] == "message_stop"

    asyncio.run(scenario())


# ---- an engine's error after the stream has begun

OVERLONG = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}


def test_an_engines_late_error_ends_the_stream_as_an_event() -> None:
    async def scenario() -> None:
        slow = Tiny(status=400, answer=msgspec.json.encode(OVERLONG), delay_s=0.3)
        async with tiny(slow, **{"server.keepalive_s": 0.03}) as live:
            status, data, _ = await fetch(live.url + CHAT, chat("x", stream=True))
            assert status == 200
            *signs, event = data.replace(b"\n\n", b"\n\n\0").split(b"\0")[:-1]
            assert signs == [SIGNS[CHAT]] * len(signs) != []
            assert event == b"data: " + msgspec.json.encode(OVERLONG) + b"\n\n"
            counts = await asyncio.to_thread(live.check_nothing_is_lost)
            assert counts["failed"] == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("answer", [b'{"error": {"message": "too long"}}', b"too long\n", b""])
def test_the_sdks_see_an_engines_late_error(answer: bytes) -> None:
    async def scenario() -> None:
        messages: Any = [{"role": "user", "content": "x"}]
        slow = Tiny(status=400, answer=answer, delay_s=0.3)
        async with (
            tiny(slow, **{"server.keepalive_s": 0.03}) as live,
            openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="any") as client,
            anthropic.AsyncAnthropic(base_url=live.url, api_key="any") as claude,
        ):
            text = "too long" if answer.startswith(b"{") else "the engine answered 400"
            with pytest.raises(openai.APIError, match=text):
                await whole(
                    await client.chat.completions.create(
                        model=MODEL, messages=messages, stream=True
                    )
                )
            with pytest.raises(anthropic.APIStatusError, match=text):
                await whole(
                    await claude.messages.create(
                        model=MODEL, max_tokens=9, messages=messages, stream=True
                    )
                )

    asyncio.run(scenario())


def test_an_engines_early_error_is_its_own_answer() -> None:
    async def scenario() -> None:
        quick = Tiny(status=422, answer=b"not like this", delay_s=0)
        async with tiny(quick) as live:
            for stream in (False, True):
                status, data, headers = await fetch(live.url + CHAT, chat("x", stream=stream))
                assert (status, data) == (422, b"not like this")
                assert headers["x-tiny"] == "engine"

    asyncio.run(scenario())


# ---- sessions that give way


def test_a_session_that_gives_way_between_steps_is_served_when_there_is_room() -> None:
    """Two fit with what they began with; the younger one comes back with more than that."""
    small = {
        "engines.kv_capacity_tokens": 1_100,
        "preset": "saga+admission.kappa=1+admission.absent_floor_s=600",
    }

    def say(session: str, words: int, **options: Any) -> dict[str, Any]:
        return chat(
            "word " * words, saga={"workflow_id": session, "session_id": session}, **options
        )

    async def scenario(live: Live) -> None:
        url = live.url + CHAT
        for session in ("old", "young"):
            declared = {"workflow_id": session, "mean_steps": 1}
            assert (await fetch(f"{live.url}/v1/saga/workflows", declared))[0] == 201
            assert (await fetch(url, say(session, 400)))[0] == 200
        paused = asyncio.create_task(fetch(url, say("young", 1_400, stream=True)))
        await until_held(live, 1)
        assert live.told(lambda gateway: gateway.host.scheduler.state.num_pauses) == 1
        decisions = (await fetch(f"{live.url}/v1/saga/decisions"))[1].decode()
        assert "have outgrown its KV memory" in decisions
        done = await fetch(f"{live.url}/v1/saga/workflows/old", method="DELETE")
        assert done[0] == 200
        status, data, _ = await paused
        assert status == 200 and b"[DONE]" in data

    with gateway(engines=1, engine_options={"speed": 20.0}, settings=small) as live:
        asyncio.run(scenario(live))
        live.check_nothing_is_lost()
