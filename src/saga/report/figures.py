"""The pictures of a report, as PNG; drawn without a display and without pyplot's global state.

Every title says what is shown and every subtitle under what circumstances (``subject``), since
pictures travel without their page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saga.report.averages import Floats
from saga.report.content import (
    Comparisons,
    LoadPoint,
    Summaries,
    load_tct,
    number,
    percent,
    speedup,
)
from saga.report.drawing import (
    Picture,
    label_ratios,
    label_times,
    legend_above,
    listed,
    picture,
    put_title,
)
from saga.report.extras import sim_extra
from saga.report.metrics import PARTS
from saga.report.records import Outcome, RunRecord
from saga.report.statistics import Comparison
from saga.report.style import LIGHT, Theme, preset_styles, styled

with sim_extra():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

Runs = Mapping[str, Sequence[RunRecord]]


def pictures(
    runs: Runs,
    summaries: Summaries,
    comparisons: Comparisons,
    subject: str,
    load_points: Sequence[LoadPoint] = (),
    sweep_subject: str = "",
) -> list[Picture]:
    """Every figure there is data for; ``sweep_subject`` is the subject of the load curve."""
    found: list[Picture] = []
    if any(summary.num_finished for summary in summaries.values()):
        found.append(_tct_picture(runs, summaries, subject))
    if any(summary.kv_used is not None for summary in summaries.values()):
        found.append(_kv_picture(summaries, subject))
    if any(comparison.speedup_geomean for comparison in comparisons.values()):
        found.append(_seeds_picture(comparisons, next(iter(summaries)), subject))
    if any(load_tct(seeds) for point in load_points for seeds in point.summaries.values()):
        found.append(_load_picture(load_points, sweep_subject or subject))
    return found


def tct_figure(runs: Runs, summaries: Summaries, subject: str, theme: Theme = LIGHT) -> Figure:
    """Left: share of workflows done within a time. Right: what a mean TCT is made of."""
    with styled(theme):
        figure = Figure(figsize=(10, max(4.0, 2.2 + 0.34 * len(runs))))
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        put_title(figure, "How long agent tasks take", subject, theme)
        _draw_ecdf(left, runs, theme)
        _draw_split(right, summaries, theme)
        return figure


def kv_figure(summaries: Summaries, subject: str, theme: Theme = LIGHT) -> Figure:
    """What the engines' KV memory held, averaged over the window; a tick marks the useful part."""
    with styled(theme):
        figure = Figure(figsize=(10, 1.75 + 0.36 * len(summaries)))
        axes = figure.subplots()
        put_title(figure, "What KV memory was used for", subject, theme)
        shown = {name: s for name, s in summaries.items() if s.kv_used is not None}
        parts = {
            "active": [s.kv_active or 0 for s in shown.values()],
            "waiting: its session returns": [s.kv_waiting or 0 for s in shown.values()],
            "dead: nobody returns": [s.kv_dead or 0 for s in shown.values()],
            "free": [max(0.0, 1 - (s.kv_used or 0)) for s in shown.values()],
        }
        _draw_stack(axes, list(shown), parts, theme.kv, theme, label_at_least=0.045)
        for row, summary in enumerate(shown.values()):
            useful = summary.kv_useful or 0
            label = "useful (active or later hit)" if row == 0 else None
            axes.plot([useful] * 2, [row - 0.42, row + 0.42], color=theme.ink, lw=2.2, label=label)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
        axes.set_xlabel("share of capacity, averaged over the measured window and all engines")
        legend_above(axes, columns=5)
        return figure


