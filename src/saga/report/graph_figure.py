"""An agent execution graph as a picture: who follows whom, how often, and when sessions return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import zip_longest
from math import cos, pi, sin, sqrt
from typing import Any

from saga.report.extras import sim_extra
from saga.report.style import LIGHT, Theme, styled

with sim_extra():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle, FancyArrowPatch

MOST_NODES = 12
LEAST_P = 0.08
"""Edges that are taken less often are left out; those of the most likely step never are."""
LONGEST = 18
"""Characters of a label."""
Places = Mapping[str, tuple[float, float]]


def draw(document: Mapping[str, Any], *, title: str, theme: Theme = LIGHT) -> bytes:
    """A PNG of a learned graph (``saga.report.learned``): the tools of most steps on a circle, as
    large as they are frequent; arrows as wide as they are likely."""
    nodes = document["nodes"][:MOST_NODES]
    with styled(theme):
        figure = Figure(figsize=(9.5, 7.8))
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_xlim(-1.65, 1.65)
        axes.set_ylim(-1.35, 1.35)
        figure.suptitle(_title(document, title, len(nodes)), x=0.01, ha="left", fontsize=10)
        places = _places([node["id"] for node in nodes])
        sizes = _sizes(nodes)
        for edge in _edges(document["edges"], places):
            _arrow(axes, edge, places, sizes, theme)
        again = {e["source"]: e["p"] for e in document["edges"] if e["source"] == e["target"]}
        for node in nodes:
            told = _told(node, again.get(node["id"], 0.0))
            _node(axes, told, places[node["id"]], sizes[node["id"]], theme)
        out = BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def _title(document: Mapping[str, Any], title: str, shown: int) -> str:
    title = title.replace("$", r"\$")
    left_out = len(document["nodes"]) - shown
    more = f", {left_out} rarer tools left out" if left_out else ""
    mean = document["mean_steps"]
    steps = "" if mean is None else f", {mean:.1f} steps each"
    return f"{title}: {document['sessions']:,} sessions{steps}{more}"


def _places(labels: Sequence[str]) -> Places:
    """Clockwise from the top, frequent and rare ones in turns: large neighbours hide arrows."""
    half = (len(labels) + 1) // 2
    turn = 2 * pi / max(1, len(labels))
    pairs = zip_longest(labels[:half], labels[half:])
    order = [label for pair in pairs for label in pair if label is not None]
    return {label: (sin(number * turn), cos(number * turn)) for number, label in enumerate(order)}


def _sizes(nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Radii."""
    most = max((node["steps"] for node in nodes), default=1) or 1
    return {node["id"]: 0.05 + 0.11 * sqrt(node["steps"] / most) for node in nodes}


def _edges(edges: Sequence[Mapping[str, Any]], places: Places) -> list[Mapping[str, Any]]:
    shown, first = [], set()
    for edge in edges:
        if not {edge["source"], edge["target"]} <= places.keys():
            continue
        if edge["source"] == edge["target"]:  # said at the node
            continue
        if edge["p"] >= LEAST_P or edge["source"] not in first:
            shown.append(edge)
        first.add(edge["source"])
    return shown


def _arrow(
    axes: Axes, edge: Mapping[str, Any], places: Places, sizes: Mapping[str, float], theme: Theme
) -> None:
    start, end = places[edge["source"]], places[edge["target"]]
    colour, width = theme.presets[1], 0.4 + 3.6 * edge["p"]
    length = max(1e-6, sqrt((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2))
    along = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    begin, stop = sizes[edge["source"]] + 0.01, sizes[edge["target"]] + 0.02
    axes.add_patch(
        FancyArrowPatch(
            (start[0] + along[0] * begin, start[1] + along[1] * begin),
            (end[0] - along[0] * stop, end[1] - along[1] * stop),
            arrowstyle="-|>",
            mutation_scale=7 + 2 * width,
            connectionstyle="arc3,rad=0.12",
            linewidth=width,
            color=colour,
            alpha=0.25 + 0.6 * edge["p"],
        )
    )
    middle = 0.3  # nearer to where it leaves: there it is told apart from its opposite
    across = (-along[1] * 0.06, along[0] * 0.06)
    axes.text(
        start[0] + (end[0] - start[0]) * middle - across[0],
        start[1] + (end[1] - start[1]) * middle - across[1],
        f"{edge['p']:.0%}", fontsize=6.5, color=theme.muted, ha="center", va="center",
    )  # fmt: skip


def _told(node: Mapping[str, Any], again: float) -> str:
    """What is said beside a node."""
    label = "".join(char if char.isprintable() else "?" for char in node["id"])
    if len(label) > LONGEST:
        label = f"{label[: LONGEST - 1]}…"
    steps = f"{node['steps']:,} steps"
    lines = [label.replace("$", r"\$"), steps if again < LEAST_P else f"{steps}, {again:.0%} again"]
    if node["return_p50_s"] is not None:
        lines.append(f"back in {node['return_p50_s']:.2g} s, 95 %: {node['return_p95_s']:.2g} s")
    if (node["p_end"] or 0.0) >= 0.005:
        lines.append(f"the last one: {node['p_end']:.0%}")
    return "\n".join(lines)


def _node(axes: Axes, told: str, place: tuple[float, float], radius: float, theme: Theme) -> None:
    axes.add_patch(Circle(place, radius, facecolor=theme.parts[1], edgecolor=theme.paper, zorder=3))
    out = 1 + radius + 0.08
    side = "left" if place[0] > 0.1 else "right" if place[0] < -0.1 else "center"
    lift = 0.08 * place[1] if side == "center" else 0.0
    axes.text(
        place[0] * out,
        place[1] * out + lift,
        told,
        ha=side,
        va="center",
        fontsize=7.5,
        color=theme.ink,
        zorder=4,
    )
