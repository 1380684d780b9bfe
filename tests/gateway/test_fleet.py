"""Engines that come, fail, drain and return; the one that is left; what the listener hears."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway import kv
from tests.gateway.servers import ManualClock, refusing, serve

from saga.gateway.breaker import BreakerLimits
from saga.gateway.discovery import DiscoveryError, StaticSource
from saga.gateway.fleet import Fleet, FleetLimits, LiveEngine
from saga.gateway.kv_events import KvEvents
from saga.gateway.scrape import LoadSample
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

SECOND = 1_000_000
LIMITS = FleetLimits(
    scrape_s=0.02,
    timeouts=Timeouts(connect_s=5.0, first_byte_s=5.0, chunk_s=5.0, total_s=5.0),
    breaker=BreakerLimits(failures=3, cooldown_s=5.0),
)


class Listener:
    """Writes down what it hears, and insists on the order that is promised."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.told: dict[str, str] = {}
        self.reports: list[tuple[str, LoadSample]] = []

    def engine_up(self, engine: LiveEngine) -> None:
        assert engine.info is not None
        assert self.told.get(engine.name) != "up"
        self._hear("up", engine.name)

    def engine_draining(self, name: str) -> None:
        assert self.told[name] == "up"
        self._hear("draining", name)

    def engine_down(self, name: str) -> None:
        assert name in self.told
        self._hear("down", name)
        del self.told[name]

    def engine_report(self, name: str, sample: LoadSample) -> None:
        assert name in self.told
        self.reports.append((name, sample))

    def _hear(self, what: str, name: str) -> None:
        self.told[name] = what
        self.heard.append(what)


class Engine:
    """A server whose health the test sets."""

    def __init__(self) -> None:
        self.status = 200
        self.page = b"vllm:num_requests_running 1\n"
        self.delay_s = 0.0
        self.kv_events = ""
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.delay_s)
        if self.status != 200:
            return web.Response(status=self.status)
        if request.path == "/metrics":
            return web.Response(body=self.page)
        if request.path == "/kv_event_sources":
            return web.json_response({"0": {"endpoint": self.kv_events}})
        return web.json_response({"data": [{"id": "m", "owned_by": "vllm"}]})


class Scene:
    """A fleet that looks only when told to, beside the engines it looks at."""

    def __init__(self, upstream: Upstream, engines: list[Engine], limits: FleetLimits) -> None:
        self.engines = engines
        self.clock = ManualClock()
        self.listener = Listener()
        self.fleet = Fleet(
            upstream, self.listener, clock=self.clock, rng=Random(1), limits=limits, api_key="key"
        )
        self.names = [self.fleet.add(engine.url) for engine in engines]

    @property
    def heard(self) -> list[str]:
        return self.listener.heard

    async def check(self, *names: str, times: int = 1) -> None:
        for name in (names or tuple(self.names)) * times:
            await self.fleet.check(name)

    def fail(self, name: str, times: int = 3) -> None:
        for _ in range(times):
            self.fleet.note_failure(name, 500)

    def usable(self) -> list[bool]:
        return [self.fleet.usable(name) for name in self.names]


def play(act: Callable[[Scene], Awaitable[None]], count: int = 1, up: bool = True) -> None:
    """Runs a scene with ``count`` engines, which are up at first unless told otherwise."""

    async def run() -> None:
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(Upstream())
            engines = [Engine() for _ in range(count)]
            for engine in engines:
                engine.url = await stack.enter_async_context(serve(engine.answer))
            scene = Scene(upstream, engines, LIMITS)
            if up:
                await scene.check()
                assert scene.heard == ["up"] * count
                scene.heard.clear()
            await act(scene)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


# ---- coming and going


def test_an_engine_is_up_when_a_probe_succeeds() -> None:
    async def act(scene: Scene) -> None:
        (name,) = scene.names
        live = scene.fleet.engines[name]
        assert (live.state, scene.usable()) == ("probing", [False])
        scene.engines[0].status = 500
        await scene.check(times=5)
        assert (live.state, scene.heard) == ("probing", [])
        assert live.error is not None
        scene.engines[0].status = 200
        await scene.check()
        assert (live.state, scene.usable(), scene.heard) == ("up", [True], ["up"])
        assert live.info is not None
        assert live.info.models == ("m",)

    play(act, up=False)


