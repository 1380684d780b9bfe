"""Learned graphs as documents, tables and pictures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.core.graph import AgentExecutionGraph
from saga.gateway.graphs import GraphDocument, mean_steps
from saga.report.graph_figure import draw
from saga.report.learned import learned_graph, table

LABELS = st.one_of(st.none(), st.sampled_from("abc"), st.text(max_size=12))


def learned(sessions: list[list[str | None]]) -> AgentExecutionGraph:
    graph = AgentExecutionGraph()
    for tools in sessions:
        before: str | None = None
        for number, tool in enumerate(tools):
            if number:
                graph.observe_step(before, tool, new_tokens=100)
            else:
                graph.observe_start(tool)
            before = tool
        graph.observe_end(before, len(tools))
    return graph


@given(st.lists(st.lists(LABELS, min_size=1, max_size=6), max_size=6))
def test_chances_of_any_graph_sum_to_one_with_those_of_the_end(
    sessions: list[list[str | None]],
) -> None:
    document = learned_graph(learned(sessions), lambda label, p: None)
    ids = {node["id"] for node in document["nodes"]}
    assert len(ids) == len(document["nodes"])
    assert {edge[end] for edge in document["edges"] for end in ("source", "target")} <= ids
    assert set(document["start"]) <= ids
    for node in document["nodes"]:
        leaving = sum(edge["p"] for edge in document["edges"] if edge["source"] == node["id"])
        assert leaving + node["p_end"] == pytest.approx(1)
    assert table(document).isprintable() or "\n" in table(document)


def test_what_was_learned_can_be_declared() -> None:
    """The document is one that a gateway accepts, and walks of it are as long as the sessions."""
    import msgspec

    sessions: list[list[str | None]] = [["find", "edit"], ["find", "find", "edit", "edit"]] * 10
    document = learned_graph(learned(sessions), lambda label, p: 2_000_000)
    declared = msgspec.convert(document, GraphDocument)
    assert mean_steps(declared) == pytest.approx(3)
    [find] = [node for node in document["nodes"] if node["id"] == "find"]
    assert find["return_p50_s"] == 2.0


def test_a_picture_of_any_size_is_drawn() -> None:
    for sessions in ([], [["only"]], [[f"tool {n} $x" for n in range(40)]]):
        document = learned_graph(learned(sessions), lambda label, p: 100)  # type: ignore[arg-type]
        assert draw(document, title="agents").startswith(b"\x89PNG")


def test_the_table_is_cut_and_says_so() -> None:
    document = learned_graph(learned([[f"tool {n}" for n in range(40)]]), lambda label, p: None)
    told = table(document, most=5)
    assert "and 35 more" in told
    assert len(told.splitlines()) == 7
