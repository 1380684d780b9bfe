"""Engines' KV events over real sockets: followed, lost, found again, and never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.kv import CLEARED, SIZE, Engine, engine, message, removed, stored
from tests.gateway.servers import ManualClock

from saga.gateway.kv_events import WORK_PER_LOOK, KvEvents, reachable
from saga.gateway.kv_feed import KvNews

E = "engine-1"


class Scene:
    """Engines that publish, and who follows them."""

    def __init__(self, stack: ExitStack, silence_s: float) -> None:
        self.clock = ManualClock()
        self.news: list[tuple[str, KvNews]] = []
        self.events = KvEvents(lambda name: f"t/{name}", self.tell, self.clock, silence_s=silence_s)
        self.stack = stack

    def tell(self, name: str, news: KvNews) -> None:
        self.news.append((name, news))
        if any(held.session == "t/bad" for held in news.held):
            raise RuntimeError("a listener's fault")

    async def follow(self, *engines: Engine, name: str = E) -> None:
        self.events.follow(name, [one.endpoint for one in engines])
        for one in engines:
            await until(one.subscribed)

    async def engine(self, name: str = E) -> Engine:
        one = self.stack.enter_context(engine())
        await self.follow(one, name=name)
        return one

    async def heard(self, count: str, number: int, name: str = E) -> None:
        await until(lambda: self.events.counts(name)[count] == number)

    def left(self, name: str = E) -> dict[str, int]:
        """By session, as was told last."""
        return {h.session: h.tokens for who, news in self.news for h in news.held if who == name}


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def play(act: Callable[[Scene], Awaitable[None]], silence_s: float = 60.0) -> None:
    async def run() -> None:
        with ExitStack() as stack:
            scene = Scene(stack, silence_s)
            try:
                await act(scene)
            finally:
                await scene.events.stop()

    asyncio.run(run())


# ---- following


def test_evictions_are_told() -> None:
    async def act(scene: Scene) -> None:
        one = await scene.engine()
        one.say(stored([1, 2, 3], session_id="s"))
        one.say(removed([3]))
        await until(lambda: scene.left() == {"t/s": 2 * SIZE})
        one.say(CLEARED)
        await until(lambda: scene.news[-1] == (E, KvNews(True, [])))

    play(act)


def test_each_engine_has_its_own_blocks() -> None:
    async def act(scene: Scene) -> None:
        one, other = await scene.engine(), await scene.engine("engine-2")
        one.say(stored([1, 2], session_id="s"))
        other.say(stored([1, 2], session_id="s"))
        other.say(removed([1, 2]))
        await until(lambda: scene.left("engine-2") == {"t/s": 0})
        await scene.heard("stored", 2)
        assert scene.left() == {"t/s": 2 * SIZE}

    play(act)


def test_among_the_ranks_of_an_engine_a_session_is_where_it_was_served_last() -> None:
    async def act(scene: Scene) -> None:
        ranks = [scene.stack.enter_context(engine()) for _ in range(2)]
        await scene.follow(*ranks)
        ranks[0].say(stored([1, 2, 3], session_id="s"), stored([7], session_id="r"))
        await scene.heard("stored", 4)
        ranks[1].say(stored([1, 2], session_id="s"))
        await until(lambda: scene.left() == {"t/s": 2 * SIZE, "t/r": SIZE})
        ranks[0].say(removed([3, 2, 1]), removed([7]))
        await until(lambda: scene.left()["t/r"] == 0)
        assert scene.left()["t/s"] == 2 * SIZE

    play(act)


def test_what_is_told_to_operators() -> None:
    async def act(scene: Scene) -> None:
        assert (scene.events.told(E), scene.events.counts(E)) == (None, {})
        one = await scene.engine()
        told = scene.events.told(E)
        assert told is not None
        assert (told["flowing"], told["age_s"]) == (False, None)
        one.say(stored([1, 2], session_id="s"), removed([2]))
        one.send([b"no message"])
        await scene.heard("malformed", 1)
        await until(lambda: bool(scene.news))
        scene.clock.now += 2_500_000
        assert scene.events.told(E) == {
            "flowing": True,
            "age_s": 2.5,
            "blocks": 1,
            "counts": dict.fromkeys(("gaps", "restarts", "forgotten"), 0)
            | {"stored": 2, "removed": 1, "messages": 1, "malformed": 1},
        }
        scene.events.leave(E)
        scene.events.leave(E)
        assert (scene.events.told(E), scene.events.counts(E)) == (None, {})

    play(act)


def test_an_engine_without_endpoints_is_not_followed() -> None:
    async def act(scene: Scene) -> None:
        scene.events.follow(E, [])
        assert scene.events.told(E) is None

    play(act)


def test_following_anew_begins_with_nothing() -> None:
    async def act(scene: Scene) -> None:
        one = await scene.engine()
        one.say(stored([1, 2], session_id="s"))
        await until(lambda: scene.left() == {"t/s": 2 * SIZE})
        scene.news.clear()
        scene.events.follow(E, [one.endpoint])
        await until(one.subscribed)
        one.say(removed([2]), stored([5], session_id="r"))
        await until(lambda: scene.left() == {"t/r": SIZE})

    play(act)


def test_a_listeners_fault_does_not_end_it() -> None:
    async def act(scene: Scene) -> None:
        one = await scene.engine()
        one.say(stored([1], session_id="bad"))
        await until(lambda: len(scene.news) == 1)
        one.say(stored([2], session_id="s"))
        await until(lambda: scene.left() == {"t/bad": SIZE, "t/s": SIZE})

    play(act)


# ---- losses


def test_an_engine_that_comes_back_has_nothing() -> None:
    """On the same port, as it does when its process is started again."""

    async def act(scene: Scene) -> None:
        first = await scene.engine()
        first.say(stored([1, 2], session_id="s"))
        first.say()
        await scene.heard("messages", 2)
        first.close()
        second = scene.stack.enter_context(engine(first.endpoint))
        await until(second.subscribed)
        second.say(stored([1], session_id="r"))
        await until(lambda: scene.news[-1][1].cleared)
        assert scene.left() == {"t/s": 2 * SIZE, "t/r": SIZE}
        assert scene.events.counts(E)["restarts"] == 1

    play(act)


def test_what_was_missed_is_not_made_up() -> None:
    async def act(scene: Scene) -> None:
        one = await scene.engine()
        one.say(stored([1, 2], session_id="s"))
        await until(lambda: scene.left() == {"t/s": 2 * SIZE})
        one.number += 3
        one.say(removed([2]))
        await scene.heard("gaps", 1)
        assert scene.left() == {"t/s": 2 * SIZE}

    play(act)


def test_a_message_that_is_too_long_is_not_taken_in() -> None:
    async def act(scene: Scene) -> None:
        one = await scene.engine()
        one.send([b"", bytes(8), bytes(5 << 20)])
        await until(one.subscribed)  # ZeroMQ has hung up for good, and was asked again
        one.say(stored([1], session_id="s"))
        await until(lambda: scene.left() == {"t/s": SIZE})
        assert scene.events.counts(E)["messages"] == 1

    play(act, silence_s=0.5)


# ---- a flood


def test_a_flood_leaves_time_for_others() -> None:
    """Of messages, of events in a message, and of nonsense: between two turns of the loop there is
    no more than a look's work, and the event that exceeds it."""
    many = [stored([number], session_id=f"s{number}") for number in range(2 * WORK_PER_LOOK)]

    async def act(scene: Scene) -> None:
        one = await scene.engine()
        most, last = 0, 0
        one.send(message(0, *many))
        for number in range(1, 400):
            one.send(message(number, stored(list(range(100)), session_id="s")))
            one.send([b"nonsense"])
        async with asyncio.timeout(20):
            while scene.events.counts(E)["messages"] < 400:
                await asyncio.sleep(0)
                now = scene.events.counts(E)["stored"]
                most, last = max(most, now - last), now
        assert scene.events.counts(E)["gaps"] == 0
        assert 0 < most <= WORK_PER_LOOK + 100

    play(act)


