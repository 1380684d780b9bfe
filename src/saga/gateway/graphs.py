"""Declared agent execution graphs (``saga.graph.v1``) and what is read from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from saga.core.graph import END, START
from saga.core.return_times import NO_TOOL

Label = Annotated[str, Meta(min_length=1, max_length=128)]
MAX_NODES = 256
MAX_WALK = 64
"""Steps of a walk that count."""
MAX_MOVES = 50_000
"""Moves that are looked at before the walks of a large graph are cut short."""
NEGLIGIBLE = 1e-6
NOWHERE = ""
"""Behind the last node of a walk: no node can have this id."""
MAX_ITERATIONS = 500
MOST_STEPS = 1e6
K = TypeVar("K")
Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


class GraphError(ValueError):
    """A graph that contradicts itself."""


class Node(Struct):
    id: Label
    kind: Literal["llm", "tool", "router", "join", "human"] = "llm"
    tool: Label | None = None
    """Of a call of a model: the tool that its answer calls."""


class Edge(Struct, omit_defaults=True):
    source: Label
    target: Label
    p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Chance that this edge is the next one; None: the rest, shared equally."""
    conditional: bool | None = None
    """False, without ``p``: this edge is always taken. Several of one node are branches that run
    at once."""
    join: Literal["all", "any"] | None = None
    """``all``: the target waits for all such edges into it, and runs once."""


class GraphDocument(Struct):
    nodes: Annotated[list[Node], Meta(min_length=1, max_length=MAX_NODES)]
    edges: Annotated[list[Edge], Meta(max_length=16 * MAX_NODES)] = []
    start: Annotated[list[Label], Meta(max_length=MAX_NODES)] = []
    """Where it begins, with equal chances; empty: at the first node."""


def mean_steps(graph: GraphDocument) -> float | None:
    """Expected number of LLM steps of a walk from start to end; None if walks never end.

    Branches that run at once count with all their steps. Visits of an absorbing Markov chain:
    ``(I - P)^-1`` from the start, over the nodes that a walk can reach. Raises GraphError.
    """
    at = _numbers(graph)
    waiting = Counter(edge.target for edge in graph.edges if edge.join == "all")
    moves = np.zeros((len(at), len(at)))
    for name, leaving in _leaving(graph).items():
        for edge, p in zip(leaving, _chances(name, leaving), strict=True):
            weight = 1.0 if _is_branch(edge, leaving) else p
            if edge.join == "all":
                weight /= waiting[edge.target]
            moves[at[name], at[edge.target]] += weight
    begin = _begin(graph, at)
    reached = _reached(moves, begin)
    calls = _calls(graph)[reached]
    try:
        inside = np.eye(len(reached)) - moves[np.ix_(reached, reached)]
        visits = np.linalg.solve(inside.T, begin[reached])
    except np.linalg.LinAlgError:
        return None
    steps = float(visits @ calls)
    return steps if 0 < steps < MOST_STEPS and bool(np.all(visits > -1e-9)) else None


def critical_steps(graph: GraphDocument) -> float | None:
    """Expected number of LLM steps on the longest path: of branches that run at once only the
    longest counts. None if walks never end. The graph is one that ``mean_steps`` has accepted.

    A fixed point, ``T = calls + max(P T, longest branch)``, found by iteration.
    """
    at = _numbers(graph)
    chosen, branches = np.zeros((len(at), len(at))), []
    for name, leaving in _leaving(graph).items():
        for edge, p in zip(leaving, _chances(name, leaving), strict=True):
            if _is_branch(edge, leaving):
                branches.append((at[name], at[edge.target]))
            else:
                chosen[at[name], at[edge.target]] += p
    sources, targets = np.array(branches, dtype=np.intp).reshape(-1, 2).T
    begin, calls = _begin(graph, at), _calls(graph).astype(float)
    moves = chosen.copy()
    moves[sources, targets] = 1.0
    reached = np.zeros(len(at), dtype=bool)
    reached[_reached(moves, begin)] = True
    left = calls = np.where(reached, calls, 0.0)
    for _ in range(MAX_ITERATIONS):
        onwards = chosen @ left
        np.maximum.at(onwards, sources, left[targets])
        before, left = left, np.where(reached, calls + onwards, 0.0)
        if left.max() > MOST_STEPS:
            return None
        if np.allclose(left, before, rtol=1e-9, atol=1e-9):
            return float(begin @ left)
    return None


def _numbers(graph: GraphDocument) -> dict[str, int]:
    """Of the nodes, by id. Raises GraphError."""
    at = {node.id: number for number, node in enumerate(graph.nodes)}
    if len(at) < len(graph.nodes):
        raise GraphError("a node's id is there twice")
    named = {name for edge in graph.edges for name in (edge.source, edge.target)}
    if missing := sorted((named | set(graph.start)) - at.keys()):
        raise GraphError(f"node {missing[0]!r} is not there")
    return at


