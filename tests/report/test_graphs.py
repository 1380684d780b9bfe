"""Graphs as Mermaid and DOT: any label can be in them, and none can break out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.report.graphs import dot, mermaid

GRAPH: dict[str, Any] = {
    "nodes": [
        {"id": "plan"},
        {"id": "act", "kind": "tool", "tool": "bash"},
        {"id": "ask", "kind": "human"},
        {"id": "which", "kind": "router"},
        {"id": "__end__", "kind": "join"},
    ],
    "edges": [
        {"source": "plan", "target": "act", "p": 0.75, "conditional": True},
        {"source": "act", "target": "plan"},
        {"source": "plan", "target": "__end__", "conditional": True, "join": "all"},
    ],
    "start": ["plan"],
}
MERMAID = """\
flowchart TD
    n0["plan"]
    n1[["act: bash"]]
    n2[/"ask"/]
    n3{"which"}
    n4(("#95;#95;end#95;#95;"))
    start((" "))
    start --> n0
    n0 -.->|"75%"| n1
    n1 --> n0
    n0 -.->|"all"| n4
"""
DOT = """\
digraph saga {
    n0 [label="plan", shape=box];
    n1 [label="act: bash", shape=component];
    n2 [label="ask", shape=parallelogram];
    n3 [label="which", shape=diamond];
    n4 [label="__end__", shape=circle];
    start [label="", shape=point];
    start -> n0;
    n0 -> n1 [style=dashed, label="75%"];
    n1 -> n0;
    n0 -> n4 [style=dashed, label="all"];
}
"""


def test_a_graph_as_mermaid() -> None:
    assert mermaid(GRAPH) == MERMAID


def test_a_graph_as_dot() -> None:
    assert dot(GRAPH) == DOT


@given(st.text(min_size=1))
def test_any_label_is_read_back_from_mermaid(label: str) -> None:
    text = mermaid({"nodes": [{"id": label}]})
    first, line, rest = text.split("\n")
    found = re.fullmatch(r' {4}n0\["([^"\[\]<>{}|`\\;]*(?:#\d+;[^"\[\]<>{}|`\\;]*)*)"\]', line)
    assert (first, rest) == ("flowchart TD", "")
    assert found is not None
    assert re.sub(r"#(\d+);", lambda entity: chr(int(entity[1])), found[1]) == label


@given(st.text(st.characters(exclude_characters="\r\0"), min_size=1))
def test_any_label_is_read_back_from_dot(label: str) -> None:
    lines = dot({"nodes": [{"id": label}]}).split("\n")
    found = re.fullmatch(r' {4}n0 \[label="((?:[^"\\]|\\.)*)", shape=box\];', lines[1], re.DOTALL)
    assert len(lines) == 4
    assert found is not None
    kept = {"n": "\n", '"': '"', "\\": "\\"}
    assert re.sub(r"\\(.)", lambda escape: kept[escape[1]], found[1]) == label


@pytest.mark.parametrize("draw", [mermaid, dot])
@pytest.mark.parametrize("more", [{"start": ["x"]}, {"edges": [{"source": "a", "target": "x"}]}])
def test_a_node_that_is_not_there_is_an_error(draw: Any, more: Any) -> None:
    with pytest.raises(ValueError, match="node 'x' is not there"):
        draw({"nodes": [{"id": "a"}], **more})
