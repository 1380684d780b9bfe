"""Agents against one emulated engine, with and without a gateway before it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.live import engine, gateway

from saga.adapters.agents import Played, client_of, play, play_all
from saga.adapters.conversation import Conversation
from saga.sim.workload import get_workload
from saga.traces import SessionScript, StepScript, WorkflowScript

FAST = 1_000.0


def steps(*sizes: tuple[int, int, int], tool: str | None = "bash") -> tuple[StepScript, ...]:
    """Kept, new and output tokens of each; a millisecond in between."""
    made = [
        StepScript(kept_tokens=kept, new_tokens=new, output_tokens=output, tool=tool, gap_us=1_000)
        for kept, new, output in sizes
    ]
    return (*made[:-1], replace(made[-1], tool=None, gap_us=0))


def chain(*sizes: tuple[int, int], prefix: int = 0) -> tuple[StepScript, ...]:
    """New and output tokens of steps that keep everything."""
    context, made = prefix, []
    for new, output in sizes:
        made.append((context, new, output))
        context += new + output
    return steps(*made)


def workflow(*sessions: SessionScript, id: str = "w0") -> WorkflowScript:
    return WorkflowScript(id=id, sessions=sessions)


def played(url: str, *scripts: WorkflowScript, agents: int = 1) -> list[Played]:
    async def scenario() -> list[Played]:
        async with client_of(url, timeout_s=10) as one:
            return await play_all(scripts, one, agents=agents, speed=FAST, quiet=True)

    return asyncio.run(scenario())


def prompts(one: Played, session: int = 0) -> list[int]:
    return [step.prompt_tokens for step in one.steps if step.session == session]


def scripted(steps: Sequence[StepScript]) -> list[int]:
    return [step.prompt_tokens for step in steps]


# ---- sizes and order


def test_engine_counts_what_the_script_says() -> None:
    script = workflow(SessionScript(steps=chain((500, 60), (120, 30), (9, 40), (300, 20))))
    with engine() as (url, _):
        (one,) = played(url, script)
    assert one.error is None
    assert [step.index for step in one.steps] == [0, 1, 2, 3]
    assert prompts(one) == scripted(script.sessions[0].steps)
    assert [step.output_tokens for step in one.steps] == [60, 30, 40, 20]
    times = [at for step in one.steps for at in (step.began_s, step.first_token_s, step.ended_s)]
    assert times == sorted(times)
    assert one.tct_s == one.steps[-1].ended_s


def test_what_was_kept_comes_from_the_cache() -> None:
    script = workflow(SessionScript(steps=chain((800, 60), (100, 30), (100, 30))))
    with engine() as (url, _):
        (one,) = played(url, script)
    assert one.steps[0].cached_tokens == 0
    for before, after in zip(one.steps, one.steps[1:], strict=False):
        context = before.prompt_tokens + before.output_tokens
        assert context - 32 <= after.cached_tokens <= context  # whole blocks of 16


def test_a_shared_prefix_is_shared_and_nothing_else() -> None:
    own = SessionScript(steps=chain((400, 20), prefix=320), prefix="agent", prefix_tokens=320)
    with engine() as (url, _):
        first, second = played(url, workflow(own, id="a"), workflow(own, id="b"))
    assert prompts(first) == prompts(second) == [720]
    assert first.steps[0].cached_tokens == 0
    assert 304 <= second.steps[0].cached_tokens <= 320


def test_steps_that_drop_context_keep_no_more_than_they_say() -> None:
    script = workflow(SessionScript(steps=steps((0, 600, 50), (400, 90, 20), (0, 300, 20))))
    with engine() as (url, _):
        (one,) = played(url, script)
    assert prompts(one) == [600, 490, 300]
    assert 384 <= one.steps[1].cached_tokens <= 400
    assert one.steps[2].cached_tokens == 0


def test_profile_workflows_are_as_long_as_drawn() -> None:
    """Within two percent, whatever a real trace's sessions do to their contexts."""
    drawn = [
        replace(script, id=f"{name}-{script.id}")
        for name in ("swe-agent", "tau2", "browser")
        for script in get_workload(name).scripts(2, seed=3)
    ]
    scripts = [
        replace(s, sessions=tuple(replace(o, steps=_first(o.steps, 8)) for o in s.sessions))
        for s in drawn
    ]
    with engine(speed=2_000.0) as (url, _):
        results = played(url, *scripts, agents=3)
    for script, one in zip(scripts, results, strict=True):
        assert one.error is None
        for got, step in zip(prompts(one), script.sessions[0].steps, strict=True):
            assert abs(got - step.prompt_tokens) <= 0.02 * step.prompt_tokens


def _first(all_steps: tuple[StepScript, ...], most: int) -> tuple[StepScript, ...]:
    kept = all_steps[:most]
    return (*kept[:-1], replace(kept[-1], gap_us=0, tool_us=0))


@st.composite
def session_steps(draw: st.DrawFn) -> tuple[StepScript, ...]:
    made, context = [], 0
    for _ in range(draw(st.integers(1, 6))):
        kept = draw(st.one_of(st.just(context), st.integers(0, context)))
        step = (kept, draw(st.integers(8, 300)), draw(st.integers(1, 80)))
        made.append(step)
        context = sum(step)
    return steps(*made)


