"""Engines that fail, over HTTP: whoever asked gets an answer or an error, and nothing is lost."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.gateway import live
from tests.gateway.faults import CHAT, SILENCE, cabled, gateway, moody
from tests.gateway.live import Live, ask, chat
from tests.serving import wait_until

from saga import wire

ENGINES = f"{wire.CONTROL}/engines"
ONCE_A_MINUTE: dict[str, Any] = {"engines__scrape_s": 60}
"""Nobody looks after the engines: only requests can find out what is wrong."""


@dataclass
class Streamed:
    """What a client saw of a stream."""

    engine: str
    text: bytes = b""
    cut: bool = False
    """The connection broke before the end of the body."""

    @property
    def whole(self) -> bool:
        return not self.cut and self.text.endswith(b"data: [DONE]\n\n")

    @property
    def told(self) -> bool:
        """Whether its last event was an error."""
        return b'"error"' in self.text.rstrip().rpartition(b"\n\n")[2]


async def stream(url: str, body: dict[str, Any], *, began: Any = None, **headers: str) -> Streamed:
    """Reads a stream to whatever end; ``began`` is called with the engine's name at its first."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}{CHAT}", json=body, headers=headers) as response,
    ):
        seen = Streamed(response.headers.get(wire.ENGINE_HEADER, ""))
        try:
            async for chunk in response.content.iter_any():
                if not seen.text and began is not None:
                    await asyncio.to_thread(began, seen.engine)
                seen.text += chunk
        except aiohttp.ClientError:
            seen.cut = True
        return seen


def long(text: str, tokens: int, **options: Any) -> dict[str, Any]:
    return chat(text, max_tokens=tokens, ignore_eos=True, **options)


def name_of(url: str) -> str:
    return url.removeprefix("http://")


def engines_of(running: Live) -> dict[str, dict[str, Any]]:
    _, document, _ = ask(f"{running.url}{ENGINES}")
    return {engine["name"]: engine for engine in document["engines"]}


# ---- killed


def test_an_engine_killed_in_the_middle_of_a_stream_never_looks_like_an_end() -> None:
    with ExitStack() as stack:
        ways = [stack.enter_context(cabled(speed=5.0))[0] for _ in range(2)]
        by_name = {way.name: way for way in ways}
        running = stack.enter_context(gateway(*(way.url for way in ways)))
        body = long("tell me much", 2_000, stream=True)
        session: dict[str, Any] = {wire.SESSION_HEADER: "s"}
        seen = asyncio.run(
            stream(running.url, body, began=lambda name: by_name[name].cut(), **session)
        )
        assert seen.text
        assert not seen.whole
        assert seen.told or seen.cut
        lost = seen.engine
        again = asyncio.run(stream(running.url, chat("go on", stream=True), **session))
        assert again.whole
        assert again.engine in by_name.keys() - {lost}
        wait_until(lambda: engines_of(running)[lost]["state"] == "down")
        assert running.outcomes()["failed"] == 1


@pytest.mark.parametrize("streams", [False, True])
def test_an_engine_killed_before_its_first_byte_is_replaced(streams: bool) -> None:
    """The whole of an answer that is no stream comes at once, at its end; a stream's first byte
    comes after its prefill."""
    with ExitStack() as stack:
        made = [stack.enter_context(cabled(speed=1.0)) for _ in range(2)]
        running = stack.enter_context(gateway(*(way.url for way, _ in made), **ONCE_A_MINUTE))
        killed: list[str] = []

        async def kill_the_busy_one() -> None:
            while not killed:
                for way, app in made:
                    if app.engine.stats()["num_requests_running"]:
                        way.cut()
                        killed.append(way.name)
                        return
                await asyncio.sleep(0.001)

        async def scenario() -> Streamed:
            prompt = "word " * 25_000 if streams else "short"
            body = long(prompt, 5 if streams else 40, stream=streams)
            killing = asyncio.create_task(asyncio.to_thread(asyncio.run, kill_the_busy_one()))
            seen = await stream(running.url, body)
            await killing
            return seen

        seen = asyncio.run(scenario())
        assert not seen.cut
        assert seen.whole or b'"finish_reason":"length"' in seen.text
        assert seen.engine not in killed
        assert running.outcomes()["finished"] == 1


