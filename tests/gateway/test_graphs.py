"""Declared graphs: how many calls of a model a walk through one takes."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.graphs import MAX_NODES, GraphDocument, GraphError, mean_steps


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
