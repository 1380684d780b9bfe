"""Declared agent execution graphs (``saga.graph.v1``) and what is read from them."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

Label = Annotated[str, Meta(min_length=1, max_length=128)]
MAX_NODES = 256
Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


class GraphError(ValueError):
    """A graph that contradicts itself."""


class Node(Struct):
    id: Label
    kind: Literal["llm", "tool", "router", "join", "human"] = "llm"
    tool: Label | None = None


class Edge(Struct):
    source: Label
    target: Label
    p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Chance that this edge is the next one; None: the rest, shared equally."""


class GraphDocument(Struct):
    nodes: Annotated[list[Node], Meta(min_length=1, max_length=MAX_NODES)]
    edges: Annotated[list[Edge], Meta(max_length=16 * MAX_NODES)] = []
    start: list[Label] = []
    """Where it begins, with equal chances; empty: at the first node."""


def mean_steps(graph: GraphDocument) -> float | None:
    """Expected number of LLM steps of a walk from start to end; None if walks never end.

    Visits of an absorbing Markov chain: ``(I - P)^-1`` from the start, over the nodes that a walk
    can reach. Raises GraphError.
    """
    at = {node.id: number for number, node in enumerate(graph.nodes)}
    if len(at) < len(graph.nodes):
        raise GraphError("a node's id is there twice")
    named = {name for edge in graph.edges for name in (edge.source, edge.target)}
    if missing := sorted((named | set(graph.start)) - at.keys()):
        raise GraphError(f"node {missing[0]!r} is not there")
    edges: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        edges.setdefault(edge.source, []).append(edge)
    moves = np.zeros((len(at), len(at)))
    for name, leaving in edges.items():
        for edge, p in zip(leaving, _chances(name, leaving), strict=True):
            moves[at[name], at[edge.target]] += p
    begin = np.zeros(len(at))
    for name in graph.start or [graph.nodes[0].id]:
        begin[at[name]] += 1.0 / max(1, len(graph.start))
    reached = _reached(moves, begin)
    calls = np.array([node.kind == "llm" for node in graph.nodes])[reached]
    try:
        inside = np.eye(len(reached)) - moves[np.ix_(reached, reached)]
        visits = np.linalg.solve(inside.T, begin[reached])
    except np.linalg.LinAlgError:
        return None
    steps = float(visits @ calls)
    return steps if 0 < steps < 1e6 and bool(np.all(visits > -1e-9)) else None


def _chances(name: str, edges: list[Edge]) -> list[float]:
    """Of each of the edges from a node."""
    told = sum(edge.p for edge in edges if edge.p is not None)
    if told > 1.0 + 1e-9:
        raise GraphError(f"the chances of the edges from {name!r} add up to {told:g}")
    num_untold = sum(edge.p is None for edge in edges)
    rest = max(0.0, 1.0 - told) / max(1, num_untold)
    return [rest if edge.p is None else edge.p for edge in edges]


def _reached(moves: Matrix, begin: Matrix) -> Indices:
    """The numbers of the nodes that a walk may come to."""
    found = begin > 0
    while not np.array_equal(more := found | (found @ (moves > 0)), found):
        found = more
    return np.flatnonzero(found)
