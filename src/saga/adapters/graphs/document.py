"""A ``saga.graph.v1`` document in the making."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from saga.adapters.identity import text
from saga.report.learned import FORMAT

END: Final = "__end__"
MAX_LABEL: Final = 128
"""Of a node or a tool, as the gateway takes it."""


class Draft:
    """Nodes and edges in the order in which they were told; what is told twice counts once."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, Any]] = {}
        self._edges: dict[tuple[str, str], dict[str, Any]] = {}

    def node(self, name: object, kind: str = "llm", *, tool: object = None) -> str:
        """Its id. A node that is there stays as it is."""
        key = label(name)
        node = {"id": key, "kind": kind}
        if tool is not None:
            node["tool"] = label(tool)
        self._nodes.setdefault(key, node)
        return key

    def edge(
        self, source: object, target: object, *, conditional: bool = False, join: str | None = None
    ) -> None:
        """Its nodes come to be if they are not there; ``join``: whether ``all`` or ``any`` of the
        edges into the target must have been taken."""
        key = self.node(source), self.node(target)
        edge = {"source": key[0], "target": key[1], "conditional": conditional}
        if join is not None:
            edge["join"] = join
        self._edges.setdefault(key, edge)

    def ends_at(self, source: object, *, conditional: bool = False) -> None:
        """The workflow may be over after this node; told as an edge, since it has a chance."""
        self.node(END, "join")
        self.edge(source, END, conditional=conditional)

    def document(self, start: Iterable[object] = ()) -> dict[str, Any]:
        """ValueError if there is no node."""
        if not self._nodes:
            raise ValueError("the graph has no nodes")
        leaving = {source for source, _ in self._edges}
        return {
            "format": FORMAT,
            "nodes": list(self._nodes.values()),
            "edges": list(self._edges.values()),
            "start": list(dict.fromkeys(label(name) for name in start)),
            "end": [name for name in self._nodes if name not in leaving],
        }


def label(name: object) -> str:
    """ValueError if there is nothing in it."""
    told = text(name)
    if len(told) > MAX_LABEL:
        told = text(told + " " * 200)  # the form that ends with a digest
        told = f"{told[: MAX_LABEL - 17]}{told[-17:]}"
    if not told:
        raise ValueError("a node has no name")
    return told