def test_an_engine_that_refuses_connections_costs_nobody_an_answer() -> None:
    with ExitStack() as stack:
        ways = [stack.enter_context(cabled())[0] for _ in range(2)]
        running = stack.enter_context(gateway(*(way.url for way in ways), **ONCE_A_MINUTE))
        told = ask(f"{running.url}{CHAT}", chat("first"), headers={wire.SESSION_HEADER: "s"})[2]
        home = told[wire.ENGINE_HEADER]
        next(way for way in ways if way.name == home).cut()
        for name in ("s", "s", "other", "another"):
            headers = {wire.SESSION_HEADER: name}
            status, _, told = ask(f"{running.url}{CHAT}", chat("next"), headers=headers)
            assert status == 200
            assert told[wire.ENGINE_HEADER] != home
        assert running.outcomes()["finished"] == 5


# ---- silent


def test_an_engine_that_never_answers_is_a_timeout_and_then_left_alone() -> None:
    with (
        moody(ever=(SILENCE, b"")) as (silent, app),
        live.engine() as (good, _),
        gateway(silent, good, timeouts__first_byte_s=0.4) as running,
    ):
        statuses = [ask(f"{running.url}{CHAT}", chat(f"task {n}"))[0] for n in range(30)]
        assert set(statuses) == {200, 504}
        failed = statuses.count(504)
        assert failed == app.asked == 5, "so many failures in a row open its breaker"
        assert engines_of(running)[name_of(silent)]["breaker"] == "open"
        counts = running.check_nothing_is_lost()
        assert (counts["failed"], counts["finished"]) == (failed, 30 - failed)


def test_the_last_engine_is_asked_whatever_its_breaker_says() -> None:
    with (
        moody(*[(SILENCE, b"")] * 6) as (silent, app),
        gateway(silent, timeouts__first_byte_s=0.05) as running,
    ):
        statuses = [ask(f"{running.url}{CHAT}", chat(f"task {n}"))[0] for n in range(7)]
        assert statuses == [504] * 6 + [200]
        assert app.asked == 7


# ---- with errors


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_error_that_may_pass_is_tried_again(status: int) -> None:
    with moody((status, b"{}"), (status, b"{}")) as (url, app), gateway(url) as running:
        assert ask(f"{running.url}{CHAT}", chat("hello"))[0] == 200
        assert app.asked == 3
        assert running.outcomes()["finished"] == 1


def test_an_error_that_stays_is_passed_on_as_it_is() -> None:
    error = b'{"odd":  "error of the engine"}\n'
    with moody(ever=(500, error)) as (url, app), gateway(url) as running:
        status, data, headers = asyncio.run(live.fetch(f"{running.url}{CHAT}", chat("hello")))
        assert (status, data, headers["Content-Type"]) == (500, error, "application/json")
        assert app.asked == 3, "once and two further times"
        assert running.outcomes()["failed"] == 1


def test_every_further_try_costs_the_budget_one() -> None:
    """It holds 10 at first, and earns a fifth with every request."""
    with moody(ever=(500, b"{}")) as (url, app), gateway(url) as running:
        for number in range(20):
            assert ask(f"{running.url}{CHAT}", chat(f"task {number}"))[0] == 500
        assert app.asked in (33, 34), "20 requests, and 10 + 20 / 5 further tries at most"


@pytest.mark.parametrize("status", [400, 404, 422])
def test_what_is_wrong_with_the_request_is_passed_on_and_not_the_engines_fault(
    status: int,
) -> None:
    error = b'{"error": {"message": "too long",   "code": 400}}'
    with moody(*[(status, error)] * 10) as (url, app), gateway(url) as running:
        for number in range(10):
            got = asyncio.run(live.fetch(f"{running.url}{CHAT}", chat(f"task {number}")))
            assert got[:2] == (status, error)
        assert app.asked == 10, "never tried again"
        assert engines_of(running)[name_of(url)]["breaker"] == "closed"
        assert ask(f"{running.url}{CHAT}", chat("hello"))[0] == 200


