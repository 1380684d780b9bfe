"""A gateway and engines that publish their KV: it knows of losses before sessions return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from aiohttp import web
from tests.gateway.kv import SIZE, engine, removed, stored
from tests.gateway.live import Live, ask, chat, fetch, gateway
from tests.gateway.raw import CHAT
from tests.gateway.tiny import Tiny, tiny
from tests.serving import serving, wait_until

from saga.engine.options import EngineOptions
from saga.engine.server import EngineApp
from saga.http.connection import Application

ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
}


@dataclass
class Publishing(Tiny):
    """Tells where its KV events are, as vLLM 0.32 does."""

    endpoint: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/kv_event_sources":
            return web.json_response({"0": {"publisher": "zmq", "endpoint": self.endpoint}})
        return await super().handle(request)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def resident(live: Live, session: str) -> int:
    return live.gateway.host.scheduler.state.sessions[f"default/{session}"].resident_tokens


async def step(live: Live, headers: dict[str, str], text: str = "x", **body: Any) -> None:
    asked = chat(text, **body)
    assert (await fetch(f"{live.url}{CHAT}", asked, headers=headers))[0] == 200


# ---- engines that tell of blocks


class Scene:
    """An engine whose KV events the test makes, behind a gateway."""

    def __init__(self, tiny: Publishing, live: Live, publisher: Any) -> None:
        self.tiny = tiny
        self.live = live
        self.publisher = publisher

    def called(self) -> str:
        """What the engine was told that the last request's session is called, as vLLM sees it."""
        headers, body = self.tiny.asked[-1]
        named: str = msgspec.json.decode(body).get("session_id") or headers["x-session-id"]
        return named


def play(act: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        with engine() as publisher:
            one = Publishing(answer=msgspec.json.encode(ANSWER), endpoint=publisher.endpoint)
            async with tiny(one) as live:
                await until(publisher.subscribed)
                await act(Scene(one, live, publisher))

    asyncio.run(run())


NAMED: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "by the gateway": ({"x-saga-session-id": "s 1"}, {}),
    "by the client's header": ({"x-session-id": "s 1"}, {}),
    "by the client's body": ({}, {"session_id": "s 1"}),
}


@pytest.mark.parametrize("how", NAMED)
def test_a_loss_is_known_before_the_session_returns(how: str) -> None:
    headers, body = NAMED[how]

    async def act(scene: Scene) -> None:
        await step(scene.live, headers, **body)
        assert resident(scene.live, "s 1") > SIZE
        scene.publisher.say(stored(range(6), session_id=scene.called()))
        scene.publisher.say(removed([5, 4, 3, 2, 1]))
        await until(lambda: resident(scene.live, "s 1") == SIZE)

    play(act)


def test_a_restart_is_known_though_no_check_failed() -> None:
    async def act(scene: Scene) -> None:
        for name in ("a", "b"):
            await step(scene.live, {"x-saga-session-id": name})
            scene.publisher.say(stored([name.encode()], session_id=scene.called()))
        scene.publisher.number = 0
        scene.publisher.say(stored([b"b"], session_id="default/b"))
        await until(lambda: resident(scene.live, "b") == SIZE)
        assert resident(scene.live, "a") == 0
        (one,) = scene.live.gateway.fleet.engines.values()
        assert one.state == "up"

    play(act)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-session-id": "default/victim"}, {}),
        ({"x-session-id": ""}, {"vllm_xargs": {"session_id": "default/victim"}}),
        ({"x-session-id": "x", "connection": "x-session-id"}, {}),
        ({}, {"session_id": "default/victim"}),
        ({}, {"session_id": "default\u002fvictim"}),
    ],
)
def test_nobodys_kv_counts_as_anothers(headers: dict[str, str], body: dict[str, Any]) -> None:
    async def act(scene: Scene) -> None:
        await step(scene.live, {"x-saga-session-id": "victim"})
        await step(scene.live, {"x-saga-session-id": "evil", **headers}, **body)
        assert scene.called() == "default/evil"
        forwarded = msgspec.json.decode(scene.tiny.asked[-1][1])
        assert {name: forwarded[name] for name in ("messages", "model")} == {
            name: chat("x")[name] for name in ("messages", "model")
        }

    play(act)


def test_what_is_passed_through_names_no_session() -> None:
    async def act(scene: Scene) -> None:
        url = f"{scene.live.url}/v1/embeddings"
        for name in ("default/victim", "mine"):
            await fetch(url, {"input": "x"}, headers={"x-session-id": name})
            assert "x-session-id" not in scene.tiny.asked[-1][0]

    play(act)


# ---- engines of SAGA


@contextmanager
def publishing(**options: Any) -> Iterator[str]:
    """An emulated engine that publishes; its URL."""
    app = EngineApp(EngineOptions(speed=200.0, kv_events="tcp://127.0.0.1:0", **options))

    @asynccontextmanager
    async def begin() -> AsyncIterator[Application]:
        try:
            yield app
        finally:
            app.close()

    with serving(begin) as port:
        yield f"http://127.0.0.1:{port}"


def test_an_emulated_engine_tells_what_others_took() -> None:
    settings = {"preset": "vllm_apc_affinity"}  # which leaves it to the engine what goes
    with publishing(kv_tokens=4_096) as url, gateway(engines=[url], settings=settings) as live:
        wait_until(lambda: bool(live.gateway.fleet.engines))
        (one,) = live.gateway.fleet.engines.values()
        wait_until(lambda: one.state == "up")

        def say(session: str, letter: str) -> None:
            asked = chat(letter * 4_000)
            assert ask(live.url + CHAT, asked, headers={"x-saga-session-id": session})[0] == 200

        events = live.gateway.kv_events
        while not events.counts(one.name)["session_stored"]:  # until the gateway is heard
            say("first", "a")
        full = resident(live, "first")
        assert full > 1_000
        for number in range(4):
            say(f"other-{number}", "bcde"[number])
        wait_until(lambda: resident(live, "first") < full)
        told = events.told(one.name)
        assert told is not None
        assert told["flowing"]
        assert told["counts"]["session_evicted"] > 0
