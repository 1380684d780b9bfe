"""Workflows and sessions that are alive: who comes, who goes, and that nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.test_host import Asked, HandClock, in_loop

from saga.config import load_preset
from saga.core import events as ev
from saga.gateway.host import Host, LiveRequest, Refused
from saga.gateway.identity import Identity
from saga.gateway.sessions import LiveSession, Sessions, scoped

SECOND = 1_000_000


@dataclass
class Step:
    """One request of a session, under way."""

    session: LiveSession
    live: LiveRequest


@dataclass
class World:
    """A host with engines and the sessions it is told of, on a clock that the test moves."""

    idle_s: float = 1_800.0
    max_sessions: int = 100
    engines: int = 1
    kv_tokens: int = 10**9
    check: bool = True

    def __post_init__(self) -> None:
        self.clock = HandClock()
        self.events: list[ev.Event] = []
        self.host = Host(
            load_preset("saga").policies,
            self.clock,
            Asked(),
            observe=lambda event, _: self.events.append(event),
            check=self.check,
        )
        for number in range(self.engines):
            self.host.tell(
                ev.EngineUp(
                    at=0,
                    engine=f"e{number}",
                    kv_capacity_tokens=self.kv_tokens,
                    max_num_seqs=100_000,
                )
            )
        self.sessions = Sessions(
            self.host, idle_us=int(self.idle_s * SECOND), max_sessions=self.max_sessions
        )
        self._number = 0

    def begin(
        self,
        session: str = "s",
        workflow: str = "w",
        tenant: str = "t",
        tokens: int = 1_000,
        **told: Any,
    ) -> Step:
        """A request comes, as the relay lets it in."""
        identity = Identity(
            **{
                "workflow": workflow,
                "session": session,
                "parent": None,
                "source": "saga",
                "confidence": "exact",
                **told,
            }
        )
        entered = self.sessions.enter(tenant, 1.0, identity)
        self._number += 1
        return Step(entered, self.host.arrive(f"r{self._number}", entered.id, tokens))

    def end(self, step: Step, tool: str | None = None) -> None:
        """Its answer came whole; if it was cancelled meanwhile, it only leaves."""
        assert step.live.engine is not None or step.live.id not in self.host.requests
        self.host.finish(step.live, 10, None, tool)
        self.sessions.leave(step.session, tool)

    def abandon(self, step: Step) -> None:
        """Its client went away before the answer."""
        self.host.cancel(step.live)
        self.sessions.leave(step.session, step.session.tool)

    def step(self, tool: str | None = None, **request: Any) -> str:
        """A whole step; the engine that served it."""
        step = self.begin(**request)
        engine = step.live.engine
        assert engine is not None
        self.end(step, tool)
        return engine

    def wait(self, seconds: float) -> int:
        """Time passes; how many sessions were closed for staying away."""
        self.clock.now += int(seconds * SECOND)
        return self.sessions.reap()

    def names(self) -> set[str]:
        return set(self.sessions.sessions)

    def check_agreement(self) -> None:
        """The scheduler knows the same workflows and sessions, and every one is in its place."""
        state = self.host.scheduler.state
        assert set(state.sessions) == self.names()
        assert set(state.workflows) == set(self.sessions.workflows)
        for name, session in self.sessions.sessions.items():
            assert self.sessions.workflows[session.workflow.id] is session.workflow
            assert session.workflow.sessions[name] is session
            assert session.num_inflight >= 0

    def check_nothing_is_left(self) -> None:
        """Beside the homes of sessions that may come back, and those are bounded."""
        self.check_agreement()
        left = sizes(self.sessions)
        assert left.pop("_homes") <= self.max_sessions
        assert left.pop("_deadlines") <= 64
        left.pop("_tokens_per_byte")
        assert not any(left.values()), left
        state = self.host.scheduler.state
        assert not (state.tenants or state.workflows or state.sessions or state.requests)
        assert not self.host.requests
        assert self.host.num_held == 0


def sizes(holder: object) -> dict[str, int]:
    """How much each collection of an object holds."""
    return {name: len(value) for name, value in vars(holder).items() if isinstance(value, Sized)}


# ---- coming and going


@in_loop
async def test_a_request_opens_its_session_which_stays_for_the_next() -> None:
    world = World()
    step = world.begin("s", "w")
    assert world.names() == {"t/s"}
    assert step.session.workflow.id == "t/w"
    assert step.session.num_inflight == 1
    world.end(step, "shell")
    assert (step.session.num_inflight, step.session.tool) == (0, "shell")
    again = world.begin("s", "w")
    assert again.session is step.session
    opened = [event for event in world.events if isinstance(event, ev.SessionOpened)]
    assert len(opened) == 1
    world.check_agreement()


@in_loop
async def test_a_session_with_a_request_under_way_is_never_reaped() -> None:
    world = World(idle_s=10)
    first, second = world.begin("s"), world.begin("s")
    world.end(first)
    assert world.wait(1_000) == 0
    world.end(second)
    assert world.wait(9.9) == 0
    assert world.wait(0.1) == 1
    world.check_nothing_is_left()


@in_loop
async def test_coming_back_in_time_starts_the_patience_anew() -> None:
    world = World(idle_s=10)
    for _ in range(5):
        world.step()
        assert world.wait(9.9) == 0
    assert world.wait(0.1) == 1
    world.check_nothing_is_left()


@in_loop
async def test_an_auxiliary_request_is_no_step_of_the_session() -> None:
    world = World()
    main = world.begin("s")
    world.end(main, "shell")
    world.sessions.counted(main.session, 400, "m", 100)
    patience = main.session.patience_ends
    world.clock.now += SECOND
    aside = world.begin("s", kind="auxiliary")
    assert aside.session is not main.session
    world.end(aside, "other")
    assert world.names() == {"t/s"}, "an auxiliary session ends with its request"
    told = (main.session.tool, main.session.prompt_tokens, main.session.patience_ends)
    assert told == ("shell", 100, patience)
    world.check_agreement()


@pytest.mark.parametrize("told", [{"final": True}, {"confidence": "none"}, {"kind": "auxiliary"}])
def test_a_session_of_which_no_more_will_come_is_closed_at_once(told: dict[str, Any]) -> None:
    async def scenario() -> None:
        world = World()
        world.step(**told)
        world.check_nothing_is_left()

    asyncio.run(scenario())


@in_loop
async def test_a_final_step_is_not_the_last_if_another_comes_beside_it() -> None:
    world = World()
    final, more = world.begin("s", final=True), world.begin("s")
    world.end(final)
    world.end(more)
    assert world.names() == {"t/s"}


@in_loop
async def test_a_workflow_ends_with_its_last_session() -> None:
    world = World()
    world.step(session="a")
    world.step(session="b", parent="a")
    world.step(session="a", final=True)
    assert world.names() == {"t/b"}
    assert set(world.sessions.workflows) == {"t/w"}
    world.step(session="b", final=True)
    world.check_nothing_is_left()


@in_loop
async def test_a_parent_may_be_one_that_nobody_knows() -> None:
    world = World()
    world.step(session="child", parent="never-seen")
    world.check_agreement()


# ---- how long to wait


@in_loop
async def test_an_unknown_tool_gets_the_patience_for_unknown_ones() -> None:
    world = World()
    world.step("never seen")
    assert world.wait(599) == 0
    assert world.wait(1) == 1


@pytest.mark.parametrize(("usual_s", "patience_s"), [(1, 120), (100, 300), (10_000, 1_800)])
def test_patience_is_three_times_what_the_tool_takes_within_bounds(
    usual_s: int, patience_s: int
) -> None:
    async def scenario() -> None:
        world = World()
        for _ in range(20):
            world.step("shell")
            world.clock.now += usual_s * SECOND
        world.step("shell")
        assert world.wait(patience_s - 1) == 0
        assert world.wait(1) == 1
        world.check_nothing_is_left()

    asyncio.run(scenario())


# ---- where their KV is


@in_loop
async def test_one_that_comes_back_after_all_goes_to_its_old_engine() -> None:
    for number in range(8):  # without its home a session would go anywhere
        world = World(engines=4, idle_s=10)
        for other in range(number):
            world.step(session=f"o{other}", workflow=f"o{other}")
        home = world.step(session="s", tokens=50_000)
        world.wait(10)
        assert world.names() == set()
        for other in range(number):
            step = world.begin(session=f"p{other}", workflow=f"p{other}", tokens=100)
            world.host.start(step.live, 0)
        assert world.step(session="s", tokens=51_000) == home


@in_loop
async def test_a_home_that_is_gone_is_no_home() -> None:
    world = World(engines=2, idle_s=10)
    home = world.step()
    world.wait(10)
    world.host.engine_down(home)
    assert world.step() != home
    world.check_agreement()


@in_loop
async def test_no_home_is_remembered_of_a_session_that_said_it_was_over() -> None:
    world = World(engines=2)
    world.step(final=True)
    world.begin()
    assert not any(isinstance(event, ev.BlocksStored) for event in world.events)


# ---- bounds


@in_loop
async def test_the_one_that_is_away_for_longest_makes_room() -> None:
    world = World(max_sessions=3)
    for name in "abc":
        world.step(session=name, workflow=name)
    world.step(session="a", workflow="a")
    world.step(session="d", workflow="d")
    assert world.names() == {"t/a", "t/c", "t/d"}
    assert world.sessions.num_reaped == 1
    world.check_agreement()


@in_loop
async def test_who_makes_room_may_be_the_only_other_session_of_the_same_workflow() -> None:
    world = World(max_sessions=1)
    world.step(session="a")
    world.step(session="b")
    assert world.names() == {"t/b"}
    world.check_agreement()


@in_loop
async def test_what_is_under_way_is_not_sent_away_for_the_bound() -> None:
    world = World(max_sessions=2)
    steps = [world.begin(name, name) for name in "abcd"]
    assert len(world.names()) == 4, "bounded by the requests that may wait"
    for step in steps:
        world.end(step)
    world.step(session="e", workflow="e")
    world.check_agreement()


@in_loop
async def test_one_session_of_many_steps_takes_no_more_room_than_one_of_few() -> None:
    world = World(check=False)
    for _ in range(100):
        world.step()
    few = sizes(world.sessions)
    for _ in range(2_000):
        world.step()
        world.clock.now += SECOND
        world.sessions.reap()
    many = sizes(world.sessions)
    assert max(many.values()) <= max(128, *few.values())


@in_loop
async def test_ten_thousand_abandoned_sessions_leave_nothing_behind() -> None:
    world = World(idle_s=10, max_sessions=20_000, check=False)
    for number in range(10_000):
        step = world.begin(f"s{number}", f"w{number}", tenant=f"t{number % 7}")
        (world.abandon if number % 2 else world.end)(step)
        world.clock.now += 100
    assert len(world.names()) == 10_000
    assert world.wait(10) == 10_000
    world.check_nothing_is_left()


# ---- workflows


@in_loop
async def test_finishing_a_workflow_cancels_what_is_under_way() -> None:
    world = World()
    running, idle = world.begin("a"), world.begin("b")
    world.end(idle)
    reasons: list[str] = []
    running.live.interrupt = reasons.append
    workflow = running.session.workflow
    world.sessions.finish(workflow)
    assert reasons == ["its session was closed"]
    world.end(running)  # its coroutine comes to its end later
    world.check_nothing_is_left()
    assert world.begin("a").session is not running.session
    world.check_agreement()


@in_loop
async def test_a_request_that_is_just_going_to_its_engine_learns_that_its_workflow_is_over() -> (
    None
):
    world = World()
    step = world.begin()
    assert step.live.placed.done()
    world.sessions.finish(step.session.workflow)
    assert step.live.engine is None
    with pytest.raises(Refused, match="its session was closed"):
        await step.live.placed
    world.sessions.leave(step.session, None)
    world.check_nothing_is_left()


@in_loop
async def test_a_request_that_waits_for_an_engine_learns_it_too() -> None:
    world = World(engines=0)
    step = world.begin()
    assert world.host.num_held == 1
    world.sessions.finish(step.session.workflow)
    with pytest.raises(Refused, match="finished by its client"):
        await step.live.placed
    world.sessions.leave(step.session, None)
    world.check_nothing_is_left()


@in_loop
async def test_a_workflow_that_was_declared_and_not_used_goes_like_a_session() -> None:
    world = World(idle_s=10)
    world.sessions.declare("t", 1.0, "w")
    world.wait(9)
    assert set(world.sessions.workflows) == {"t/w"}
    world.wait(1)
    world.check_nothing_is_left()


@in_loop
async def test_one_that_is_declared_again_has_its_whole_time() -> None:
    world = World(idle_s=10)
    world.sessions.finish(world.sessions.declare("t", 1.0, "w"))
    world.clock.now += 9 * SECOND
    world.sessions.declare("t", 1.0, "w")
    world.wait(9)
    assert set(world.sessions.workflows) == {"t/w"}
    world.wait(1)
    world.check_nothing_is_left()


@in_loop
async def test_a_declared_graph_says_how_many_steps_to_expect() -> None:
    world = World()
    world.sessions.declared[scoped("t", "coder")] = 12.0
    for tenant in ("t", "u"):
        world.begin("s", "w", tenant, agent_type="coder")
    told = {e.tenant: e.mean_steps for e in world.events if isinstance(e, ev.WorkflowSubmitted)}
    assert told == {"t": 12.0, "u": None}


# ---- sizes


@in_loop
async def test_tokens_are_estimated_from_what_engines_counted() -> None:
    world = World()
    session, sessions = world.begin().session, world.sessions
    assert sessions.estimate(session, 4_000, "m") == 1_000, "a quarter of the bytes"
    sessions.counted(session, 4_000, "m", 2_000)
    assert sessions.estimate(session, 4_000, "m") == 2_000
    assert sessions.estimate(session, 6_000, "m") == 3_000, "half of the bytes, as was counted"
    assert sessions.estimate(session, 2_000, "m") == 1_000, "after a compaction"
    other = world.begin("other", "other").session
    assert sessions.estimate(other, 4_000, "m") == 2_000
    assert sessions.estimate(other, 4_000, "another model") == 1_000


@given(st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**7)), max_size=20))
def test_an_estimate_is_at_least_one_token(counts: list[tuple[int, int]]) -> None:
    async def scenario() -> None:
        world = World()
        session = world.begin().session
        for size, tokens in counts:
            world.sessions.counted(session, size, "m", tokens)
            assert world.sessions.estimate(session, 0, "m") >= 1

    asyncio.run(scenario())


@in_loop
async def test_many_bytes_are_no_reason_to_refuse() -> None:
    """They may be a picture's."""
    world = World(kv_tokens=100_000)
    session = world.begin().session
    assert world.sessions.estimate(session, 10_000_000, "m") == 50_000
    world.sessions.counted(session, 10_000_000, "m", 80_000)
    assert world.sessions.estimate(session, 10_000_000, "m") == 80_000, "as it was counted"


