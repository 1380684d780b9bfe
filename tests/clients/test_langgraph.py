"""LangGraph agents over all three APIs: each is recognised, and none gets another answer."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_anthropic import ChatAnthropic
from langchain_anthropic.middleware import AnthropicPromptCachingMiddleware
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState
from langgraph.types import Command, Send
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

Model = Callable[[str], Any]


def chat(url: str) -> Any:
    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="any", stream_usage=True)


def responses(url: str, **more: Any) -> Any:
    return ChatOpenAI(
        model=MODEL, base_url=f"{url}/v1", api_key="any", use_responses_api=True, **more
    )


def stored_responses(url: str) -> Any:
    return responses(url, use_previous_response_id=True)


def messages(url: str) -> Any:
    return ChatAnthropic(model=MODEL, base_url=url, api_key="any")


MODELS: list[Model] = [chat, responses, stored_responses, messages]
each_model = pytest.mark.parametrize("model", MODELS)
each_way = pytest.mark.parametrize("stream", [False, True])


def source_of(model: Model) -> str:
    return "previous_response_id" if model is stored_responses else "lineage"


def _planned(request: Any) -> Any:
    called = any(isinstance(message, ToolMessage) for message in request.messages)
    return request if called else request.override(tool_choice="refund")


def refund_first(request: Any, handler: Any) -> Any:
    return handler(_planned(request))


async def refund_first_awaited(request: Any, handler: Any) -> Any:
    return await handler(_planned(request))


def helper(model: Any, plan: Callable[[Any, Any], Any] = refund_first) -> Any:
    """A ReAct agent that calls both of its tools."""
    return create_agent(
        model,
        [order_status, refund],
        system_prompt="You help with orders.",
        middleware=[wrap_model_call(plan)],
    )


def saying(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def run(agent: Any, text: str, *, stream: bool = False) -> list[Any]:
    """All messages of a run."""
    state: Any = None
    if not stream:
        state = agent.invoke(saying(text))
    else:
        for mode, part in agent.stream(saying(text), stream_mode=["messages", "values"]):
            state = part if mode == "values" else state
    return list(state["messages"])


def calls(said: list[Any]) -> list[str]:
    return [call["name"] for message in said for call in getattr(message, "tool_calls", [])]


def used(said: list[Any]) -> list[Used]:
    usages = [message.usage_metadata for message in said if message.type == "ai"]
    return [
        Used(usage["input_tokens"], usage["input_token_details"]["cache_read"]) for usage in usages
    ]


# ---- one agent


@each_way
@each_model
def test_an_agent_is_one_session(tap: Tap, question: str, model: Model, stream: bool) -> None:
    said = run(helper(model(tap.url)), question, stream=stream)
    assert calls(said) == CALLS
    assert said[-1].text != ""
    assert [step.body.get("stream", False) for step in tap.steps] == [stream] * 4
    check_one_session(tap.steps, source_of(model))
    check_cached(used(said))


def test_the_middleware_for_prompt_caching_changes_nothing(tap: Tap, question: str) -> None:
    caching = AnthropicPromptCachingMiddleware()
    agent = create_agent(
        messages(tap.url), [order_status], system_prompt="You help.", middleware=[caching]
    )
    said = run(agent, question)
    assert all(b"cache_control" in msgspec.json.encode(step.body) for step in tap.steps)
    assert len(tap.steps) == 4
    check_one_session(tap.steps)
    check_cached(used(said))


@each_way
@pytest.mark.parametrize("model", [chat, responses])
def test_an_agent_that_is_awaited_is_one_session(
    tap: Tap, question: str, model: Model, stream: bool
) -> None:
    async def scenario() -> list[Any]:
        connected = model(tap.url)
        agent = helper(connected, refund_first_awaited)
        try:
            if not stream:
                return list((await agent.ainvoke(saying(question)))["messages"])
            modes = ["messages", "values"]
            parts = [part async for part in agent.astream(saying(question), stream_mode=modes)]
            return list(parts[-1][1]["messages"])
        finally:
            await connected.root_async_client.close()

    said = asyncio.run(scenario())
    assert calls(said) == CALLS
    check_one_session(tap.steps)
    check_cached(used(said))


@each_way
@each_model
def test_an_agent_gets_what_the_engine_says(
    pair: tuple[str, str], model: Model, stream: bool
) -> None:
    def told(url: str) -> list[Any]:
        said = run(helper(model(url)), "Where is my order?", stream=stream)
        return [
            (
                message.type,
                message.text,
                [(call["name"], call["args"]) for call in getattr(message, "tool_calls", [])],
                getattr(message, "usage_metadata", None),
            )
            for message in said
        ]

    direct, through = map(told, pair)
    assert through == direct
    assert len(direct) == 8


@each_model
def test_a_thread_is_one_session_over_all_its_turns(tap: Tap, question: str, model: Model) -> None:
    agent = create_agent(model(tap.url), [order_status], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "a"}}
    for text in (question, "And when will it be here?"):
        said = agent.invoke(saying(text), thread)["messages"]
    assert len(tap.steps) == 8
    check_one_session(tap.steps, source_of(model))
    check_cached(used(said))


# ---- several at once


@each_model
def test_agents_at_once_stay_apart(tap: Tap, question: str, model: Model) -> None:
    agent = helper(model(tap.url))
    states = agent.batch([saying(f"{question} {number}") for number in range(2)])
    apart = sessions(tap.steps)
    assert [len(steps) for steps in apart] == [4, 4]
    for steps in apart:
        check_one_session(steps, source_of(model))
    for state in states:
        check_cached(used(state["messages"]))


@pytest.mark.parametrize("model", [chat, responses, messages])
def test_agents_that_begin_alike_part_with_their_first_answers(
    tap: Tap, question: str, model: Model
) -> None:
    helper(model(tap.url)).batch([saying(question)] * 2)
    apart = sessions(tap.steps)
    assert len(apart) == 2
    assert sum(map(len, apart)) == 8
    assert len(apart[1]) >= 3, "all steps of one of the agents but its first"


class Plan(TypedDict):
    topics: list[str]
    notes: Annotated[list[str], operator.add]


@each_model
def test_parallel_branches_are_sessions(tap: Tap, question: str, model: Model) -> None:
    agent = helper(model(tap.url))

    def plan(state: Plan) -> list[Any]:
        return [Send("look", topic) for topic in state["topics"]]

    def look(topic: str) -> dict[str, list[str]]:
        return {"notes": [run(agent, f"{question} {topic}")[-1].text]}

    graph = StateGraph(Plan)
    graph.add_node("look", look)
    graph.add_conditional_edges(START, plan, ["look"])
    notes = graph.compile().invoke({"topics": ["price", "weight", "colour"], "notes": []})["notes"]
    assert len(set(notes)) == 3
    apart = sessions(tap.steps)
    assert [len(steps) for steps in apart] == [4, 4, 4]
    for steps in apart:
        check_one_session(steps, source_of(model))


# ---- several that work together


def boss_and_helper(model: Any) -> Any:
    """An agent whose tool is another agent, which it asks the same thing three times."""
    inner = create_agent(model, [order_status], system_prompt="You look up.")

    def research(topic: str = "orders") -> str:
        """Finds out about a topic."""
        return str(run(inner, f"Find out about {topic}.")[-1].text)

    return create_agent(model, [research], system_prompt="You lead.")


@each_model
def test_a_sub_agent_is_a_session_of_its_own(tap: Tap, question: str, model: Model) -> None:
    said = run(boss_and_helper(model(tap.url)), question)
    check_cached(used(said))
    outer, *inner = sessions(tap.steps)
    assert [step.tools for step in outer] == [["research"]] * 4
    assert [len(steps) for steps in inner] == [4, 4, 4]
    for steps in (outer, *inner):
        check_one_session(steps, source_of(model))


def hand_over(
    state: Annotated[dict[str, Any], InjectedState],
    tool_call_id: Annotated[str, InjectedToolCallId],
) -> Any:
    """Hands the customer over to billing."""
    done = ToolMessage("Billing takes over.", tool_call_id=tool_call_id)
    update = {"messages": [*state["messages"], done]}
    return Command(goto="billing", graph=Command.PARENT, update=update)


@each_model
def test_a_handoff_goes_to_another_agent(tap: Tap, question: str, model: Model) -> None:
    """The agent that takes over has a prompt of its own, so that no KV is in common; the call by
    which it was asked to is in what it is told."""
    transfer = StructuredTool.from_function(hand_over)
    triage = create_agent(model(tap.url), [transfer], system_prompt="You send on.")
    billing = create_agent(model(tap.url), [refund], system_prompt="You pay back.")
    graph = StateGraph(MessagesState)
    graph.add_node("triage", triage, destinations=("billing",))
    graph.add_node("billing", billing)
    graph.add_edge(START, "triage")
    said = run(graph.compile(), question)
    assert calls(said) == ["hand_over", "refund", "refund"]
    check_cached(used(said)[1:])
    check_one_session(tap.steps, source_of(model))
