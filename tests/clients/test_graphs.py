"""Graphs of real workflows that need no gateway to be built."""

from __future__ import annotations

from typing import Any

import msgspec
from agent_framework import Case, Default, WorkflowBuilder, WorkflowContext, executor
from google.adk.workflow import START, Workflow
from strands import Agent
from strands.models.openai import OpenAIModel
from strands.multiagent import GraphBuilder
from workflows import Workflow as LlamaWorkflow
from workflows import step
from workflows.events import Event, StartEvent, StopEvent

from saga.adapters import graph_of
from saga.gateway.graphs import GraphDocument, mean_steps


def edges(document: Any) -> set[tuple[str, str, bool]]:
    assert mean_steps(msgspec.convert(document, GraphDocument)) is not None
    return {(e["source"], e["target"], e.get("conditional", False)) for e in document["edges"]}


class Draft(Event):
    pass


class Fault(Event):
    pass


class Writing(LlamaWorkflow):
    @step
    async def write(self, event: StartEvent | Fault) -> Draft:
        return Draft()

    @step
    async def review(self, event: Draft) -> Fault | StopEvent:
        return StopEvent()


def test_llama_index() -> None:
    document = graph_of(Writing())
    assert document["start"] == ["write"]
    assert edges(document) == {
        ("write", "review", False),
        ("review", "write", True),
        ("review", "__end__", True),
    }
    assert graph_of(Writing) == document


@executor(id="plan")
async def plan(text: str, context: WorkflowContext[str]) -> None:
    await context.send_message(text)


@executor(id="short")
async def short(text: str, context: WorkflowContext[str]) -> None:
    await context.send_message(text)


@executor(id="long")
async def long(text: str, context: WorkflowContext[str]) -> None:
    await context.send_message(text)


@executor(id="done")
async def done(text: str, context: WorkflowContext[str]) -> None:
    await context.send_message(text)


@executor(id="join")
async def join(texts: list[str], context: WorkflowContext[str]) -> None:
    await context.send_message(texts[0])


def test_agent_framework() -> None:
    cases = [Case(lambda text: len(text) < 9, short), Default(long)]
    builder = WorkflowBuilder(start_executor=plan).add_switch_case_edge_group(plan, cases)
    document = graph_of(builder.add_edge(short, done).build())
    assert document["start"] == ["plan"]
    assert edges(document) == {
        ("plan", "short", True),
        ("plan", "long", True),
        ("short", "done", False),
    }
    joined = WorkflowBuilder(start_executor=plan).add_fan_out_edges(plan, [short, long])
    document = graph_of(joined.add_fan_in_edges([short, long], join).build())
    assert edges(document) == {
        ("plan", "short", False),
        ("plan", "long", False),
        ("short", "join", False),
        ("long", "join", False),
    }
    assert [edge.get("join") for edge in document["edges"]] == [None, None, "all", "all"]


def test_strands() -> None:
    model = OpenAIModel(client_args={"api_key": "any"}, model_id="tiny")
    builder = GraphBuilder()
    for name in ("plan", "act", "check"):
        builder.add_node(Agent(model=model, name=name, callback_handler=None), name)
    builder.set_max_node_executions(9)
    builder.add_edge("plan", "act")
    builder.add_edge("act", "check", condition=lambda state: True)
    document = graph_of(builder.build())
    assert document["start"] == ["plan"]
    assert document["end"] == ["check"]
    assert edges(document) == {("plan", "act", False), ("act", "check", True)}


def test_a_workflow_of_adk() -> None:
    def plan(node_input: str) -> str:
        return node_input

    def act(node_input: str) -> str:
        return node_input

    document = graph_of(Workflow(name="w", edges=[(START, plan, act)]))
    assert document["start"] == ["plan"]
    assert edges(document) == {("plan", "act", False)}