@pytest.mark.parametrize("status", [200, 400])
def test_half_an_answer_is_never_a_whole_one_and_never_followed_by_another(status: int) -> None:
    with moody((status, b'{"id": "x", ...')) as (url, app), gateway(url) as running:
        with pytest.raises(aiohttp.ClientError):
            asyncio.run(live.fetch(f"{running.url}{CHAT}", chat("hello")))
        assert app.asked == 1
        assert running.check_nothing_is_lost()["failed"] == 1


def test_a_stream_that_was_kept_alive_ends_with_the_error() -> None:
    """Its status was sent long before."""
    with (
        moody(*[(SILENCE, b"")] * 9) as (url, _),
        gateway(url, timeouts__first_byte_s=0.3, server__keepalive_s=0.05) as running,
    ):
        seen = asyncio.run(stream(running.url, chat("hello", stream=True)))
        assert seen.text.startswith(b": keepalive\n\n")
        assert seen.told
        assert not seen.cut


# ---- workflows that end meanwhile


def test_finishing_a_workflow_ends_its_streams() -> None:
    with cabled(speed=1.0) as (way, app), gateway(way.url) as running:
        names: dict[str, Any] = {wire.WORKFLOW_HEADER: "w", wire.SESSION_HEADER: "s"}

        def finish(_: str) -> None:
            assert ask(f"{running.url}{wire.CONTROL}/workflows/w", method="DELETE")[0] == 200

        body = long("go", 5_000, stream=True)
        seen = asyncio.run(stream(running.url, body, began=finish, **names))
        assert seen.told
        wait_until(lambda: not app.engine.num_running)
        assert not running.gateway.sessions.sessions


# ---- engines that come


def test_a_request_waits_for_the_first_engine() -> None:
    with live.engine() as (url, _), gateway() as running:
        assert ask(f"{running.url}/readyz")[0] == 503

        async def scenario() -> Streamed:
            asking = asyncio.create_task(stream(running.url, chat("hello", stream=True)))
            await asyncio.to_thread(wait_until, lambda: running.gateway.host.num_held == 1)
            added = await live.fetch(f"{running.url}{ENGINES}", {"url": url})
            assert added[0] == 201
            return await asking

        assert asyncio.run(scenario()).whole
        assert ask(f"{running.url}/readyz")[0] == 200


def test_a_list_of_engines_in_a_file_is_followed(tmp_path: Path) -> None:
    listed = tmp_path / "engines.txt"
    listed.write_text("# none yet\n")
    with (
        live.engine() as (first, _),
        live.engine() as (second, _),
        gateway(engines__file=str(listed)) as running,
    ):
        listed.write_text(f"{first}\n")
        wait_until(lambda: ask(f"{running.url}/readyz")[0] == 200)
        assert ask(f"{running.url}{CHAT}", chat("a"))[2][wire.ENGINE_HEADER] == name_of(first)
        listed.write_text(f"{second}\n")
        wait_until(lambda: engines_of(running)[name_of(first)]["state"] == "draining")
        wait_until(lambda: engines_of(running)[name_of(second)]["state"] == "up")
        assert ask(f"{running.url}{CHAT}", chat("b"))[2][wire.ENGINE_HEADER] == name_of(second)


def test_an_engine_that_comes_back_is_used_again() -> None:
    """As a process that was started again at the same address."""
    with cabled() as (way, _), gateway(way.url) as running:
        way.cut()
        wait_until(lambda: ask(f"{running.url}/readyz")[0] == 503)
        way.mend()
        wait_until(lambda: ask(f"{running.url}/readyz")[0] == 200)
        assert ask(f"{running.url}{CHAT}", chat("hello"))[0] == 200