def _leaving(graph: GraphDocument) -> dict[str, list[Edge]]:
    edges: dict[str, list[Edge]] = {}
    for edge in graph.edges:
        edges.setdefault(edge.source, []).append(edge)
    return edges


def _begin(graph: GraphDocument, at: Mapping[str, int]) -> Matrix:
    """The chance of each node to be the first."""
    begin = np.zeros(len(at))
    for name in graph.start or [graph.nodes[0].id]:
        begin[at[name]] += 1.0 / max(1, len(graph.start))
    return begin


def _calls(graph: GraphDocument) -> npt.NDArray[np.bool_]:
    return np.array([node.kind == "llm" for node in graph.nodes])


def _is_branch(edge: Edge, leaving: Sequence[Edge]) -> bool:
    """Whether it is taken beside others."""
    if edge.p is not None or edge.conditional is not False:
        return False
    return sum(one.p is None and one.conditional is False for one in leaving) > 1


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


def transitions(graph: GraphDocument) -> dict[str, dict[str, float]]:
    """What follows the step that calls a tool (``START``: at the beginning): the chance of each
    label to be the next step's, ``END`` if there is none.

    A step is a call of a model; its label is the tool that the walk goes to from there, or
    ``NO_TOOL``. Weighted by how often walks, of ``MAX_WALK`` steps at most, come by. The graph is
    one of which ``mean_steps`` has found nothing to complain.
    """
    walk = _Walk(graph)
    seen: dict[str, dict[str, float]] = {}
    at: dict[tuple[str, str], float] = {}
    for name in graph.start or [graph.nodes[0].id]:
        _add(at, (START, name), 1.0 / max(1, len(graph.start)))
    for _ in range(MAX_WALK):
        then: dict[tuple[str, str], float] = {}
        for (label, name), mass in at.items():
            ends = 1.0
            for following, place, p in walk.steps(name):
                _add(seen.setdefault(label, {}), following, mass * p)
                _add(then, (following, place), mass * p)
                ends -= p
            _add(seen.setdefault(label, {}), END, mass * max(0.0, ends))
        at = {key: mass for key, mass in then.items() if mass > NEGLIGIBLE}
        if not at or walk.num_moves > MAX_MOVES:
            break
    return {
        label: {one: count / total for one, count in follow.items() if count > NEGLIGIBLE}
        for label, follow in seen.items()
        if (total := sum(follow.values())) > 0
    }


class _Walk:
    """Steps of a walk, which takes one of several branches. ``NOWHERE`` is behind the last node."""

    def __init__(self, graph: GraphDocument) -> None:
        self._nodes = {node.id: node for node in graph.nodes}
        self._next = {
            name: list(zip([e.target for e in leaving], _chances(name, leaving), strict=True))
            for name, leaving in _leaving(graph).items()
        }
        self._models: dict[str, dict[str, float]] = {}
        self.num_moves = 0

    def steps(self, name: str) -> Iterator[tuple[str, str, float]]:
        """From before a node: the label of the next step, where the walk is then, its chance."""
        for model, p in self._model_calls(name).items():
            left, own = p, self._nodes[model].tool
            for target, share in self._next.get(model, ()):
                if self._exhausted():
                    return
                node = self._nodes[target]
                label = (node.tool or node.id) if node.kind == "tool" else NO_TOOL
                yield own or label, target, p * share
                left -= p * share
            if left > NEGLIGIBLE:
                yield own or NO_TOOL, NOWHERE, left

    def _model_calls(self, name: str) -> dict[str, float]:
        """The calls of a model that come next, each with its chance."""
        if name not in self._models:
            self._models[name] = self._find_calls(name)
        return self._models[name]

    def _find_calls(self, name: str) -> dict[str, float]:
        found: dict[str, float] = {}
        at = {name: 1.0}
        for _ in range(MAX_WALK):
            then: dict[str, float] = {}
            for place, mass in at.items():
                if place == NOWHERE:
                    continue
                if self._nodes[place].kind == "llm":
                    _add(found, place, mass)
                    continue
                for target, p in self._next.get(place, ()):
                    if self._exhausted():
                        return found
                    _add(then, target, mass * p)
            at = {place: mass for place, mass in then.items() if mass > NEGLIGIBLE}
        return found

    def _exhausted(self) -> bool:
        self.num_moves += 1
        return self.num_moves > MAX_MOVES


def _add(masses: dict[K, float], key: K, mass: float) -> None:
    masses[key] = masses.get(key, 0.0) + mass