def seeds_figure(
    comparisons: Comparisons, reference: str, subject: str, theme: Theme = LIGHT
) -> Figure:
    """Each seed's speed-up as a point, the mean and its interval as a bar above them."""
    shown = {n: c for n, c in comparisons.items() if c.speedup_geomean is not None}
    with styled(theme):
        figure = Figure(figsize=(10, 1.6 + 0.52 * len(shown)))
        axes = figure.subplots()
        put_title(figure, f"Speed-up over {reference}, seed by seed", subject, theme)
        styles = preset_styles([reference, *comparisons], theme)
        axes.axvline(1, color=theme.muted, lw=1.2)
        for row, (name, comparison) in enumerate(shown.items()):
            _draw_seeds(axes, row, comparison, styles[name][0])
        axes.set_yticks(range(len(shown)), list(shown), color=theme.ink)
        axes.set_ylim(len(shown) - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        _ratio_axis(axes, [1, *_all_ratios(shown)])
        axes.set_xlabel(f"times as fast as {reference} (dots: seeds; bar: mean and 95 % interval)")
        return figure


def load_curve(points: Sequence[LoadPoint], subject: str, theme: Theme = LIGHT) -> Figure:
    """TCT against load; hollow where some workflow did not finish and the mean flatters."""
    presets = list(dict.fromkeys(name for point in points for name in point.summaries))
    styles = preset_styles(presets, theme)
    with styled(theme):
        figure = Figure(figsize=(10, 4.4))
        axes = figure.subplots()
        put_title(figure, "Task completion time against load", subject, theme)
        for name in presets:
            _draw_load_line(axes, name, points, *styles[name], theme)
        axes.set_title("geometric mean over seeds, with the lowest and the highest seed")
        axes.set_xlabel("load")
        axes.set_yscale("log")
        label_times(axes.yaxis)
        axes.legend(loc="upper left")
        return figure


def _tct_picture(runs: Runs, summaries: Summaries, subject: str) -> Picture:
    means = listed((name, f"{number(s.tct_mean_s)} s") for name, s in summaries.items())
    return picture(
        "tct.png",
        alt=f"Distribution of task completion time and its parts. Mean: {means}.",
        caption="Left: a curve further left and higher is better; where it ends below 100 %, the "
        "remaining workflows did not finish. Right: the parts of the mean TCT.",
        draw=lambda theme: tct_figure(runs, summaries, subject, theme),
    )


def _kv_picture(summaries: Summaries, subject: str) -> Picture:
    shares = listed((name, f"{percent(s.kv_useful)} %") for name, s in summaries.items())
    return picture(
        "kv.png",
        alt=f"KV memory by use. Useful share of capacity: {shares}.",
        caption="Full memory is not the aim: only KV that is computed on, or hit later, helps.",
        draw=lambda theme: kv_figure(summaries, subject, theme),
    )


def _seeds_picture(comparisons: Comparisons, reference: str, subject: str) -> Picture:
    ratios = listed((name, speedup(comparison)) for name, comparison in comparisons.items())
    return picture(
        "seeds.png",
        alt=f"Speed-up over {reference} for every seed. Mean and 95 % interval: {ratios}.",
        caption="Every dot is one seed with the same workflows for both presets. "
        "An interval that contains 1 is no evidence of a difference.",
        draw=lambda theme: seeds_figure(comparisons, reference, subject, theme),
    )


def _load_picture(points: Sequence[LoadPoint], subject: str) -> Picture:
    loads = ", ".join(f"{point.load:g}" for point in points)
    return picture(
        "load.png",
        alt=f"Task completion time per preset at the loads {loads}; numbers in the load table.",
        caption="Bars span the seeds. Hollow: at least one workflow did not finish there, so the "
        "mean leaves it out.",
        draw=lambda theme: load_curve(points, subject, theme),
    )


def _draw_ecdf(axes: Axes, runs: Runs, theme: Theme) -> None:
    for name, (color, dashes) in preset_styles(list(runs), theme).items():
        times, shares = ecdf(runs[name])
        if times.size:
            axes.step(times, shares, where="post", color=color, ls=dashes, label=name)
    axes.set_title("measured workflows done within …")
    axes.set_xscale("log")
    label_times(axes.xaxis)
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    axes.set_xlabel("task completion time")
    axes.legend(loc="lower right")


def ecdf(runs: Sequence[RunRecord]) -> tuple[Floats, Floats]:
    """Sorted TCTs (s) and the share of *all* measured workflows done by then, pooled over seeds."""
    measured = [workflow for run in runs for workflow in run.workflows if workflow.measured]
    finished = [w for w in measured if w.outcome is Outcome.FINISHED]
    times = np.sort(np.array([w.finished_tct_us for w in finished], dtype=np.float64)) / 1e6
    return times, np.arange(1, times.size + 1) / max(1, len(measured))


def _draw_split(axes: Axes, summaries: Summaries, theme: Theme) -> None:
    shown = {name: s for name, s in summaries.items() if s.split_s}
    parts = {part: [(s.split_s or {})[part] for s in shown.values()] for part in PARTS}
    _draw_stack(axes, list(shown), parts, theme.parts, theme)
    for row, summary in enumerate(shown.values()):
        total = sum((summary.split_s or {}).values())
        axes.annotate(
            f"{number(total)} s", (total, row), (4, 0), textcoords="offset points", va="center"
        )
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}"))
    axes.set_xlabel("mean seconds per finished workflow")
    legend_above(axes, columns=3)


