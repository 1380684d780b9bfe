"""What engines say of sessions' KV, and what becomes of it: in the scheduler, and in names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.gateway.servers import ManualClock

from saga.config import load_preset
from saga.core import events as ev
from saga.gateway.host import Host, LiveRequest
from saga.gateway.kv_blocks import Held
from saga.gateway.kv_feed import KvNews
from saga.gateway.residency import tell

PROMPT, OUTPUT = 900, 100


class NoControl:
    """Engines that can only be sent requests."""

    def retain(self, engine: str, session: str, ttl_s: float, score: float) -> bool:
        return False

    def release(self, engine: str, session: str) -> bool:
        return False

    def preempt(self, engine: str, request: str) -> bool:
        return False

    def offload(self, engine: str, session: str) -> bool:
        return False

    def prefetch(self, engine: str, session: str) -> bool:
        return False

    def move(self, session: str, source: str, target: str) -> bool:
        return False


class Scene:
    """A scheduler with two engines, and sessions that have had a step."""

    def __init__(self) -> None:
        self.told: list[ev.Event] = []
        self.host = Host(
            load_preset("saga").policies,
            ManualClock(),
            NoControl(),
            observe=lambda event, actions: self.told.append(event),
            check=True,
        )
        for name in ("one", "other"):
            self.host.tell(ev.EngineUp(at=self.host.now, engine=name, kv_capacity_tokens=100_000))

    async def step(self, session: str, engine: str = "one") -> None:
        live = await self.begin(session, engine)
        self.host.finish(live, OUTPUT, 0, None)

    async def begin(self, session: str, engine: str = "one") -> LiveRequest:
        host = self.host
        if session not in host.scheduler.state.sessions:
            now, tenant = host.now, session.partition("/")[0]
            host.tell(ev.WorkflowSubmitted(at=now, workflow=session, tenant=tenant))
            host.tell(ev.SessionOpened(at=now, session=session, workflow=session))
        live = host.arrive(f"{session} {len(self.told)}", session, PROMPT, OUTPUT, engine=engine)
        await live.placed
        host.start(live, 0)
        return live

    def hear(self, *held: Held, cleared: bool = False, engine: str = "one") -> list[ev.Event]:
        """The events that followed."""
        self.told.clear()
        tell(self.host, engine, KvNews(cleared, held))
        return list(self.told)

    def resident(self, session: str) -> int:
        return self.host.scheduler.state.sessions[session].resident_tokens


def play(act: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene()
        try:
            await act(scene)
        finally:
            scene.host.close()

    asyncio.run(run())


# ---- what the scheduler believes


def test_a_loss_is_believed() -> None:
    async def act(scene: Scene) -> None:
        await scene.step("t/s")
        assert scene.resident("t/s") == PROMPT + OUTPUT
        (event,) = scene.hear(Held("t/s", 320, True))
        assert event == ev.BlocksRemoved(at=event.at, engine="one", session="t/s", num_tokens=320)
        assert scene.resident("t/s") == 320
        assert scene.hear(Held("t/s", 320, True), Held("t/s", 640, True)) == []

    play(act)


def test_whole_blocks_of_a_step_are_no_loss() -> None:
    async def act(scene: Scene) -> None:
        await scene.step("t/s")
        assert scene.hear(Held("t/s", 992, False)) == []
        assert scene.hear(Held("t/s", 5_000, False)) == []

    play(act)


def test_what_is_made_again_is_there_again() -> None:
    async def act(scene: Scene) -> None:
        await scene.step("t/s")
        scene.hear(Held("t/s", 0, True))
        (event,) = scene.hear(Held("t/s", 992, False))
        assert isinstance(event, ev.BlocksStored)
        assert scene.resident("t/s") == 992
        scene.hear(Held("t/s", 1 << 40, False))
        assert scene.resident("t/s") == PROMPT + OUTPUT

    play(act)


def test_only_its_home_tells_of_a_session() -> None:
    async def act(scene: Scene) -> None:
        await scene.step("t/s")
        nothing = (Held("t/s", 0, True), Held("t/unknown", 0, True))
        assert scene.hear(*nothing, engine="other", cleared=True) == []
        assert scene.hear(*nothing, engine="gone", cleared=True) == []
        assert scene.resident("t/s") == PROMPT + OUTPUT

    play(act)


def test_while_a_request_runs_its_end_tells() -> None:
    async def act(scene: Scene) -> None:
        await scene.step("t/s")
        live = await scene.begin("t/s")
        assert scene.hear(Held("t/s", 0, True), cleared=True) == []
        scene.host.finish(live, OUTPUT, 0, None)
        assert scene.resident("t/s") == PROMPT + OUTPUT

    play(act)


def test_an_engine_that_started_anew_has_nothing_of_anybody() -> None:
    async def act(scene: Scene) -> None:
        for name in ("t/a", "t/b", "u/c"):
            await scene.step(name)
        await scene.step("t/elsewhere", "other")
        scene.hear(Held("t/b", 992, False), cleared=True)
        sessions = scene.host.scheduler.state.sessions
        left = {name: session.resident_tokens for name, session in sessions.items()}
        assert left == {"t/a": 0, "t/b": 992, "u/c": 0, "t/elsewhere": PROMPT + OUTPUT}
        assert [len(scene.hear(cleared=True)) for _ in range(2)] == [1, 0]

    play(act)