@settings(max_examples=200)
@given(session_steps(), st.booleans())
def test_a_conversation_is_as_long_as_its_script(
    script: tuple[StepScript, ...], calls: bool
) -> None:
    """By the template's count: two tokens around each turn, one before the answer."""
    conversation, again = Conversation("w/0"), Conversation("w/0")
    for step in script:
        conversation.ask(step)
        again.ask(step)
        texts = [len(message["content"] or "") for message in conversation.messages]
        length = sum(-(-text // 4) + 2 for text in texts) + 1
        assert abs(length - step.prompt_tokens) <= 4
        assert conversation.messages == again.messages
        results = [m for m in conversation.messages if m["role"] == "tool"]
        assert calls or results == []
        answer: dict[str, Any] = {"role": "assistant", "content": "abc " * step.output_tokens}
        if calls:
            answer |= {"tool_calls": [{"id": f"call_{step.new_tokens}"}]}
        conversation.answer(answer, step.output_tokens)
        again.answer(answer, step.output_tokens)


# ---- sub-agents


def family(*, blocking: bool, forked: int = 0) -> WorkflowScript:
    root = SessionScript(steps=chain((600, 40), (100, 20), (50, 20)))
    first = (forked, 120, 30) if forked else (0, 120, 30)
    child = SessionScript(
        steps=steps(first, (sum(first), 40, 10)),
        parent=0,
        spawn_step=0,
        delay_us=1_000,
        forked_tokens=forked,
        blocking=blocking,
    )
    return workflow(root, child)


def test_a_parent_waits_for_its_sub_agents() -> None:
    with engine() as (url, _):
        (one,) = played(url, family(blocking=True))
    assert one.error is None
    assert [(step.session, step.index) for step in one.steps] == [
        (0, 0), (1, 0), (1, 1), (0, 1), (0, 2)
    ]  # fmt: skip


def test_a_workflow_ends_with_the_last_of_its_sessions() -> None:
    late = family(blocking=False)
    slow = replace(late.sessions[1], delay_us=200_000_000)
    with engine() as (url, _):
        (one,) = played(url, replace(late, sessions=(late.sessions[0], slow)))
    assert [step.session for step in one.steps] == [0, 0, 0, 1, 1]
    assert one.tct_s == one.steps[-1].ended_s


def test_a_fork_begins_with_its_parents_context() -> None:
    with engine() as (url, _):
        (one,) = played(url, family(blocking=True, forked=480))
    (child, *_) = [step for step in one.steps if step.session == 1]
    assert child.prompt_tokens == 600
    assert 464 <= child.cached_tokens <= 480


# ---- through a gateway


def test_the_gateway_knows_workflows_sessions_and_their_end() -> None:
    scripts = [replace(family(blocking=True), id=f"w{number}") for number in range(4)]
    with gateway(engines=2) as live:
        results = played(live.url, *scripts, agents=2)
        assert live.gateway.sessions.workflows == {}  # each was said to be over
        assert live.check_nothing_is_lost()["finished"] == 4 * 5
        names = set(live.gateway.fleet.engines)
    assert [one.workflow for one in results] == ["w0", "w1", "w2", "w3"]
    assert [one.error for one in results] == [None] * 4
    assert {step.engine for one in results for step in one.steps} <= names


# ---- what goes wrong


def test_a_failing_engine_is_told_for_each_workflow() -> None:
    fine = workflow(SessionScript(steps=chain((100, 10))), id="fine")
    large = workflow(SessionScript(steps=chain((100, 10), (50_000, 10))), id="large")
    with engine(kv_tokens=4_096) as (url, _):
        one, other = played(url, fine, large)
    assert (one.error, one.workflow) == (None, "fine")
    assert (other.tct_s, len(other.steps)) == (None, 1)
    assert other.error is not None
    assert "maximum context length" in other.error


def test_nobody_listens() -> None:
    with engine() as (url, _):
        pass
    (one,) = played(url, workflow(SessionScript(steps=chain((100, 10)))))
    assert (one.tct_s, one.steps) == (None, [])
    assert one.error is not None
    assert "APIConnectionError" in one.error


def test_a_failing_sub_agent_ends_its_workflow() -> None:
    script = family(blocking=True)
    broken = replace(script.sessions[1], steps=chain((50_000, 10)))
    with engine(kv_tokens=4_096) as (url, _):
        (one,) = played(url, replace(script, sessions=(script.sessions[0], broken)))
    assert one.tct_s is None
    assert one.error is not None
    assert [(step.session, step.index) for step in one.steps] == [(0, 0)]


def test_time_is_limited() -> None:
    long = StepScript(kept_tokens=0, new_tokens=50, output_tokens=5, gap_us=3_600_000_000)
    script = workflow(SessionScript(steps=(long, replace(long, gap_us=0))))

    async def scenario(url: str) -> list[Played]:
        async with client_of(url, timeout_s=10) as one:
            scripts = [script, replace(script, id="w1")]
            return await play_all(scripts, one, agents=1, limit_s=0.3, quiet=True)

    with engine() as (url, _):
        results = asyncio.run(scenario(url))
    assert [one.error for one in results] == ["not finished within 0.3 s"] * 2


def test_one_workflow_by_itself() -> None:
    async def scenario(url: str) -> Played:
        async with client_of(url, timeout_s=10) as one:
            return await play(workflow(SessionScript(steps=chain((40, 5)))), one)

    with engine() as (url, _):
        one = asyncio.run(scenario(url))
    assert (one.error, prompts(one)) == (None, [40])