def test_names_are_short_and_unique_and_stay() -> None:
    async def act(scene: Scene) -> None:
        fleet, url = scene.fleet, scene.engines[0].url
        place = url.removeprefix("http://")
        assert scene.names == [place]
        assert fleet.add(url + "/") == place
        assert fleet.add(url + "/pool") == f"{place}-2"
        assert fleet.add("http://A") == "a:80"
        fleet.remove(place)
        assert fleet.add(url) == place
        assert list(fleet.engines) == [f"{place}-2", "a:80", place]
        with pytest.raises(DiscoveryError):
            fleet.add("nonsense")

    play(act)


def test_scrapes_are_reported_with_the_time_of_asking() -> None:
    async def act(scene: Scene) -> None:
        scene.clock.now = 7
        await scene.check()
        scene.engines[0].page = b"garbage \x00\xff"
        await scene.check()
        ((name, sample),) = scene.listener.reports
        assert (name, sample.at_us, sample.running) == (scene.names[0], 7, 1)
        assert scene.usable() == [True]  # a page that says nothing is no failure

    play(act)


def test_an_engine_is_down_after_three_failed_checks_and_returns() -> None:
    async def act(scene: Scene) -> None:
        scene.engines[0].status = 500
        await scene.check(times=2)
        assert (scene.heard, scene.usable()) == ([], [True])
        await scene.check()
        assert (scene.heard, scene.usable()) == (["down"], [False])
        await scene.check()
        scene.engines[0].status = 200
        await scene.check()
        assert (scene.heard, scene.usable()) == (["down", "up"], [True])
        assert scene.fleet.engines[scene.names[0]].error is None

    play(act)


@pytest.mark.parametrize("sign", ["success", "answer 400", "check"])
def test_a_sign_of_life_between_checks_keeps_it_up(sign: str) -> None:
    async def act(scene: Scene) -> None:
        engine, (name,) = scene.engines[0], scene.names
        for _ in range(3):
            engine.status = 500
            await scene.check(times=2)
            match sign:
                case "success":
                    scene.fleet.note_success(name)
                case "answer 400":
                    scene.fleet.note_failure(name, 400)
                case _:
                    engine.status = 200
                    await scene.check()
        assert scene.heard == []

    play(act)


def test_what_happens_during_a_check_counts_more_than_its_result() -> None:
    async def act(scene: Scene) -> None:
        scene.engines[0].delay_s = 0.05
        check = asyncio.create_task(scene.check())
        await asyncio.sleep(0.01)
        scene.fleet.remove(scene.names[0])
        assert scene.heard == ["down"]
        await check
        assert scene.heard == ["down"]
        assert scene.listener.reports == []

    play(act)


# ---- draining


def test_a_draining_engine_gets_nothing_new_and_is_forgotten_when_it_is_gone() -> None:
    async def act(scene: Scene) -> None:
        (name,) = scene.names
        scene.fleet.drain(name)
        assert (scene.heard, scene.usable()) == (["draining"], [False])
        await scene.check()
        assert len(scene.listener.reports) == 1
        scene.fleet.add(scene.engines[0].url)
        assert (scene.heard, scene.usable()) == (["draining", "up"], [True])
        scene.fleet.drain(name)
        scene.engines[0].status = 500
        await scene.check(times=3)
        assert scene.heard == ["draining", "up", "draining", "down"]
        assert scene.fleet.engines == {}

    play(act)


def test_an_engine_that_never_was_up_leaves_unheard() -> None:
    async def act(scene: Scene) -> None:
        scene.fleet.drain(scene.names[0])
        assert (scene.fleet.engines, scene.heard) == ({}, [])

    play(act, up=False)


def test_a_list_is_followed_but_not_against_the_operator() -> None:
    async def act(scene: Scene) -> None:
        fleet, urls = scene.fleet, [engine.url for engine in scene.engines]
        await fleet.follow(StaticSource(urls))
        assert scene.heard == []
        fleet.drain(scene.names[0])
        fleet.sync([urls[0], urls[1], "http://127.0.0.1:1"])
        assert scene.heard == ["draining", "draining"]  # by the operator, and by the list
        assert len(fleet.engines) == 4
        fleet.sync([urls[0], urls[1]])
        assert len(fleet.engines) == 3
        assert scene.usable() == [False, True, False]
        fleet.sync(urls)
        assert scene.usable() == [False, True, True]
        fleet.sync([])
        assert scene.usable() == [False, False, False]

    play(act, count=3)


