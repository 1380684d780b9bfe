"""Agents of the OpenAI Agents SDK over both APIs: each is recognised, none gets another answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from tests.clients.tap import Tap
from tests.clients.tools import (
    CALLS,
    MODEL,
    Used,
    check_cached,
    check_one_session,
    order_status,
    refund,
    sessions,
)

T = TypeVar("T")

QUIET = RunConfig(tracing_disabled=True)
MODELS = [OpenAIChatCompletionsModel, OpenAIResponsesModel]
each_model = pytest.mark.parametrize("kind", MODELS)
each_way = pytest.mark.parametrize("stream", [False, True])


def connected(url: str, kind: Any, scenario: Callable[[Any], Awaitable[T]]) -> T:
    """What the scenario returns, given a model at that URL."""

    async def run() -> T:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            return await scenario(kind(MODEL, client))

    return asyncio.run(run())


def helper(model: Any) -> Any:
    """An agent that calls both of its tools."""
    return Agent(
        name="Helper",
        instructions="You help with orders.",
        model=model,
        tools=[function_tool(order_status), function_tool(refund)],
        model_settings=ModelSettings(tool_choice="refund", include_usage=True),
    )


async def run(agent: Any, text: str, *, stream: bool = False, **more: Any) -> Any:
    """The result of a run that has ended."""
    if not stream:
        return await Runner.run(agent, text, run_config=QUIET, **more)
    result = Runner.run_streamed(agent, text, run_config=QUIET, **more)
    async for _ in result.stream_events():
        pass
    return result


def calls(result: Any) -> list[str]:
    kinds = ("tool_call_item", "handoff_call_item")
    return [item.raw_item.name for item in result.new_items if item.type in kinds]


def used(result: Any) -> list[Used]:
    usages = [response.usage for response in result.raw_responses]
    return [Used(usage.input_tokens, usage.input_tokens_details.cached_tokens) for usage in usages]


# ---- one agent


@each_way
@each_model
def test_an_agent_is_one_session(tap: Tap, question: str, kind: Any, stream: bool) -> None:
    async def scenario(model: Any) -> Any:
        return await run(helper(model), question, stream=stream)

    result = connected(tap.url, kind, scenario)
    assert calls(result) == CALLS
    assert result.final_output != ""
    assert [step.body.get("stream", False) for step in tap.steps] == [stream] * 4
    check_one_session(tap.steps)
    check_cached(used(result))


@each_way
@each_model
def test_an_agent_gets_what_the_engine_says(pair: tuple[str, str], kind: Any, stream: bool) -> None:
    async def scenario(model: Any) -> Any:
        result = await run(helper(model), "Where is my order?", stream=stream)
        total = result.context_wrapper.usage
        return calls(result), result.final_output, used(result), total

    direct, through = (connected(url, kind, scenario) for url in pair)
    assert through == direct
    assert direct[3].requests == len(direct[2]) == 4
    assert direct[3].output_tokens > 0


@each_way
def test_a_chain_of_responses_is_one_session(tap: Tap, question: str, stream: bool) -> None:
    async def scenario(model: Any) -> Any:
        agent = helper(model)
        first = await run(agent, question, stream=stream, auto_previous_response_id=True)
        last = first.last_response_id
        return first, await run(agent, "Again!", stream=stream, previous_response_id=last)

    first, second = connected(tap.url, OpenAIResponsesModel, scenario)
    assert calls(first) == calls(second) == CALLS
    assert len(tap.steps) == 8
    check_one_session(tap.steps, "previous_response_id")
    check_cached([*used(first), *used(second)])


@each_model
def test_a_memory_is_one_session_over_all_its_turns(tap: Tap, question: str, kind: Any) -> None:
    async def scenario(model: Any) -> list[Any]:
        memory = SQLiteSession("memory")
        try:
            agent = helper(model)
            return [await run(agent, text, session=memory) for text in (question, "And when?")]
        finally:
            memory.close()

    results = connected(tap.url, kind, scenario)
    assert len(tap.steps) == 8
    check_one_session(tap.steps)
    check_cached([step for result in results for step in used(result)])


# ---- several at once


@each_model
def test_agents_at_once_stay_apart(tap: Tap, question: str, kind: Any) -> None:
    async def scenario(model: Any) -> list[Any]:
        agent = helper(model)
        return await asyncio.gather(*(run(agent, f"{question} {n}") for n in range(2)))

    results = connected(tap.url, kind, scenario)
    apart = sessions(tap.steps)
    assert [len(steps) for steps in apart] == [4, 4]
    for steps in apart:
        check_one_session(steps)
    for result in results:
        check_cached(used(result))


@each_model
def test_agents_that_begin_alike_part_with_their_first_answers(
    tap: Tap, question: str, kind: Any
) -> None:
    async def scenario(model: Any) -> None:
        await asyncio.gather(*(run(helper(model), question) for _ in range(2)))

    connected(tap.url, kind, scenario)
    apart = sessions(tap.steps)
    assert len(apart) == 2
    assert sum(map(len, apart)) == 8
    assert len(apart[1]) >= 3, "all steps of one of the agents but its first"


# ---- several that work together


@each_model
def test_a_handoff_goes_to_another_agent(tap: Tap, question: str, kind: Any) -> None:
    """The agent that takes over has instructions of its own, so that no KV is in common; the call
    by which it was asked to is in what it is told."""

    async def scenario(model: Any) -> Any:
        billing = Agent(name="Billing", model=model, tools=[function_tool(refund)])
        billing.instructions = "You pay back."
        triage = Agent(name="Triage", instructions="You send on.", model=model, handoffs=[billing])
        return await run(triage, question)

    result = connected(tap.url, kind, scenario)
    assert result.last_agent.name == "Billing"
    assert calls(result) == ["transfer_to_billing", "refund", "refund"]
    check_cached(used(result)[1:])
    assert [step.tools for step in tap.steps] == [["transfer_to_billing"], *[["refund"]] * 3]
    check_one_session(tap.steps)


class Task(BaseModel):
    """Has a default, as emulated engines give no arguments."""

    order: str = "A-1"


@pytest.mark.parametrize(
    ("kind", "chained"), [*((kind, False) for kind in MODELS), (OpenAIResponsesModel, True)]
)
def test_an_agent_as_a_tool_is_a_session_of_its_own(
    tap: Tap, question: str, kind: Any, chained: bool
) -> None:
    async def scenario(model: Any) -> Any:
        status = function_tool(order_status)
        expert = Agent(name="Expert", instructions="You know.", model=model, tools=[status])
        tool = expert.as_tool("ask_expert", "Asks the expert.", parameters=Task)
        lead = Agent(name="Lead", instructions="You lead.", model=model, tools=[tool])
        return await run(lead, question, auto_previous_response_id=chained)

    result = connected(tap.url, kind, scenario)
    assert calls(result) == ["ask_expert"] * 3
    check_cached(used(result))
    lead, *expert = sessions(tap.steps)
    assert [step.tools for step in lead] == [["ask_expert"]] * 4
    assert [len(steps) for steps in expert] == [4, 4, 4]
    for steps in expert:
        check_one_session(steps)
    check_one_session(lead, "previous_response_id" if chained else "lineage")
