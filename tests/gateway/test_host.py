"""The live host: same events, same actions as anybody else who drives the scheduler (law 13)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from tests.sim.factory import plan_of, play, random_arrivals, random_scripts, small_cluster

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.model import RequestState
from saga.gateway.host import Host, LiveRequest, Refused

SECOND = 1_000_000


@dataclass
class HandClock:
    """Stands still until it is moved."""

    now: int = 0

    def now_us(self) -> int:
        return self.now


@dataclass
class Asked:
    """An ``EngineControl`` that can or cannot, and remembers what it was asked."""

    able: bool = True
    asks: list[tuple[Any, ...]] = field(default_factory=list)

    def _note(self, *what: Any) -> bool:
        self.asks.append(what)
        return self.able

    def retain(self, engine: str, session: str, ttl_s: float, score: float) -> bool:
        return self._note("retain", engine, session, ttl_s, score)

    def release(self, engine: str, session: str) -> bool:
        return self._note("release", engine, session)

    def preempt(self, engine: str, request: str) -> bool:
        return self._note("preempt", engine, request)

    def offload(self, engine: str, session: str) -> bool:
        return self._note("offload", engine, session)

    def prefetch(self, engine: str, session: str) -> bool:
        return self._note("prefetch", engine, session)

    def move(self, session: str, source: str, target: str) -> bool:
        return self._note("move", session, source, target)


@dataclass
class Scene:
    """A host with engines, on a clock that the test moves."""

    preset: str = "saga"
    engines: int = 1
    max_num_seqs: int = 8
    able: bool = True

    def __post_init__(self) -> None:
        self.clock, self.control = HandClock(), Asked(self.able)
        self.log: list[tuple[ev.Event, list[act.Action]]] = []
        self.host = Host(
            load_preset(self.preset).policies,
            self.clock,
            self.control,
            observe=lambda event, actions: self.log.append((event, actions)),
            check=True,
        )
        for number in range(self.engines):
            self.host.tell(
                ev.EngineUp(
                    at=0,
                    engine=f"e{number}",
                    kv_capacity_tokens=100_000,
                    max_num_seqs=self.max_num_seqs,
                )
            )

    def open(self, name: str, tenant: str = "t") -> None:
        now = self.host.now
        self.host.tell(ev.WorkflowSubmitted(at=now, workflow=name, tenant=tenant))
        self.host.tell(ev.SessionOpened(at=now, session=name, workflow=name))

    def ask(self, session: str, number: int = 1, tokens: int = 1_000) -> LiveRequest:
        return self.host.arrive(f"{session}#{number}", session, tokens)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


# ---- parity


@pytest.mark.parametrize("preset", ["saga_paper", "saga", "vllm_apc_affinity"])
def test_the_same_events_give_the_same_actions_as_in_the_simulator(preset: str) -> None:
    """A run of the simulator, told again to the live host: every action is the same."""
    plan = plan_of(random_scripts(5, 40), random_arrivals(5, 40, 2.0))
    played = play(preset, plan, small_cluster(2, 6_000, max_num_seqs=8))
    kinds = {type(action) for _, actions in played.log for action in actions}
    assert {act.Dispatch} < kinds or preset == "vllm_apc_affinity"

    async def drive() -> list[tuple[act.Action, ...]]:
        clock, seen = HandClock(), list[tuple[act.Action, ...]]()
        host = Host(
            load_preset(preset).policies,
            clock,
            Asked(),
            observe=lambda _, actions: seen.append(tuple(actions)),
        )
        for event, _ in played.log:
            clock.now = event.at
            match event:  # what coroutines do, as coroutines do it
                case ev.RequestArrived():
                    host.arrive(event.request, event.session, event.prompt_tokens)
                case ev.RequestStarted() if not host.requests[event.request].started:
                    host.start(host.requests[event.request], event.cached_tokens)
                case ev.RequestFirstToken():
                    host.first_token(host.requests[event.request])
                case ev.RequestFinished():
                    live = host.requests[event.request]
                    host.finish(live, event.output_tokens, event.cached_tokens, event.tool)
                case ev.RequestFailed():
                    host.fail(host.requests[event.request], event.reason)
                case _:  # also what an engine resumes, which nobody sees from outside
                    host.tell(event)
        host.close()
        return seen

    told = asyncio.run(drive())
    assert told == [actions for _, actions in played.log]


# ---- requests


@in_loop
async def test_a_request_is_placed_started_and_finished() -> None:
    scene = Scene()
    scene.open("s")
    live = scene.ask("s")
    dispatch = await live.placed
    assert (dispatch.request, dispatch.engine, live.engine) == ("s#1", "e0", "e0")
    assert scene.host.num_held == 0
    scene.host.start(live, 0)
    scene.host.start(live, 0)
    assert sum(isinstance(event, ev.RequestStarted) for event, _ in scene.log) == 1
    scene.clock.now = SECOND
    scene.host.finish(live, 100, 0, "shell")
    state = scene.host.scheduler.state
    assert state.num_ended[RequestState.FINISHED] == 1
    assert (scene.host.requests, scene.host.num_held) == ({}, 0)


@in_loop
async def test_who_waits_is_placed_when_there_is_room() -> None:
    scene = Scene("saga+admission=null", max_num_seqs=1)
    for name in ("a", "b"):
        scene.open(name)
    first, second = scene.ask("a"), scene.ask("b")
    await first.placed
    scene.host.start(first, 0)
    assert not second.placed.done()
    assert scene.host.num_held == 1
    scene.host.finish(first, 10, 0, None)
    assert (await second.placed).engine == "e0"
    assert scene.host.num_held == 0


@in_loop
async def test_what_can_never_fit_is_refused_with_the_reason() -> None:
    scene = Scene()
    scene.open("s")
    live = scene.ask("s", tokens=1_000_000)
    with pytest.raises(Refused, match="does not fit the KV capacity of 100000") as caught:
        await live.placed
    assert caught.value.retry_after_us is None
    assert scene.host.requests == {}


@in_loop
async def test_cancelling_frees_the_place_and_may_be_said_twice() -> None:
    scene = Scene("saga+admission=null", max_num_seqs=1)
    for name in ("a", "b", "c"):
        scene.open(name)
    first, second, third = scene.ask("a"), scene.ask("b"), scene.ask("c")
    scene.host.cancel(second)  # while it waits
    scene.host.cancel(second)
    scene.host.cancel(first)
    assert (await third.placed).engine == "e0"
    state = scene.host.scheduler.state
    assert state.num_ended[RequestState.CANCELLED] == 2


@in_loop
async def test_a_failed_attempt_waits_for_a_place_again() -> None:
    scene = Scene()
    scene.open("s")
    live = scene.ask("s")
    before = await live.placed
    scene.host.send_again(live, "connection refused")
    assert (await live.placed) == before
    assert live.placed.result() is not before
    scene.host.fail(live, "connection refused")
    assert scene.host.scheduler.state.num_ended[RequestState.FAILED] == 1


# ---- engines


@in_loop
async def test_a_lost_engine_ends_answers_and_places_the_others_again() -> None:
    scene = Scene(engines=2)
    for name in ("begun", "not-begun"):
        scene.open(name)
    begun, not_begun = scene.ask("begun"), scene.ask("not-begun")
    interrupts: list[str] = []
    for live in (begun, not_begun):
        live.interrupt = interrupts.append
    begun.streaming = True
    lost, other = begun.engine, not_begun.engine
    assert lost != other
    scene.host.engine_down(str(other))
    assert not_begun.engine == lost, "placed anew"
    scene.host.engine_down(str(lost))
    assert not_begun.engine is None
    assert scene.host.num_held == 1
    assert "begun#1" not in scene.host.requests
    assert len(interrupts) == 3
    scene.host.tell(
        ev.EngineUp(at=scene.host.now, engine="new", kv_capacity_tokens=100_000, max_num_seqs=8)
    )
    assert (await not_begun.placed).engine == "new"


@pytest.mark.parametrize("able", [True, False])
def test_what_is_asked_of_engines_is_counted(able: bool) -> None:
    async def scenario() -> None:
        scene = Scene(able=able)
        scene.host.tell(ev.WorkflowSubmitted(at=0, workflow="s", tenant="t", mean_steps=10))
        scene.host.tell(ev.SessionOpened(at=0, session="s", workflow="s"))
        live = scene.ask("s")
        scene.host.finish(live, 100, 0, "shell")
        retains = [ask for ask in scene.control.asks if ask[0] == "retain"]
        assert [(ask[1], ask[2], ask[3]) for ask in retains] == [("e0", "s", 300.0)]
        counts = scene.host.counts
        assert (counts.done if able else counts.unsupported)["Retain"] == 1
        assert (counts.unsupported if able else counts.done)["Retain"] == 0

    asyncio.run(scenario())


@in_loop
async def test_a_closed_session_turns_its_waiting_requests_away() -> None:
    scene = Scene("saga+admission=null", max_num_seqs=1)
    for name in ("a", "b"):
        scene.open(name)
    running, waiting = scene.ask("a"), scene.ask("b")
    reasons: list[str] = []
    running.interrupt = reasons.append
    for name in ("b", "a"):
        scene.host.tell(ev.WorkflowDone(at=scene.host.now, workflow=name))
        scene.host.end_session(name, "over")
    with pytest.raises(Refused, match="over"):
        await waiting.placed
    assert reasons == ["its session was closed"]
    assert scene.host.requests == {}


# ---- ticks


@in_loop
async def test_ticks_come_when_the_scheduler_asks() -> None:
    """In real time here: a steal needs an epoch to pass."""
    scene = Scene("saga+routing=session_affinity+admission=null", max_num_seqs=1)
    started = asyncio.get_running_loop().time()
    scene.open("s")
    live = scene.ask("s")
    scene.host.start(live, 0)
    scene.host.finish(live, 10, 0, "shell")
    scene.open("long")
    scene.host.start(scene.ask("long"), 0)
    waiting = scene.ask("s", 2)
    scene.host.tell(ev.EngineUp(at=0, engine="e1", kv_capacity_tokens=100_000, max_num_seqs=1))

    def pass_time() -> None:
        scene.clock.now = int((asyncio.get_running_loop().time() - started) * 1e6)
        if waiting.engine is None:
            asyncio.get_running_loop().call_later(0.01, pass_time)

    pass_time()
    dispatch = await asyncio.wait_for(waiting.placed, 5)
    assert dispatch.engine == "e1"
    assert ("move", "s", "e0", "e1") in scene.control.asks
    scene.host.close()


@in_loop
async def test_time_never_goes_back_for_the_scheduler() -> None:
    scene = Scene()
    scene.clock.now = 5 * SECOND
    scene.open("s")
    scene.clock.now = 3 * SECOND
    scene.ask("s")
    times = [event.at for event, _ in scene.log]
    assert times == sorted(times)


def test_random_lives_leave_nothing_behind() -> None:
    """Requests that finish, fail, are cancelled or sent again, in any order, with engines that come
    and go: at the end nothing is left, and every request ended once."""

    async def scenario(seed: int) -> None:
        random = Random(seed)
        scene = Scene("saga+admission=null", engines=2, max_num_seqs=2)
        live: list[LiveRequest] = []
        for number in range(60):
            scene.clock.now += random.randrange(200_000)
            name = f"s{number}"
            scene.open(name, tenant=random.choice("ab"))
            live.append(scene.ask(name))
            if number % 20 == 10:
                scene.host.engine_down("e0")
            if number % 20 == 15:
                scene.host.tell(
                    ev.EngineUp(
                        at=scene.host.now, engine="e0", kv_capacity_tokens=9_000, max_num_seqs=2
                    )
                )
            one = random.choice(live)
            if one.engine is not None and one.id in scene.host.requests:
                deed = random.choice(("start", "finish", "fail", "cancel", "again"))
                match deed:
                    case "start":
                        scene.host.start(one, 0)
                    case "finish":
                        scene.host.finish(one, 5, None, None)
                    case "fail":
                        scene.host.fail(one, "broken")
                    case "cancel":
                        scene.host.cancel(one)
                    case "again":
                        scene.host.send_again(one, "refused")
        for one in live:
            scene.host.cancel(one)
        state = scene.host.scheduler.state
        assert sum(state.num_ended.values()) == state.num_arrived == 60
        assert (scene.host.requests, scene.host.num_held) == ({}, 0)
        scene.host.close()

    for seed in range(10):
        asyncio.run(scenario(seed))
