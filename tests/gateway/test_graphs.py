"""Declared graphs: how many calls of a model a walk through one takes."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.core.graph import END, START
from saga.core.return_times import NO_TOOL
from saga.gateway.graphs import (
    MAX_NODES,
    GraphDocument,
    GraphError,
    critical_steps,
    mean_steps,
    transitions,
)


def graph(nodes: list[Any], *edges: Any, start: list[str] | None = None) -> GraphDocument:
    """Nodes are ids of LLM steps or (id, kind); edges are (source, target) or with a chance."""
    document = {
        "nodes": [
            {"id": node} if isinstance(node, str) else {"id": node[0], "kind": node[1]}
            for node in nodes
        ],
        "edges": [
            {"source": source, "target": target} | ({"p": p[0]} if p else {})
            for source, target, *p in edges
        ],
        "start": start or [],
    }
    return msgspec.convert(document, GraphDocument)


@pytest.mark.parametrize(
    ("document", "steps"),
    [
        (graph(["a"]), 1),
        (graph(["a", "b", "c"], ("a", "b"), ("b", "c")), 3),
        (graph(["a", ("t", "tool"), "b"], ("a", "t"), ("t", "b")), 2),
        # An agent that calls a tool three times out of four: 1 / (1 - 3/4) steps.
        (graph(["a", ("t", "tool")], ("a", "t", 0.75), ("t", "a")), 4),
        (graph(["a", "b", "c"], ("a", "b", 0.5), ("a", "c")), 2),
        (graph(["a", "b", "c"], ("a", "b"), ("a", "c")), 2),
        (graph(["a", "b", "c"], ("a", "b"), ("b", "c", 0.5), ("c", "b")), 4),
        (graph(["a", "b", "c"], ("b", "c"), start=["a", "b"]), 1.5),
        (graph(["a", "b"], ("a", "b", 0.25)), 1.25),
        (graph(["a", "b"], ("a", "b", 0.5), ("a", "b", 0.5)), 2),
    ],
)
def test_steps_of_small_graphs(document: GraphDocument, steps: float) -> None:
    assert mean_steps(document) == pytest.approx(steps)


@pytest.mark.parametrize(
    "document",
    [
        graph(["a"], ("a", "a")),
        graph(["a", "b"], ("a", "b"), ("b", "a", 1.0)),
        graph(["a", "b", "c"], ("a", "b"), ("b", "c", 1.0), ("c", "b")),
        graph([("t", "tool")]),
    ],
)
def test_walks_without_an_end_or_without_a_step_have_no_number(document: GraphDocument) -> None:
    assert mean_steps(document) is None


def test_what_no_walk_can_reach_does_not_matter() -> None:
    trap = [("x", "y"), ("y", "x")]
    assert mean_steps(graph(["a", "b", "x", "y"], ("a", "b"), *trap)) == 2
    assert mean_steps(graph(["a", "b", "x", "y"], ("a", "b"), ("b", "x", 0.1), *trap)) is None


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (graph(["a", "a"]), "twice"),
        (graph(["a"], ("a", "b")), "node 'b' is not there"),
        (graph(["a"], ("b", "a")), "node 'b' is not there"),
        (graph(["a"], start=["b"]), "node 'b' is not there"),
        (graph(["a", "b"], ("a", "b", 0.7), ("a", "a", 0.7)), "add up to 1.4"),
    ],
)
def test_contradictions_are_named(document: GraphDocument, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        mean_steps(document)


def test_the_largest_graph() -> None:
    names = [f"n{number}" for number in range(MAX_NODES)]
    chain = graph(names, *itertools.pairwise(names))
    assert mean_steps(chain) == pytest.approx(MAX_NODES)


@given(st.data())
def test_the_number_is_what_walks_take_on_average(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 4))
    names = [f"n{number}" for number in range(size)]
    chance = st.integers(0, 9).map(lambda tenths: tenths / 10 / size)
    moves = [[data.draw(chance) for _ in names] for _ in names]
    edges = [(a, b, moves[i][j]) for i, a in enumerate(names) for j, b in enumerate(names)]
    found = mean_steps(graph(names, *edges))
    # The sum over all lengths of the chance to be at a node still.
    here = np.array([1.0] + [0.0] * (size - 1))
    expected = 0.0
    for _ in range(600):
        expected += float(here.sum())
        here = here @ np.array(moves)
    assert found == pytest.approx(expected, rel=1e-6)


# ---- branches that run at once


def forked(*edges: tuple[str, str], join: str, nodes: list[Any]) -> GraphDocument:
    """All of these edges are taken; those into ``join`` are waited for."""
    document = {
        "nodes": [{"id": node} if isinstance(node, str) else node for node in nodes],
        "edges": [
            {"source": source, "target": target, "conditional": False}
            | ({"join": "all"} if target == join else {})
            for source, target in edges
        ],
    }
    return msgspec.convert(document, GraphDocument)


FORK = forked(
    ("plan", "search"), ("plan", "read"), ("read", "think"), ("search", "sum"), ("think", "sum"),
    join="sum",
    nodes=["plan", "search", "read", "think", "sum"],
)  # fmt: skip


def test_all_branches_count_and_the_longest_is_critical() -> None:
    assert mean_steps(FORK) == pytest.approx(5), "the join runs once"
    assert critical_steps(FORK) == pytest.approx(4), "plan, read, think, sum"


def test_without_branches_every_step_is_critical() -> None:
    loop = graph(["a", ("t", "tool")], ("a", "t", 0.75), ("t", "a"))
    assert critical_steps(loop) == pytest.approx(4, abs=1e-6)
    choice = graph(["a", "b", "c"], ("a", "b", 0.5), ("b", "c"))
    assert critical_steps(choice) == pytest.approx(mean_steps(choice) or 0)


def test_a_walk_that_never_ends_has_no_longest_path() -> None:
    assert critical_steps(graph(["a", "b"], ("a", "b"), ("b", "a"))) is None
    aside = graph(["a", "b", "c"], ("b", "c"), ("c", "b"))
    assert critical_steps(aside) == mean_steps(aside) == 1, "no walk comes to the loop"
    endless = forked(("a", "a"), ("a", "b"), join="", nodes=["a", "b"])
    assert mean_steps(endless) is None
    assert critical_steps(endless) is None


@given(st.data())
def test_the_critical_path_is_no_longer_than_all_there_is(data: st.DataObject) -> None:
    """Of any graph that goes forward: some edges are taken by chance, others all at once."""
    number = data.draw(st.integers(1, 7))
    pairs = st.tuples(st.integers(0, number - 1), st.integers(0, number - 1), st.booleans())
    edges = [
        {"source": f"n{a}", "target": f"n{b}", "conditional": chosen}
        for a, b, chosen in data.draw(st.lists(pairs, max_size=14))
        if a < b
    ]
    document = {"nodes": [{"id": f"n{n}"} for n in range(number)], "edges": edges}
    found = msgspec.convert(document, GraphDocument)
    critical, everything = critical_steps(found), mean_steps(found)
    assert critical is not None
    assert everything is not None
    assert 1 <= critical <= everything + 1e-6


# ---- what follows what


def test_a_loop_over_tools() -> None:
    found = transitions(
        graph(
            ["think", ("search", "tool"), ("edit", "tool")],
            ("think", "search", 0.5),
            ("think", "edit", 0.3),
            ("search", "think"),
            ("edit", "think"),
        )
    )
    for label in (START, "search", "edit"):
        assert found[label] == pytest.approx({"search": 0.5, "edit": 0.3, NO_TOOL: 0.2}, abs=1e-5)
    assert found[NO_TOOL] == pytest.approx({END: 1})


def test_what_follows_depends_on_where_a_tool_leads_to() -> None:
    nodes = ["think", ("search", "tool"), "write", ("edit", "tool")]
    found = transitions(
        graph(nodes, ("think", "search"), ("search", "write"), ("write", "edit")),
    )
    assert found == {START: {"search": 1.0}, "search": {"edit": 1.0}, "edit": {END: 1.0}}


def test_routers_and_models_in_a_row_are_walked_through() -> None:
    nodes = ["think", ("choose", "router"), "again", ("search", "tool")]
    found = transitions(
        graph(nodes, ("think", "choose"), ("choose", "again", 0.25), ("again", "search"))
    )
    assert found[START] == pytest.approx({NO_TOOL: 1})
    assert found[NO_TOOL] == pytest.approx({"search": 0.25, END: 0.75})


@given(st.data())
def test_chances_of_any_graph_sum_to_one(data: st.DataObject) -> None:
    kinds = st.sampled_from(["llm", "tool", "router", "join", "human"])
    nodes = [
        (f"n{number}", kind)
        for number, kind in enumerate(data.draw(st.lists(kinds, min_size=1, max_size=6)))
    ]
    name = st.sampled_from([name for name, _ in nodes])
    edges = data.draw(st.lists(st.tuples(name, name), max_size=12))
    for chances in transitions(graph(nodes, *edges)).values():
        assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
        assert all(0 < p <= 1 + 1e-9 for p in chances.values())


def test_what_was_learned_can_be_declared() -> None:
    learned = [{"id": "grep", "tool": "grep"}, {"id": "edit", "tool": "edit"}]
    document = {"nodes": learned, "edges": [{"source": "grep", "target": "edit", "p": 0.9}]}
    assert transitions(msgspec.convert(document, GraphDocument)) == {
        START: {"grep": pytest.approx(1)},
        "grep": {"edit": pytest.approx(0.9), END: pytest.approx(0.1)},
        "edit": {END: pytest.approx(1)},
    }


def test_tools_in_circles_end_somewhere() -> None:
    """The worst that can be said: everything leads everywhere, and nowhere is a model."""
    names = [f"n{number}" for number in range(MAX_NODES)]
    edges = [
        (one, names[(7 * number + step) % MAX_NODES])
        for number, one in enumerate(names)
        for step in range(1, 17)
    ]
    assert transitions(graph([(name, "tool") for name in names], *edges, start=names)) is not None


def test_the_largest_graph_takes_no_time_to_speak_of() -> None:
    names = [f"n{number}" for number in range(MAX_NODES)]
    edges = [
        (one, names[(number + step) % MAX_NODES])
        for number, one in enumerate(names)
        for step in range(1, 17)
    ]
    assert transitions(graph(list(names), *edges))
