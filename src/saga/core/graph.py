"""Agent execution graphs: what a workflow of this type does next, learned from its steps.

Nodes are steps labelled by the tool they call, edges carry transition counts, and every node keeps
the mean tokens it adds (paper section 3: G = (V, E, P, phi)). A client may declare an agent type's
mean number of steps; then the linear ReAct chain with ``p_term = 1 / mean_steps`` holds until
enough sessions have been seen.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING

from saga.core.return_times import NO_TOOL, Quantiles

if TYPE_CHECKING:
    from saga.core.policy import SessionView

START = "<start>"
"""The label of a session before its first step. No node: what it does is what sessions do."""
END = "<end>"
OTHER = "<other>"
DECLARED_SESSIONS = 10.0
"""Sessions seen that a declared mean number of steps counts for, where memory is planned."""
UNDECLARED = (3.0, 20.0)
"""Sessions and their steps that are assumed where nothing is declared."""
MIN_WORKFLOWS = 10
"""Finished ones to see before anything is said about how long they take at least."""


@dataclass(slots=True)
class Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def value(self, default: float) -> float:
        return self.total / self.count if self.count else default


@dataclass(slots=True)
class Node:
    """A step that called one tool: what followed, and how many tokens it brought."""

    successors: Counter[str] = field(default_factory=Counter)
    num_left: int = 0
    observation_tokens: Mean = field(default_factory=Mean)
    """New prompt tokens of the step that follows."""


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """Expected, from the current step on."""

    steps: float = 0.0
    new_tokens: float = 0.0
    output_tokens: float = 0.0

    def __add__(self, other: RemainingWork) -> RemainingWork:
        return RemainingWork(
            self.steps + other.steps,
            self.new_tokens + other.new_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(slots=True)
class AgentExecutionGraph:
    """What sessions of one agent type do. Bounded: rare tools share one node."""

    min_sessions: int = 30
    """Sessions to see before learned probabilities are used (paper section 3.4)."""
    max_nodes: int = 64
    nodes: dict[str, Node] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    """What first steps called."""
    num_sessions: int = 0
    steps: Mean = field(default_factory=Mean)
    output_tokens: Mean = field(default_factory=Mean)
    new_tokens: Mean = field(default_factory=Mean)
    ideal_us: Mean = field(default_factory=Mean)
    """GPU time plus return times of finished workflows: their TCT without any queueing."""
    durations_us: Quantiles = field(default_factory=Quantiles)
    """The same of the last ones, or their TCT where that is less: sessions run side by side."""
    cost_us: Mean = field(default_factory=Mean)
    """What finished workflows took, as fairness counts it."""

    def observe_start(self, label: str | None) -> None:
        """The first step of a session called this."""
        self.starts[self._bounded(label, self.starts)] += 1

    def observe_step(self, before: str | None, after: str | None, *, new_tokens: int) -> None:
        """A session went from a step that called ``before`` to the next, which called ``after``."""
        node = self._node(before)
        node.successors[self._bounded(after, node.successors)] += 1
        node.num_left += 1
        node.observation_tokens.add(new_tokens)
        self.new_tokens.add(new_tokens)

    def observe_end(self, last: str | None, num_steps: int) -> None:
        node = self._node(last)
        node.successors[END] += 1
        node.num_left += 1
        self.num_sessions += 1
        self.steps.add(num_steps)

    def p_continue(self, label: str | None, declared_steps: float | None = None) -> float | None:
        """Chance that another step follows; None while nothing is declared or learned."""
        if self.num_sessions >= self.min_sessions:
            node = None if label == START else self.nodes.get(self._label(label))
            if node is not None and node.num_left:
                return 1.0 - node.successors[END] / node.num_left
            return 1.0 - 1.0 / max(1.0, self.steps.value(1.0))
        if declared_steps is not None:
            return 1.0 - 1.0 / max(1.0, declared_steps)
        return None

    def next_label(self, label: str | None, *, min_probability: float = 0.7) -> str | None:
        """The most likely next step, if its edge is sure enough (theta_conf, paper section 3.4)."""
        node = self.nodes.get(self._label(label))
        if node is None or self.num_sessions < self.min_sessions:
            return None
        best, count = max(node.successors.items(), key=lambda item: (item[1], item[0]))
        return best if count >= min_probability * node.num_left else None

    def p_reuse(
        self, label: str | None, cached_tokens: int, declared_steps: float | None = None
    ) -> float | None:
        """Eq. 4 and 5: chance of another step times the overlap of its prompt with the cache.

        Edges below theta_conf name no next step, yet some step follows: their mass counts here.
        """
        p = self.p_continue(label, declared_steps)
        if p is None:
            return None
        node = self.nodes.get(self._label(label))
        expected = node.observation_tokens if node is not None else self.new_tokens
        total = cached_tokens + expected.value(0.0)
        return p * cached_tokens / total if total else 0.0

    def remaining(
        self, label: str | None, declared_steps: float | None = None, *, max_depth: int = 64
    ) -> RemainingWork:
        """Expected steps and tokens still to come, at most ``max_depth`` steps.

        If any step follows, as many follow as sessions have on average: step counts are close to
        geometric, so what was done already does not tell how much is left.
        """
        learned = self.num_sessions >= self.min_sessions
        mean = self.steps.value(10.0)
        if not learned and declared_steps is not None:
            mean = declared_steps
        p = 1.0 if label == START else self.p_continue(label, declared_steps)
        if p is None:
            p = 1.0 - 1.0 / max(1.0, mean)
        steps = min(float(max_depth), p * max(1.0, mean))
        return RemainingWork(
            steps, steps * self.new_tokens.value(400.0), steps * self.output_tokens.value(200.0)
        )

    def usual_us(self, steps: float) -> float | None:
        """What so many steps take with the return times between them, without queueing; None while
        no workflow has finished."""
        if not self.ideal_us.count or not self.steps.total:
            return None
        return steps * self.ideal_us.total / self.steps.total

    def fastest_us(self, p: float) -> int | None:
        """What all but ``p`` of the workflows take at least, without queueing; None while too few
        have finished."""
        enough = len(self.durations_us) >= MIN_WORKFLOWS
        return self.durations_us.quantile(p) if enough else None

    def growth_tokens(self, context_tokens: int, declared_steps: float | None = None) -> int:
        """By how much the context of a session will have grown when it weighs most, counting the
        chance that the session has ended by then.

        With g tokens a step and a chance of 1/m to end with each, ``(c + k g) exp(-k / m)`` is
        largest at ``k = m - c/g``. Sessions under way count in m, else the short ones would, which
        end first.
        """
        prior = UNDECLARED if declared_steps is None else (DECLARED_SESSIONS, declared_steps)
        seen_steps = self.new_tokens.count + self.num_sessions
        mean_steps = (seen_steps + prior[0] * prior[1]) / (self.num_sessions + prior[0])
        most = mean_steps * (self.new_tokens.value(400.0) + self.output_tokens.value(200.0))
        if context_tokens >= most:
            return 0
        return int(most * exp(context_tokens / most - 1.0)) - context_tokens

    def _label(self, label: str | None) -> str:
        label = label or NO_TOOL
        if label in (START, END):  # a tool of that name
            return OTHER
        return label if label in self.nodes or len(self.nodes) < self.max_nodes else OTHER

    def _bounded(self, label: str | None, counts: Counter[str]) -> str:
        """Its label there, unless there are too many."""
        name = self._label(label)
        return name if name in counts or len(counts) < self.max_nodes else OTHER

    def _node(self, label: str | None) -> Node:
        name = self._label(label)
        node = self.nodes.get(name)
        if node is None:
            node = self.nodes[name] = Node()
        return node


class GraphStore:
    """One graph per agent type; the one that has not learned for longest is forgotten.

    What is to come of a session is asked here, not of its graph: a store may know better.
    """

    def __init__(self, max_types: int = 1024) -> None:
        self._graphs: OrderedDict[str, AgentExecutionGraph] = OrderedDict()
        self._max_types = max_types

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, agent_type: str) -> AgentExecutionGraph:
        """The type's graph to look at, an empty one if it is not known. Leaves no trace."""
        graph = self._graphs.get(agent_type)
        return AgentExecutionGraph() if graph is None else graph

    def p_reuse(self, session: SessionView) -> float | None:
        """Chance that the session's next prompt finds what is resident of it (Eq. 4 and 5)."""
        workflow = session.workflow
        graph = self[workflow.agent_type]
        return graph.p_reuse(session.tool, session.resident_tokens, workflow.mean_steps)

    def remaining(self, session: SessionView) -> RemainingWork:
        """What the session has still to do after its last step."""
        workflow = session.workflow
        label = session.tool if session.num_steps else START
        return self[workflow.agent_type].remaining(label, workflow.mean_steps)

    def known(self) -> Sequence[str]:
        """The agent types of which something was learned."""
        return list(self._graphs)

    def learn(self, agent_type: str) -> AgentExecutionGraph:
        """The type's graph to write to."""
        graph = self._graphs.get(agent_type)
        if graph is None:
            graph = self._graphs[agent_type] = AgentExecutionGraph()
            if len(self._graphs) > self._max_types:
                self._graphs.popitem(last=False)
        else:
            self._graphs.move_to_end(agent_type)
        return graph
