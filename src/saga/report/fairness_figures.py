"""The pictures of how tenants fare: what they got, when, and how long they waited for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from saga.report.averages import Floats
from saga.report.content import Summaries, decimal
from saga.report.drawing import (
    Picture,
    clock,
    label_ratios,
    listed,
    picture,
    put_title,
)
from saga.report.extras import sim_extra
from saga.report.fairness import by_class, slowdown
from saga.report.records import RunRecord, TimeSeries, WorkflowRecord
from saga.report.style import LIGHT, Theme, styled

with sim_extra():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

Runs = Mapping[str, Sequence[RunRecord]]
Groups = Mapping[str, str]
"""Tenant to what it is drawn as."""

MOST_PANELS = 6
"""Presets that are drawn over time, the first ones."""
MOST_GROUPS = 6
"""Lines in a panel; with more tenants, the last line is all others."""
OTHERS = "others"
WAIT_TICKS = (0, 1, 60, 3600, 360_000)
NUM_WINDOWS = 40
"""Shares are of the service within windows, so many in a run."""


def fairness_pictures(runs: Runs, summaries: Summaries, subject: str) -> list[Picture]:
    """Every figure there is data for, if there is more than one tenant."""
    groups = groups_of(runs)
    if len(set(groups.values())) < 2:
        return []
    found = []
    if len({name for s in summaries.values() for name in s.slowdown_mean_by_class}) > 1:
        found.append(_classes_picture(runs, summaries, subject))
    if any(served(run) for run in _first_runs(runs).values()):
        found.append(_shares_picture(runs, groups, subject))
    if any(has_leads(run) for run in _first_runs(runs).values()):
        found.append(_leads_picture(runs, groups, subject))
    return found


def groups_of(runs: Runs) -> dict[str, str]:
    """Tenants by class where there are several classes, else by their names."""
    workflows = [one for seeds in runs.values() for run in seeds for one in run.workflows]
    classes = {one.tenant: one.tenant_class for one in workflows}
    if len(set(classes.values())) > 1:
        return classes
    names = sorted(classes)
    shown = names if len(names) <= MOST_GROUPS else names[: MOST_GROUPS - 1]
    return {name: name if name in shown else OTHERS for name in names}


def classes_figure(runs: Runs, summaries: Summaries, subject: str, theme: Theme = LIGHT) -> Figure:
    """By preset and class: slow-down (5 to 95 %, 25 to 75 %, median), longest wait, SLO."""
    classes = sorted({name for s in summaries.values() for name in s.longest_wait_s_by_class})
    colors = _colors(classes, theme)
    with styled(theme):
        height = 0.16 * len(runs) * (len(classes) + 1)
        figure = Figure(figsize=(10, 2.0 + max(1.2, height)))
        slow, wait, slo = figure.subplots(1, 3, sharey=True, width_ratios=[1.7, 1, 1])
        put_title(figure, "How tenant classes fare", subject, theme, apart=0.05)
        for row, (name, summary) in enumerate(summaries.items()):
            values = by_class(_measured(runs[name]), slowdown)
            for index, of in enumerate(classes):
                y = row + 0.8 * ((index + 0.5) / len(classes) - 0.5)
                if of in values:
                    _draw_spread(slow, y, values[of], colors[of], theme)
                longest, color = summary.longest_wait_s_by_class.get(of, np.nan), colors[of]
                wait.plot(longest, y, marker="D", ms=6, ls="", color=color)
                share = summary.slo_by_class.get(of, 0)
                slo.barh(y, share, height=0.66 / len(classes), color=color)
        _finish_classes(slow, wait, slo, list(summaries), theme)
        lines = [Line2D([], [], color=color, lw=5, label=of) for of, color in colors.items()]
        slow.legend(handles=lines, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=6)
        return figure


def shares_figure(runs: Runs, groups: Groups, subject: str, theme: Theme = LIGHT) -> Figure:
    """Share of service in windows of time, and what the weights of those present entitle to."""
    shown = {name: run for name, run in _first_runs(runs).items() if served(run)}
    colors = _colors(sorted(set(groups.values())), theme)
    with styled(theme):
        figure, panels = _panels(shown, "Service against entitlement", subject, theme)
        for axes, run in zip(panels, shown.values(), strict=True):
            hours, shares, entitled = shares_over_time(run.series, groups)
            for name, color in colors.items():
                axes.stairs(shares[name], hours, color=color, baseline=None, lw=1.6)
                axes.stairs(entitled[name], hours, color=color, baseline=None, lw=1.1, ls=":")
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        lines = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
        lines.append(Line2D([], [], color=theme.muted, ls=":", lw=1.1, label="entitlement"))
        _finish_panels(panels, lines)
        return figure


def leads_figure(runs: Runs, groups: Groups, subject: str, theme: Theme = LIGHT) -> Figure:
    """How far the tenant of a group that is furthest ahead is ahead of newcomers."""
    shown = {name: run for name, run in _first_runs(runs).items() if has_leads(run)}
    colors = _colors(sorted(set(groups.values())), theme)
    with styled(theme):
        figure, panels = _panels(shown, "Lead in the queue for admission", subject, theme)
        for axes, run in zip(panels, shown.values(), strict=True):
            hours = np.array(run.series.at_us) / 3.6e9
            for name, color in colors.items():
                of = [t.lead_us for id, t in run.series.tenants.items() if groups[id] == name]
                leads = np.max(np.array(of), axis=0) / 1e6
                axes.step(hours, leads, where="post", color=color, lw=1.3)
            axes.set_ylim(bottom=0)
            axes.set_ylabel("s / weight")
        lines = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
        _finish_panels(panels, lines)
        return figure


def shares_over_time(
    series: TimeSeries, groups: Groups
) -> tuple[Floats, dict[str, Floats], dict[str, Floats]]:
    """Edges of windows in hours; in each window each group's share of the service, and its mean
    entitlement. NaN while nobody is served or entitled. Each adds up to 1 over the groups."""
    num = len(series.at_us)
    edges = np.unique(np.linspace(0, num - 1, min(num, NUM_WINDOWS + 1)).astype(int))
    names = sorted(set(groups.values()))
    service = {name: np.zeros(num) for name in names}
    entitled = {name: np.zeros(num) for name in names}
    for tenant, one in series.tenants.items():
        service[groups[tenant]] += np.array(one.service_us, dtype=np.float64)
        entitled[groups[tenant]] += np.array(one.entitlement)
    given = {name: np.diff(service[name][edges]) for name in names}
    owed = {name: np.add.reduceat(entitled[name][:-1], edges[:-1]) for name in names}
    return np.array(series.at_us)[edges] / 3.6e9, _shares(given), _shares(owed)


def served(run: RunRecord) -> bool:
    """Whether its series tells of any service."""
    return any(any(tenant.service_us) for tenant in run.series.tenants.values())


def has_leads(run: RunRecord) -> bool:
    """Whether anybody was ever ahead."""
    return any(any(tenant.lead_us) for tenant in run.series.tenants.values())


def _classes_picture(runs: Runs, summaries: Summaries, subject: str) -> Picture:
    jain = listed((name, decimal(s.fairness_jain, digits=3)) for name, s in summaries.items())
    return picture(
        "classes.png",
        alt=f"Slow-down, longest wait and SLO by tenant class. Jain's index of tenants: {jain}.",
        caption="Slow-down: thin from 5 % to 95 % of the finished workflows, thick from 25 % to "
        "75 %, dot at the median; classes that look alike are treated alike.",
        draw=lambda theme: classes_figure(runs, summaries, subject, theme),
    )


def _shares_picture(runs: Runs, groups: Groups, subject: str) -> Picture:
    names = ", ".join(sorted(set(groups.values())))
    return picture(
        "shares.png",
        alt=f"Share of engine time over time against entitlement, for {names}.",
        caption="The first seed. Entitlement: weight over the weights of all tenants with "
        "unfinished workflows at that time. Who asks for less gets less, and leaves the rest to "
        "the others; who stays below the dotted line while it waits is treated unfairly.",
        draw=lambda theme: shares_figure(runs, groups, subject, theme),
    )


def _leads_picture(runs: Runs, groups: Groups, subject: str) -> Picture:
    names = ", ".join(sorted(set(groups.values())))
    return picture(
        "leads.png",
        alt=f"How far tenants are ahead in the queue for admission over time, for {names}.",
        caption="The first seed. What a tenant was charged over its weight, beyond where a "
        "newcomer would start; of a class, its tenant that is furthest ahead.",
        draw=lambda theme: leads_figure(runs, groups, subject, theme),
    )


def _first_runs(runs: Runs) -> dict[str, RunRecord]:
    return {name: seeds[0] for name, seeds in list(runs.items())[:MOST_PANELS] if seeds}


def _measured(runs: Sequence[RunRecord]) -> list[WorkflowRecord]:
    return [workflow for run in runs for workflow in run.workflows if workflow.measured]


def _colors(names: Sequence[str], theme: Theme) -> dict[str, str]:
    """The first colour is the grey of reference presets."""
    hues = theme.presets[1:]
    return {name: hues[index % len(hues)] for index, name in enumerate(names)}


def _shares(parts: dict[str, Floats]) -> dict[str, Floats]:
    total = np.sum(list(parts.values()), axis=0)
    whole = np.where(total > 0, total, np.nan)
    return {name: part / whole for name, part in parts.items()}


def _draw_spread(axes: Axes, y: float, values: Floats, color: str, theme: Theme) -> None:
    low, first, middle, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    axes.plot([low, high], [y, y], color=color, lw=1.3, solid_capstyle="butt")
    axes.plot([first, third], [y, y], color=color, lw=5, solid_capstyle="butt")
    axes.plot([middle], [y], marker="o", ms=4, color=theme.paper, mec=color, mew=1.2)


def _finish_classes(slow: Axes, wait: Axes, slo: Axes, names: list[str], theme: Theme) -> None:
    slow.set_yticks(range(len(names)), names, color=theme.ink)
    slow.set_ylim(len(names) - 0.5, -0.5)
    slow.set_xscale("log")
    label_ratios(slow.xaxis, at_most=10)
    slow.set_xlabel("slow-down: TCT / TCT alone")
    wait.set_xlabel("longest wait to start")
    wait.set_xscale("symlog", linthresh=1)
    wait.set_xlim(0, max(10.0, 2 * wait.get_xlim()[1]))
    wait.xaxis.set_major_locator(FixedLocator(WAIT_TICKS))
    wait.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    slo.set_xlim(0, 1)
    slo.set_xticks([0, 0.25, 0.5, 0.75, 1])
    slo.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    slo.set_xlabel("workflows that met their SLO")
    for axes in (slow, wait, slo):
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)


def _panels(
    shown: Mapping[str, RunRecord], title: str, subject: str, theme: Theme
) -> tuple[Figure, list[Axes]]:
    """One below the other, on the same axis of time."""
    figure = Figure(figsize=(10, 1.5 + 1.5 * len(shown)))
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)
    put_title(figure, title, subject, theme)
    panels = list(grid[:, 0])
    for axes, (name, run) in zip(panels, shown.items(), strict=True):
        axes.set_title(f"{name}, seed {run.seed}")
    panels[-1].set_xlabel("hours")
    return figure, panels


def _finish_panels(panels: list[Axes], lines: list[Line2D]) -> None:
    panels[0].legend(
        handles=lines, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(lines), fontsize=8
    )
    panels[0].set_xlim(left=0)
