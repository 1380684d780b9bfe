"""Hooks in this process: work that goes on beside other work, and hooks that are taken out."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import agents
import langgraph.pregel
import pytest
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, trace
from langchain.agents import create_agent
from langchain_core.tracers import context
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from openai import AsyncOpenAI
from tests.clients.tap import Step, Tap
from tests.clients.tools import MODEL, order_status, sessions

from saga.adapters import identified, install, uninstall
from saga.adapters.announce import announcer
from saga.adapters.frameworks import langgraph as langgraph_hook
from saga.adapters.frameworks import openai_agents as agents_hook


@pytest.fixture
def hooked(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # no trace is to be sent anywhere
    agents.set_tracing_disabled(False)
    install()
    yield
    uninstall()
    assert announcer.flush(10)


def apart(tap: Tap) -> list[list[Step]]:
    """The requests by session, each of which was named by its client."""
    asked = [step for step in tap.steps if step.path == "/v1/chat/completions"]
    assert {step.source for step in asked} == {"saga"}
    return sessions(asked)


def workflows(tap: Tap) -> set[str | None]:
    return {step.headers.get("x-saga-workflow-id") for steps in apart(tap) for step in steps}


def chat(tap: Tap) -> Any:
    return ChatOpenAI(model=MODEL, base_url=f"{tap.url}/v1", api_key="any")


def saying(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


# ---- LangGraph


class Plan(TypedDict):
    topics: list[str]
    notes: Annotated[list[str], operator.add]


def branches(model: Any) -> Any:
    """Asks once for each topic, all at a time, and then once more."""

    def plan(state: Plan) -> list[Any]:
        return [Send("look", topic) for topic in state["topics"]]

    def look(topic: str) -> dict[str, list[str]]:
        return {"notes": [model.invoke(topic).text]}

    def close(state: Plan) -> dict[str, list[str]]:
        return {"notes": [model.invoke(" ".join(state["notes"])).text]}

    graph = StateGraph(Plan)
    graph.add_node("look", look)
    graph.add_node("close", close)
    graph.add_conditional_edges(START, plan, ["look"])
    graph.add_edge("look", "close")
    return graph.compile()


@pytest.mark.usefixtures("hooked")
def test_tasks_beside_each_other_are_sessions_of_one_workflow(tap: Tap, question: str) -> None:
    topics = [f"{question} {number}" for number in range(3)]
    branches(chat(tap)).invoke({"topics": topics, "notes": []})
    assert [len(steps) for steps in apart(tap)] == [1, 1, 1, 1]
    assert len(workflows(tap)) == 1
    names = [steps[0].headers["x-saga-step"] for steps in apart(tap)]
    assert names == ["look", "look", "look", "close"]


@pytest.mark.usefixtures("hooked")
def test_a_thread_is_one_session_over_all_its_turns(tap: Tap, question: str) -> None:
    async def scenario() -> None:
        model = chat(tap)
        agent = create_agent(model, [order_status], checkpointer=InMemorySaver())
        thread = {"configurable": {"thread_id": "a"}}
        for text in (question, "And when?"):
            await agent.ainvoke(saying(text), thread)
        await model.root_async_client.close()

    asyncio.run(scenario())
    assert [len(steps) for steps in apart(tap)] == [8]
    assert workflows(tap) == {"a"}


@pytest.mark.usefixtures("hooked")
def test_runs_beside_each_other_are_workflows(tap: Tap, question: str) -> None:
    agent = create_agent(chat(tap), [order_status])
    agent.batch([saying(question)] * 2)
    assert [len(steps) for steps in apart(tap)] == [4, 4]
    assert len(workflows(tap)) == 2


@pytest.mark.usefixtures("hooked")
def test_agents_in_one_node_are_sessions_that_work_for_the_node_before(
    tap: Tap, question: str
) -> None:
    model = chat(tap)
    first, second = (create_agent(model, [order_status]) for _ in range(2))

    def think(state: Plan) -> dict[str, list[str]]:
        return {"notes": [model.invoke(question).text]}

    def work(state: Plan) -> dict[str, list[str]]:
        for agent in (first, second):
            agent.invoke(saying(question))
        return {"notes": []}

    graph = StateGraph(Plan)
    graph.add_sequence([think, work])
    graph.add_edge(START, "think")
    graph.compile().invoke({"topics": [], "notes": []})
    before, *agents = apart(tap)
    assert [len(steps) for steps in agents] == [4, 4]
    parents = {step.headers["x-saga-parent-id"] for steps in agents for step in steps}
    assert parents == {before[0].session}
    assert len(workflows(tap)) == 1


@pytest.mark.usefixtures("hooked")
def test_the_application_has_the_last_word(tap: Tap, question: str) -> None:
    agent = create_agent(chat(tap), [order_status])
    with identified(workflow="ticket-1"):
        agent.invoke(saying(question), {"configurable": {"thread_id": "b"}})
    assert workflows(tap) == {"ticket-1"}


# ---- OpenAI Agents


def connected(tap: Tap, question: str, *, traced: bool) -> None:
    """Two runs of one agent beside each other, and then a third one."""

    async def scenario() -> None:
        async with AsyncOpenAI(base_url=f"{tap.url}/v1", api_key="any") as client:
            model = OpenAIChatCompletionsModel(MODEL, client)
            agent = Agent(name="A", model=model, tools=[function_tool(order_status)])
            if not traced:
                await asyncio.gather(*(Runner.run(agent, question) for _ in range(2)))
                return
            with trace("all"):
                await asyncio.gather(*(Runner.run(agent, question) for _ in range(2)))
                await Runner.run(agent, question)

    asyncio.run(scenario())


@pytest.mark.usefixtures("hooked")
def test_runs_of_one_trace_beside_each_other_are_sessions(tap: Tap, question: str) -> None:
    connected(tap, question, traced=True)
    first, second = apart(tap)
    assert sorted([len(first), len(second)]) == [4, 8]
    assert len(workflows(tap)) == 1


@pytest.mark.usefixtures("hooked")
def test_traces_beside_each_other_are_workflows(tap: Tap, question: str) -> None:
    connected(tap, question, traced=False)
    assert [len(steps) for steps in apart(tap)] == [4, 4]
    assert len(workflows(tap)) == 2


def processors() -> list[Any]:
    provider: Any = agents.tracing.get_trace_provider()
    return [type(one).__name__ for one in provider._multi_processor._processors]


def test_an_application_may_set_its_own_processors() -> None:
    provider: Any = agents.tracing.get_trace_provider()
    theirs = list(provider._multi_processor._processors)
    undo = agents_hook.install(agents)
    assert len(processors()) == len(theirs) + 1
    agents.set_trace_processors([])
    assert processors() == ["Processor"]
    undo()
    assert processors() == []
    agents.set_trace_processors(theirs)


# ---- taken out


def test_without_hooks_nothing_is_said(tap: Tap, question: str) -> None:
    install()
    uninstall()
    create_agent(chat(tap), [order_status]).invoke(saying(question))
    assert not [name for step in tap.steps for name in step.headers if name.startswith("x-saga")]


def test_langgraph_is_as_it_was() -> None:
    before = list(context._configure_hooks)
    undo = langgraph_hook.install(langgraph.pregel)
    assert len(context._configure_hooks) == len(before) + 1
    undo()
    assert context._configure_hooks == before