# ---- breakers


def test_a_failing_engine_is_left_out_tried_once_and_taken_back() -> None:
    async def act(scene: Scene) -> None:
        bad, _ = scene.names
        scene.fail(bad, times=2)
        assert (scene.heard, scene.usable()) == ([], [True, True])
        scene.fail(bad, times=1)
        assert (scene.heard, scene.usable()) == (["draining"], [False, True])
        scene.clock.now += 5 * SECOND
        await scene.check()  # time passes unnoticed between checks
        assert (scene.heard, scene.usable()) == (["draining", "up"], [True, True])
        scene.fleet.note_sent(bad)
        assert (scene.heard[2:], scene.usable()) == (["draining"], [False, True])
        scene.fleet.note_success(bad)
        assert (scene.heard[3:], scene.usable()) == (["up"], [True, True])

    play(act, count=2)


def test_the_last_engine_is_never_left_out() -> None:
    async def act(scene: Scene) -> None:
        one, two = scene.names
        scene.fail(one)
        assert scene.usable() == [False, True]
        scene.fail(two)
        assert scene.usable() == [True, True]  # if all are bad, none is
        assert scene.heard == ["draining", "up"]
        scene.fleet.remove(one)
        assert scene.fleet.usable(two)

    play(act, count=2)


def test_an_engine_that_cannot_be_sent_to_saves_nobody() -> None:
    async def act(scene: Scene) -> None:
        one, two, three = scene.names
        scene.fleet.drain(two)
        scene.fleet.drain(three)
        scene.fail(one)
        assert scene.usable() == [True, False, False]
        scene.fleet.add(scene.engines[1].url)
        assert scene.usable() == [False, True, False]

    play(act, count=3)


@pytest.mark.parametrize(
    ("failure", "counts"),
    [
        (500, True),
        (503, False),
        (429, False),
        (UpstreamError("connect", "", sent=False), True),
        (UpstreamError("first_byte", ""), True),
        (UpstreamError("chunk", ""), True),
        (UpstreamError("broken", ""), True),
        (UpstreamError("total", ""), False),
    ],
)
def test_which_failures_count(failure: UpstreamError | int, counts: bool) -> None:
    async def act(scene: Scene) -> None:
        for _ in range(3):
            scene.fleet.note_failure(scene.names[0], failure)
        assert scene.usable() == [not counts, True]

    play(act, count=2)


def test_a_returned_engine_starts_with_a_closed_breaker() -> None:
    async def act(scene: Scene) -> None:
        bad, _ = scene.names
        scene.fail(bad)
        scene.engines[0].status = 500
        await scene.check(bad, times=3)
        scene.engines[0].status = 200
        await scene.check(bad)
        assert scene.heard == ["draining", "down", "up"]
        assert scene.usable() == [True, True]

    play(act, count=2)


def test_news_of_engines_that_have_gone_are_passed_over() -> None:
    async def act(scene: Scene) -> None:
        (name,) = scene.names
        scene.fleet.remove(name)
        scene.fleet.note_sent(name)
        scene.fleet.note_success(name)
        scene.fleet.note_failure(name, 500)
        assert not scene.fleet.usable(name)
        for method in (scene.fleet.remove, scene.fleet.drain):
            with pytest.raises(KeyError):
                method(name)

    play(act)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "fail",
                "fail",
                "fail",
                "succeed",
                "sent",
                "check",
                "sick",
                "well",
                "wait",
                "drain",
                "add",
                "remove",
            ]
        ),
        st.integers(0, 2),
    ),
    max_size=40,
)