# ---- where to


@pytest.mark.parametrize(
    ("endpoint", "url", "place"),
    [
        ("tcp://*:5557", "http://10.0.0.1:8000", "tcp://10.0.0.1:5557"),
        ("tcp://0.0.0.0:5557", "http://node-1:8000/pool", "tcp://node-1:5557"),
        ("tcp://[::]:5557", "http://node-1:8000", "tcp://node-1:5557"),
        ("tcp://:::5557", "http://node-1:8000", "tcp://node-1:5557"),
        ("tcp://*:5557", "http://[fd00::1]:8000", "tcp://[fd00::1]:5557"),
        ("tcp://NODE-1:5557", "http://node-1:8000", "tcp://node-1:5557"),
        ("tcp://192.168.1.7:5557", "http://node-1:8000", "tcp://node-1:5557"),
        ("tcp://broker:5557", "http://node-1:8000", None),
        ("tcp://node-1.evil.example:5557", "http://node-1:8000", None),
        ("ipc:///tmp/kv", "http://node-1:8000", None),
        ("inproc://cache", "http://node-1:8000", None),
        ("tcp://*:0", "http://node-1:8000", None),
        ("tcp://*:65536", "http://node-1:8000", None),
        ("tcp://*", "http://node-1:8000", None),
        ("tcp://*:80;tcp://x:1", "http://node-1:8000", None),
        ("", "http://node-1:8000", None),
    ],
)
def test_only_a_port_of_the_engines_own_host_is_used(
    endpoint: str, url: str, place: str | None
) -> None:
    assert reachable(endpoint, url) == place


@given(st.text() | st.from_regex(r"tcp://.*:[0-9]+"))
def test_no_endpoint_leads_elsewhere(endpoint: str) -> None:
    place = reachable(endpoint, "http://10.1.2.3:8000")
    assert place is None or place.startswith("tcp://10.1.2.3:")
