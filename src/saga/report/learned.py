"""Learned agent execution graphs as documents (``saga.graph.v1``) and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saga.core.graph import END, AgentExecutionGraph

FORMAT = "saga.graph.v1"
ReturnTime = Callable[[str, float], int | None]
"""Of a label, at a quantile, in microseconds; None if that is not known."""


def learned_graph(graph: AgentExecutionGraph, return_time: ReturnTime) -> dict[str, Any]:
    """Each node is the step that calls one tool; chances that are missing at a node are those of
    its being the last one. Times in seconds, None where nothing was seen."""
    labels = sorted(
        {*graph.nodes, *graph.starts, *_followers(graph)},
        key=lambda label: (-_visits(graph, label), label),
    )
    return {
        "format": FORMAT,
        "sessions": graph.num_sessions,
        "mean_steps": graph.steps.value(0.0) if graph.num_sessions else None,
        "nodes": [_node(graph, label, return_time) for label in labels],
        "edges": [edge for label in labels for edge in _edges(graph, label)],
        "start": [label for label in labels if graph.starts[label]],
        "starts": dict(graph.starts.most_common()),
    }


def _followers(graph: AgentExecutionGraph) -> set[str]:
    return {label for node in graph.nodes.values() for label in node.successors} - {END}


def _visits(graph: AgentExecutionGraph, label: str) -> int:
    node = graph.nodes.get(label)
    return 0 if node is None else node.num_left


def _node(graph: AgentExecutionGraph, label: str, return_time: ReturnTime) -> dict[str, Any]:
    node, quantiles = graph.nodes.get(label), (return_time(label, 0.5), return_time(label, 0.95))
    p50, p95 = (None if us is None else us / 1e6 for us in quantiles)
    told = node is not None and node.observation_tokens.count
    return {
        "id": label,
        "kind": "llm",
        "tool": label,
        "steps": _visits(graph, label),
        "p_end": node.successors[END] / node.num_left if node is not None else None,
        "return_p50_s": p50,
        "return_p95_s": p95,
        "new_tokens": node.observation_tokens.value(0.0) if node is not None and told else None,
    }


def _edges(graph: AgentExecutionGraph, label: str) -> list[dict[str, Any]]:
    node = graph.nodes.get(label)
    if node is None:
        return []
    return [
        {"source": label, "target": target, "p": count / node.num_left, "count": count}
        for target, count in node.successors.most_common()
        if target != END
    ]


def table(document: Mapping[str, Any], *, most: int = 20) -> str:
    """The nodes that most steps are of, and what follows each."""
    following: dict[str, list[str]] = {}
    for edge in document["edges"]:
        following.setdefault(edge["source"], []).append(f"{edge['target']} {edge['p']:.0%}")
    lines = [
        f"{'tool':24}{'steps':>8}{'return s p50':>14}{'p95':>9}{'new tokens':>12}{'last':>7}  then"
    ]
    for node in document["nodes"][:most]:
        lines.append(
            f"{printable(node['id'])[:23]:24}{node['steps']:>8,}"
            f"{_told(node['return_p50_s'], '.2f'):>14}{_told(node['return_p95_s'], '.2f'):>9}"
            f"{_told(node['new_tokens'], ',.0f'):>12}{_told(node['p_end'], '.0%'):>7}  "
            + printable(", ".join(following.get(node["id"], [])[:4]))
        )
    if len(document["nodes"]) > most:
        lines.append(f"and {len(document['nodes']) - most} more")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Safe to print, whoever made it up."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
