"""What live runs of the demonstration say: figures, a table, a picture, and how far to trust them.

Times are wall-clock seconds of the run, HTTP included, with engines and tools as fast as set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saga.report.averages import geomean
from saga.report.content import Table, number, percent
from saga.report.drawing import png
from saga.report.extras import sim_extra
from saga.report.style import LIGHT, Theme, preset_styles, styled

with sim_extra():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

if TYPE_CHECKING:
    from saga.adapters.agents import Played

MOST_CORES = 0.7
"""A process that is busier than that delays what it times."""
MOST_LAG_S = 0.010
"""Mean; a step waits for a few wake-ups, and takes about a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """One preset, live."""

    preset: str
    played: Sequence[Played]
    wall_s: float
    engines: Sequence[dict[str, int]]
    """What each engine counted."""
    cores: dict[str, float]
    """Cores used by each process, as far as the system tells."""
    lag_s: Sequence[float]
    """How late the agents' process was woken, again and again."""

    @property
    def tct_s(self) -> dict[str, float]:
        """By workflow, of those that finished."""
        return {one.workflow: one.tct_s for one in self.played if one.tct_s is not None}

    def counted(self, name: str) -> int:
        """All engines together."""
        return sum(engine[name] for engine in self.engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSummary:
    """Seconds and shares; None where nothing was measured."""

    num_workflows: int
    num_finished: int
    errors: tuple[str, ...]
    """Each different one once."""
    tct_mean_s: float | None
    tct_p50_s: float | None
    tct_p95_s: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    hit_rate: float | None
    regenerated_fraction: float | None
    engine_busy: float | None
    wall_s: float
    cores: dict[str, float]
    lag_mean_s: float | None
    kept_up: bool
    """Whether the machine was fast enough for the times to be the scheduler's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    geomean: float | None
    """Of TCT under the reference over TCT, workflow by workflow."""
    num_pairs: int
    """Workflows that finished under both."""


def summarise(run: LiveRun) -> LiveSummary:
    tct, ttft = list(run.tct_s.values()), [step.ttft_s for p in run.played for step in p.steps]
    prompt = run.counted("prompt_tokens")
    lag = float(np.mean(run.lag_s)) if run.lag_s else None
    return LiveSummary(
        num_workflows=len(run.played),
        num_finished=len(tct),
        errors=tuple(sorted({one.error for one in run.played if one.error is not None})),
        tct_mean_s=float(np.mean(tct)) if tct else None,
        tct_p50_s=_quantile(tct, 0.50),
        tct_p95_s=_quantile(tct, 0.95),
        ttft_p50_s=_quantile(ttft, 0.50),
        ttft_p95_s=_quantile(ttft, 0.95),
        hit_rate=_ratio(run.counted("hit_tokens"), prompt),
        regenerated_fraction=_ratio(run.counted("regenerated_tokens"), prompt),
        engine_busy=_ratio(run.counted("busy_us"), run.counted("model_us")),
        wall_s=run.wall_s,
        cores=run.cores,
        lag_mean_s=lag,
        kept_up=max(run.cores.values()) <= MOST_CORES and (lag or 0) <= MOST_LAG_S,
    )


def speedup_of(reference: LiveRun, other: LiveRun) -> Speedup:
    ours, theirs = other.tct_s, reference.tct_s
    pairs = sorted(ours.keys() & theirs.keys())
    ratios = np.array([theirs[name] / ours[name] for name in pairs], dtype=np.float64)
    return Speedup(geomean=geomean(ratios), num_pairs=len(pairs))


def table(runs: Sequence[LiveRun], about: str, demand: float) -> Table:
    """``demand``: what all contexts take of the KV memory."""
    rows = []
    for run in runs:
        s = summarise(run)
        times = (s.tct_mean_s, s.tct_p50_s, s.tct_p95_s, s.ttft_p50_s, s.ttft_p95_s)
        rows.append(
            (
                run.preset,
                f"{s.num_finished} of {s.num_workflows}",
                *map(number, times),
                percent(s.hit_rate),
                percent(s.regenerated_fraction),
                "reference" if run is runs[0] else _speedup_text(speedup_of(runs[0], run)),
            )
        )
    return Table(
        title="Live: task completion time (TCT) and time to first token (TTFT), wall-clock s",
        header=(
            *("preset", "finished", "TCT mean", "p50", "p95", "TTFT p50", "p95"),
            *("hit %", "regen. %", "speed-up"),
        ),
        rows=tuple(rows),
        note=f"{about[0].upper()}{about[1:]}; nothing here was measured on a GPU. The contexts "
        f"take {demand:.1f} times the KV memory; where they fit there is nothing to gain (try "
        "--live-agents 12). TTFT includes the wait for admission. Speed-up: geometric mean over "
        "the workflows that finished under both; one seed, so no interval.",
    )


def verdict(runs: Sequence[LiveRun]) -> list[str]:
    """What went wrong, and whether the machine kept up."""
    lines = []
    for run in runs:
        s = summarise(run)
        lines += [f"{run.preset}: {error}" for error in s.errors]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in run.cores.items())
        lag = "" if s.lag_mean_s is None else f"; woken {1e3 * s.lag_mean_s:.1f} ms late"
        lines.append(f"{run.preset}: {run.wall_s:.0f} s; of a core: {shares}{lag}")
        if not s.kept_up:
            lines.append(
                f"WARNING: the machine did not keep up with {run.preset}, so these times are "
                f"partly its own: run it again with nothing else, or with a lower --live-speed."
            )
    return lines


def write_picture(path: Path, runs: Sequence[LiveRun], about: str) -> None:
    """Left: share of workflows done within a time. Right: where prompt tokens came from."""
    with styled(LIGHT):
        figure = Figure(figsize=(10, 4))
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.58 / 4))
        figure.text(
            0.005,
            0.93,
            "How long agent tasks take, live",
            size=12.5,
            weight="bold",
            color=LIGHT.ink,
        )
        figure.text(0.005, 0.88, about, size=8.5, color=LIGHT.muted)
        _draw_times(left, runs, LIGHT)
        _draw_tokens(right, runs, LIGHT)
        path.write_bytes(png(figure))


def _draw_times(axes: Axes, runs: Sequence[LiveRun], theme: Theme) -> None:
    styles = preset_styles([run.preset for run in runs], theme)
    for run in runs:
        times = np.sort(list(run.tct_s.values()))
        shares = np.arange(1, times.size + 1) / len(run.played)
        color, dashes = styles[run.preset]
        axes.step(times, shares, where="post", color=color, ls=dashes, label=run.preset)
    axes.set_title("workflows done within …")
    axes.set_xlabel("task completion time, wall-clock seconds")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.legend(loc="lower right")


def _draw_tokens(axes: Axes, runs: Sequence[LiveRun], theme: Theme) -> None:
    start = np.zeros(len(runs))
    cached, new, regenerated = theme.kv[1], theme.parts[1], theme.parts[2]
    parts = {
        "from the cache": (cached, [run.counted("hit_tokens") for run in runs]),
        "new": (new, [_new_tokens(run) for run in runs]),
        "computed again": (regenerated, [run.counted("regenerated_tokens") for run in runs]),
    }
    totals = [max(1, run.counted("prompt_tokens")) for run in runs]
    for label, (color, tokens) in parts.items():
        shares = np.array(tokens) / totals
        axes.barh(range(len(runs)), shares, left=start, height=0.5, color=color, label=label)
        for row, share in enumerate(shares):
            if share >= 0.04:
                axes.text(
                    start[row] + share / 2, row, f"{100 * share:.0f} %", ha="center", va="center"
                )
        start = start + shares
    axes.set_yticks(range(len(runs)), [run.preset for run in runs], color=theme.ink)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("prompt tokens, as the engines counted them")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, fontsize=8)


def _new_tokens(run: LiveRun) -> int:
    known = run.counted("hit_tokens") + run.counted("regenerated_tokens")
    return run.counted("prompt_tokens") - known


def _speedup_text(speedup: Speedup) -> str:
    if speedup.geomean is None:
        return number(None)
    return f"{speedup.geomean:.2f}x over {speedup.num_pairs}"


def _quantile(values: Sequence[float], q: float) -> float | None:
    return float(np.quantile(values, q)) if values else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