@in_loop
async def test_models_that_clients_make_up_are_forgotten() -> None:
    world = World()
    session = world.begin().session
    for number in range(1_000):
        world.sessions.counted(session, 100, f"model {number}", 25)
    assert sizes(world.sessions)["_tokens_per_byte"] <= 256


# ---- tenants, and everything at random


@in_loop
async def test_equal_names_of_two_tenants_are_two_sessions() -> None:
    world = World()
    ours, theirs = world.begin(tenant="a"), world.begin(tenant="b")
    assert ours.session is not theirs.session
    world.sessions.finish(ours.session.workflow)
    world.sessions.leave(ours.session, None)
    assert world.names() == {"b/s"}
    assert theirs.live.id in world.host.requests
    world.check_agreement()


class Walk:
    """Clients of two tenants that use the same names do whatever they may, in any order."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.world = World(
            idle_s=20, max_sessions=self.random.choice([1, 3, 50]), engines=self.random.randrange(3)
        )
        self.steps: list[Step] = []

    def act(self) -> None:
        random, world = self.random, self.world
        world.clock.now += random.randrange(3 * SECOND)
        match random.choice(["begin", "begin", "end", "abandon", "finish", "reap", "declare"]):
            case "begin":
                self.steps.append(self._begin())
            case "end" if self.steps:
                self._end_one(random.choice([None, "shell", "web"]))
            case "abandon" if self.steps:
                world.abandon(self._one_of_them())
            case "finish" if world.sessions.workflows:
                world.sessions.finish(random.choice(list(world.sessions.workflows.values())))
            case "declare":
                tenant, name = random.choice("ab"), random.choice("uvw")
                if scoped(tenant, name) not in world.sessions.workflows:
                    world.sessions.declare(tenant, 1.0, name)
            case _:
                world.sessions.reap()

    def check(self) -> None:
        """Beside agreement: what a tenant has is its own alone."""
        self.world.check_agreement()
        for session in self.world.sessions.sessions.values():
            assert session.id.startswith(f"{session.workflow.tenant}/")
            assert session.workflow.id.startswith(f"{session.workflow.tenant}/")
        for known in self.world.host.scheduler.state.sessions.values():
            assert known.id.startswith(f"{known.workflow.tenant.id}/")
        inflight = sum(s.num_inflight for s in self.world.sessions.sessions.values())
        assert inflight <= len(self.steps)

    def end(self) -> None:
        while self.steps:
            self._end_one(None)
        self.world.wait(20)

    def _begin(self) -> Step:
        random = self.random
        return self.world.begin(
            random.choice("xyz"),
            random.choice("uvw"),
            random.choice("ab"),
            parent=random.choice([None, "x"]),
            final=random.random() < 0.1,
            kind=random.choice(["main", "main", "auxiliary"]),
            confidence=random.choice(["exact", "exact", "exact", "none"]),
        )

    def _end_one(self, tool: str | None) -> None:
        """One that waits cannot have been answered."""
        step = self._one_of_them()
        if step.live.engine is None:
            self.world.abandon(step)
        else:
            self.world.end(step, tool)

    def _one_of_them(self) -> Step:
        return self.steps.pop(self.random.randrange(len(self.steps)))


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_random_walks_leave_nothing_behind_and_never_mix_tenants(seed: int) -> None:
    async def scenario() -> None:
        walk = Walk(seed)
        for _ in range(80):
            walk.act()
            walk.check()
        walk.end()
        walk.world.check_nothing_is_left()
        state = walk.world.host.scheduler.state
        assert sum(state.num_ended.values()) == state.num_arrived
        walk.world.host.close()

    asyncio.run(scenario())