def _draw_stack(
    axes: Axes,
    names: list[str],
    parts: Mapping[str, list[float]],
    colors: Sequence[str],
    theme: Theme,
    label_at_least: float | None = None,
) -> None:
    """Horizontal stacked bars, first name on top; shares from ``label_at_least`` get a number."""
    start = np.zeros(len(names))
    for color, (part, values) in zip(colors, parts.items(), strict=True):
        axes.barh(range(len(names)), values, left=start, height=0.64, color=color, label=part)
        for row, value in enumerate(values):
            if label_at_least is not None and value >= label_at_least:
                axes.text(
                    start[row] + value / 2, row, f"{100 * value:.0f}", ha="center", va="center"
                )
        start = start + values
    axes.set_yticks(range(len(names)), names, color=theme.ink)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _draw_seeds(axes: Axes, row: int, comparison: Comparison, color: str) -> None:
    if comparison.ci95 is not None:
        axes.plot(comparison.ci95, [row - 0.1] * 2, color=color, lw=3, solid_capstyle="butt")
    mean = comparison.speedup_geomean or 1
    axes.plot([mean], [row - 0.1], marker="D", ms=7, color=color, mec=axes.get_facecolor())
    seeds = [s.speedup_geomean for s in comparison.per_seed if s.speedup_geomean is not None]
    axes.scatter(seeds, [row + 0.2] * len(seeds), s=26, color=color, alpha=0.45, lw=0)
    axes.annotate(speedup(comparison), (1.01, row), xycoords=("axes fraction", "data"), va="center")


def _draw_load_line(
    axes: Axes,
    name: str,
    points: Sequence[LoadPoint],
    color: str,
    dashes: Any,
    theme: Theme,
) -> None:
    loads, means = [], []
    for point in sorted(points, key=lambda point: point.load):
        seeds = point.summaries.get(name, ())
        mean = load_tct(seeds)
        if mean is None:
            continue
        loads.append(point.load)
        means.append(mean)
        values = [s.tct_geomean_s for s in seeds if s.tct_geomean_s is not None]
        axes.plot([point.load] * 2, [min(values), max(values)], color=color, lw=1, alpha=0.6)
        hollow = any(s.num_finished < s.num_workflows for s in seeds)
        face = theme.paper if hollow else color
        axes.plot([point.load], [mean], marker="o", ms=5.5, mfc=face, mec=color, mew=1.4, zorder=3)
    axes.plot(loads, means, color=color, ls=dashes, label=name)


def _all_ratios(comparisons: Comparisons) -> list[float]:
    return [
        ratio
        for comparison in comparisons.values()
        for ratio in (
            *(seed.speedup_geomean for seed in comparison.per_seed),
            *(comparison.ci95 or ()),
        )
        if ratio is not None
    ]


def _ratio_axis(axes: Axes, ratios: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(ratios) / 1.03, max(ratios) * 1.03)
    label_ratios(axes.xaxis)
