"""Documents of ``saga.graph.v1`` as diagrams: Mermaid and DOT.

Pure text. Ids of the diagram are numbers, so that a label can say anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Graph = Mapping[str, Any]
_MERMAID: Final = {
    "llm": ('["', '"]'),
    "tool": ('[["', '"]]'),
    "router": ('{"', '"}'),
    "join": ('(("', '"))'),
    "human": ('[/"', '"/]'),
}
_DOT: Final = {
    "llm": "box",
    "tool": "component",
    "router": "diamond",
    "join": "circle",
    "human": "parallelogram",
}
_LITERAL: Final = frozenset(" ,.:/()-+=%*?!'")


def mermaid(graph: Graph) -> str:
    """A flowchart. ValueError if an edge or ``start`` names a node that is not there."""
    ids = _ids(graph)
    lines = ["flowchart TD"]
    for node in graph["nodes"]:
        before, after = _MERMAID[node.get("kind", "llm")]
        lines.append(f"    {ids[node['id']]}{before}{_entities(_node(node))}{after}")
    if graph.get("start"):
        lines.append('    start((" "))')
    for name in graph.get("start", ()):
        lines.append(f"    start --> {_at(ids, name)}")
    for edge in graph.get("edges", ()):
        arrow = "-.->" if edge.get("conditional") else "-->"
        told = _entities(_edge(edge))
        said = f'|"{told}"|' if told else ""
        lines.append(f"    {_at(ids, edge['source'])} {arrow}{said} {_at(ids, edge['target'])}")
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """A digraph for Graphviz. ValueError if an edge or ``start`` names a node that is not there."""
    ids = _ids(graph)
    lines = ["digraph saga {"]
    for node in graph["nodes"]:
        shape = _DOT[node.get("kind", "llm")]
        lines.append(f"    {ids[node['id']]} [label={_quoted(_node(node))}, shape={shape}];")
    if graph.get("start"):
        lines.append('    start [label="", shape=point];')
    for name in graph.get("start", ()):
        lines.append(f"    start -> {_at(ids, name)};")
    for edge in graph.get("edges", ()):
        style = ["style=dashed"] if edge.get("conditional") else []
        told = _edge(edge)
        style += [f"label={_quoted(told)}"] if told else []
        more = f" [{', '.join(style)}]" if style else ""
        lines.append(f"    {_at(ids, edge['source'])} -> {_at(ids, edge['target'])}{more};")
    return "\n".join([*lines, "}"]) + "\n"


def _ids(graph: Graph) -> dict[str, str]:
    nodes: Sequence[Any] = graph["nodes"]
    return {node["id"]: f"n{number}" for number, node in enumerate(nodes)}


def _at(ids: Mapping[str, str], name: str) -> str:
    try:
        return ids[name]
    except KeyError:
        raise ValueError(f"node {name!r} is not there") from None


def _node(node: Mapping[str, Any]) -> str:
    tool = node.get("tool")
    return node["id"] if tool in (None, node["id"]) else f"{node['id']}: {tool}"


def _edge(edge: Mapping[str, Any]) -> str:
    told = [] if edge.get("p") is None else [f"{edge['p']:.0%}"]
    return ", ".join([*told, *filter(None, [edge.get("join")])])


def _entities(label: str) -> str:
    """Whatever Mermaid might read becomes its entity, by the number of the character."""
    return "".join(
        char if (char.isalnum() and char.isascii()) or char in _LITERAL else f"#{ord(char)};"
        for char in label
    )


def _quoted(label: str) -> str:
    """A quoted string: a backslash is one, and no label breaks its line or ends it."""
    safe = label.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + safe.replace("\n", "\\n").replace("\r", "").replace("\0", "") + '"'