@settings(max_examples=25)
@given(steps=STEPS)
def test_laws_of_any_history(steps: list[tuple[str, int]]) -> None:
    async def act(scene: Scene) -> None:
        fleet = scene.fleet
        for what, number in steps:
            name, engine = scene.names[number], scene.engines[number]
            match what:
                case "fail":
                    scene.fail(name, times=2)
                case "succeed":
                    fleet.note_success(name)
                case "sent":
                    fleet.note_sent(name)
                case "sick" | "well":
                    engine.status = 500 if what == "sick" else 200
                case "wait":
                    scene.clock.now += 3 * SECOND
                case "add":
                    assert fleet.add(engine.url) == name
                case _ if name not in fleet.engines:
                    pass
                case "check":
                    await fleet.check(name)
                case "drain":
                    fleet.drain(name)
                case "remove":
                    fleet.remove(name)
            up = [live.name for live in fleet.engines.values() if live.state == "up"]
            assert bool(up) == any(scene.usable())  # the last one is never refused
            assert {live.name for live in fleet.engines.values() if live.told} == set(
                scene.listener.told
            )
        for name in list(fleet.engines):
            await fleet.check(name)
        for name in fleet.engines:
            assert fleet.usable(name) == (scene.listener.told.get(name) == "up")

    play(act, count=3)


# ---- looking after them by itself


def test_it_looks_after_engines_that_vanish_and_return() -> None:
    async def run() -> None:
        engine, listener = Engine(), Listener()
        async with Upstream() as upstream:
            fleet = Fleet(upstream, listener, clock=ManualClock(), rng=Random(1), limits=LIMITS)
            await fleet.start()  # with no engine at all
            async with serve(engine.answer) as url:
                fleet.add(url)
                await until(lambda: len(listener.reports) >= 2)
            await until(lambda: listener.heard == ["up", "down"])
            async with serve(engine.answer, port=int(url.rsplit(":", 1)[1])):
                await until(lambda: listener.heard == ["up", "down", "up"])
                await fleet.stop()
                before = len(listener.reports)
                await asyncio.sleep(0.06)
                assert len(listener.reports) == before
            assert listener.heard == ["up", "down", "up"]

    asyncio.run(run())


@pytest.mark.parametrize("end", ["it fails", "it is removed", "all stop"])
def test_kv_events_are_followed_until_an_engine_is_gone(end: str) -> None:
    async def run() -> None:
        engine, clock, news = Engine(), ManualClock(), list[str]()
        events = KvEvents(lambda name: name, lambda name, _: news.append(name), clock)
        with kv.engine() as publisher:
            engine.kv_events = publisher.endpoint
            async with Upstream() as upstream, serve(engine.answer) as url:
                fleet = Fleet(
                    upstream,
                    Listener(),
                    clock=clock,
                    rng=Random(1),
                    kv_events=events,
                    limits=LIMITS,
                )
                name = fleet.add(url)
                assert events.told(name) is None
                for _ in range(2):
                    await fleet.check(name)
                    await until(publisher.subscribed)
                    publisher.say(kv.stored([1], session_id="s"))
                    await until(lambda: news == [name])
                    news.clear()
                    match end:
                        case "it fails":
                            engine.status = 500
                            for _ in range(3):
                                await fleet.check(name)
                            engine.status = 200
                        case "it is removed":
                            fleet.remove(name)
                            fleet.add(url)
                        case "all stop":
                            await fleet.stop()
                            break
                    assert events.told(name) is None
                await fleet.stop()
                assert events.told(name) is None

    asyncio.run(run())


def test_a_slow_engine_does_not_keep_others_from_being_looked_at() -> None:
    async def run() -> None:
        slow, quick, listener = Engine(), Engine(), Listener()
        slow.delay_s = 60.0
        async with (
            Upstream() as upstream,
            serve(slow.answer) as first,
            serve(quick.answer) as second,
        ):
            fleet = Fleet(upstream, listener, clock=ManualClock(), rng=Random(1), limits=LIMITS)
            fleet.add(first)
            fleet.add(second)
            with refusing() as third:
                fleet.add(third)
                await fleet.start()
                await until(lambda: len(listener.reports) >= 2)
                await fleet.stop()
        assert listener.heard == ["up"]

    asyncio.run(run())


def test_pauses_are_spread_and_a_faulty_listener_is_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(Listener):
        def engine_report(self, name: str, sample: LoadSample) -> None:
            super().engine_report(name, sample)
            raise RuntimeError("listener")

    async def run() -> None:
        listener = Faulty()
        async with Upstream() as upstream, serve(Engine().answer) as url:
            fleet = Fleet(upstream, listener, clock=ManualClock(), rng=Random(1), limits=LIMITS)
            fleet.add(url)
            await fleet.start()
            await until(lambda: len(listener.reports) >= 3)
            await fleet.stop()

    asyncio.run(run())
    assert "check failed" in caplog.text
