"""Graphs of objects that look like those of a framework; the real ones: ``tests/clients``."""

from __future__ import annotations

from types import SimpleNamespace as Object
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.adapters import graph_of
from saga.adapters.graphs.document import END, MAX_LABEL, Draft, label
from saga.gateway.graphs import GraphDocument, mean_steps


def read(document: Any) -> GraphDocument:
    """As the gateway does."""
    return msgspec.convert(document, GraphDocument)


def edges(document: Any) -> list[tuple[str, str, bool]]:
    told = [(edge["source"], edge["target"]) for edge in document["edges"]]
    return [
        (*pair, edge.get("conditional", False))
        for pair, edge in zip(told, document["edges"], strict=True)
    ]


names = st.text(min_size=1) | st.text(min_size=MAX_LABEL - 1, max_size=MAX_LABEL + 1)


@given(st.lists(st.tuples(names, names), min_size=1, max_size=20))
def test_the_gateway_reads_every_draft(pairs: list[tuple[str, str]]) -> None:
    draft = Draft()
    for source, target in pairs:
        draft.edge(source, target)
    document = draft.document([pairs[0][0]])
    mean_steps(read(document))
    assert len(document["edges"]) == len(set(pairs))
    assert len(document["nodes"]) == len({name for pair in pairs for name in pair})


@given(names, names)
def test_labels_are_short_and_stay_apart(one: str, other: str) -> None:
    assert 0 < len(label(one)) <= MAX_LABEL
    assert (label(one) == label(other)) == (one == other)


def test_a_graph_needs_a_node() -> None:
    with pytest.raises(ValueError, match="no nodes"):
        Draft().document()
    with pytest.raises(ValueError, match="no name"):
        Draft().node("")


@pytest.mark.parametrize("odd", [None, 1, "text", object(), {}, [], lambda: None, Object()])
def test_what_is_no_workflow_is_a_type_error(odd: Any) -> None:
    with pytest.raises(TypeError, match="has no graph that can be read; known are: langgraph"):
        graph_of(odd)


# ---- LangGraph


def test_a_graph_of_nodes() -> None:
    tools = type("ToolNode", (), {})()
    nodes = {name: Object(data=None) for name in ("__start__", "agent", "__end__")}
    nodes["tools"] = Object(data=tools)
    lines = [
        ("__start__", "agent", False),
        ("agent", "tools", True),
        ("agent", "__end__", True),
        ("tools", "agent", False),
    ]
    drawn = Object(
        nodes=nodes,
        edges=[Object(source=a, target=b, conditional=c) for a, b, c in lines],
    )
    compiled = Object(get_graph=lambda xray: drawn)
    document = graph_of(compiled)
    assert document["start"] == ["agent"]
    assert document["end"] == [END]
    assert edges(document) == [
        ("agent", "tools", True),
        ("agent", END, True),
        ("tools", "agent", False),
    ]
    assert {node["id"]: node["kind"] for node in document["nodes"]} == {
        "agent": "llm",
        "tools": "tool",
        END: "join",
    }
    assert mean_steps(read(document)) == pytest.approx(2.0)
    uncompiled = Object(compile=lambda: compiled, add_node=None)
    assert graph_of(uncompiled) == document


# ---- OpenAI Agents


def agent(name: str, *, tools: Any = (), handoffs: Any = ()) -> Any:
    return Object(
        name=name, instructions="", tools=list(tools), handoffs=list(handoffs), mcp_servers=[]
    )


def test_agents_that_hand_over() -> None:
    billing = agent("Billing", tools=[Object(name="refund")])
    billing.mcp_servers.append(Object(name="ledger"))
    hidden = Object(agent_name="Hidden", _agent_ref=lambda: None)
    seen = Object(agent_name="Seen", _agent_ref=lambda: agent("Seen"))
    triage = agent("Triage", handoffs=[billing, hidden, seen])
    billing.handoffs.append(triage)
    document = graph_of(triage)
    assert set(edges(document)) == {
        ("Triage", "Billing", True),
        ("Triage", "Hidden", True),
        ("Triage", "Seen", True),
        ("Triage", END, True),
        ("Billing", "Billing.refund", True),
        ("Billing.refund", "Billing", False),
        ("Billing", "Billing.ledger", True),
        ("Billing.ledger", "Billing", False),
        ("Billing", "Triage", True),
        ("Billing", END, True),
        ("Seen", END, True),
    }
    (refund,) = (node for node in document["nodes"] if node["id"] == "Billing.refund")
    assert refund == {"id": "Billing.refund", "kind": "tool", "tool": "refund"}
    assert mean_steps(read(document)) is not None


# ---- AutoGen


def test_a_directed_graph() -> None:
    def node(activation: str, *targets: tuple[str, str | None]) -> Any:
        told = [Object(target=t, condition=c, condition_function=None) for t, c in targets]
        return Object(activation=activation, edges=told)

    nodes = {
        "write": node("all", ("review", None)),
        "review": node("any", ("write", "again"), ("done", "fine")),
        "done": node("all"),
    }
    graph = Object(nodes=nodes, default_start_node="write", get_start_nodes=lambda: {"write"})
    document = graph_of(graph)
    assert document["start"] == ["write"]
    assert document["end"] == ["done"]
    assert edges(document) == [
        ("write", "review", False),
        ("review", "write", True),
        ("review", "done", True),
    ]
    assert [edge["join"] for edge in document["edges"]] == ["any", "all", "all"]
    assert graph_of(Object(_graph=graph)) == document


# ---- Google ADK


def adk(kind: str, name: str, *below: Any) -> Any:
    one: Any = type(kind, (), {})()
    one.name, one.sub_agents = name, list(below)
    return one


def test_agents_below_others() -> None:
    look = adk("ParallelAgent", "look", adk("LlmAgent", "a"), adk("LlmAgent", "b"))
    loop = adk("LoopAgent", "loop", adk("LlmAgent", "write"), adk("LlmAgent", "review"))
    document = graph_of(adk("SequentialAgent", "all", look, loop))
    assert document["start"] == ["a", "b"]
    assert set(edges(document)) >= {
        ("a", "write", False),
        ("b", "write", False),
        ("write", "review", False),
        ("review", "write", True),
    }
    assert document["end"] == [END]


def test_a_workflow_with_routes() -> None:
    start, plan, act = (Object(name=name) for name in ("__START__", "plan", "act"))
    lines = [(start, plan, None), (plan, act, "go"), (act, plan, None)]
    graph = Object(edges=[Object(from_node=a, to_node=b, route=r) for a, b, r in lines])
    document = graph_of(Object(graph=graph))
    assert document["start"] == ["plan"]
    assert edges(document) == [("plan", "act", True), ("act", "plan", False)]


# ---- CrewAI


def test_a_crew() -> None:
    tasks = [
        Object(name=name, agent=Object(role="Writer"), context=None) for name in ("plan", None)
    ]
    tasks.append(Object(name="sum", agent=None, context=tasks[:]))
    crew = Object(tasks=tasks, agents=[], kickoff=None)
    document = graph_of(crew)
    assert document["start"] == ["plan"]
    assert edges(document) == [
        ("plan", "2: Writer", False),
        ("plan", "sum", False),
        ("2: Writer", "sum", False),
    ]
    assert [edge.get("join") for edge in document["edges"]] == [None, "all", "all"]
