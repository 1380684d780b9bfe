"""What the scheduler would have learned from the workflows of a trace, without playing them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from saga.core.graph import AgentExecutionGraph
from saga.core.return_times import ReturnTimes
from saga.report.learned import learned_graph
from saga.traces.script import SessionScript, WorkflowScript

WINDOW = 1 << 20
"""Return times of one tool: here all of them count."""


def learned_graphs(workflows: Iterable[WorkflowScript]) -> dict[str, dict[str, Any]]:
    """A document of each agent type. A gap of 0 was not told and counts as none."""
    graphs: dict[str, AgentExecutionGraph] = {}
    times = ReturnTimes(window=WINDOW)
    for workflow in workflows:
        graph = graphs.setdefault(workflow.agent_type, AgentExecutionGraph())
        for session in workflow.sessions:
            _learn(session, graph, times, workflow.agent_type)
    return {
        kind: learned_graph(graph, partial(times.quantile, owner=kind))
        for kind, graph in graphs.items()
    }


def _learn(
    session: SessionScript, graph: AgentExecutionGraph, times: ReturnTimes, kind: str
) -> None:
    before = None
    for step in session.steps:
        if before is None:
            graph.observe_start(step.tool)
        else:
            graph.observe_step(before.tool, step.tool, new_tokens=step.new_tokens)
            if before.gap_us:
                times.observe(before.tool, before.gap_us, owner=kind)
        before = step
    graph.observe_end(session.steps[-1].tool, len(session.steps))
