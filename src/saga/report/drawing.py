"""What the pictures of a report have in common: their form, titles, legends and log axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from saga.report.extras import sim_extra
from saga.report.style import DARK, LIGHT, Theme

with sim_extra():
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

Draw = Callable[[Theme], Figure]

# Ticks of the log axes, most welcome first: each is drawn unless it crowds an earlier one.
# fmt: off
TIME_TICKS = (
    60, 3600, 600, 10, 1, 36_000, 0.1, 360_000, 300, 1800, 30, 120, 7200, 18_000, 3, 0.3, 108_000,
    1200, 180, 900, 240, 10_800, 420, 2700, 90, 150, 5400, 14_400, 20, 45, 2, 5,
)
RATIO_TICKS = (
    1, 2, 0.5, 10, 0.1, 5, 0.2, 1.5, 3, 1.25, 0.8, 100, 0.01, 50, 0.02, 20, 0.05, 1.1, 0.9, 0.7,
    7, 4, 2.5, 1.75, 0.6, 0.3, 1.05, 0.95, 1.02, 0.98, 1000, 200, 500,
)
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure as PNG for bright and for dark pages, with the words that replace it."""

    name: str
    """File name, such as ``tct.png``."""
    alt: str
    caption: str
    light: bytes
    dark: bytes


def png(figure: Figure) -> bytes:
    """The figure as a PNG whose bytes depend on nothing but its content."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def picture(name: str, *, alt: str, caption: str, draw: Draw) -> Picture:
    light, dark = png(draw(LIGHT)), png(draw(DARK))
    return Picture(name=name, alt=alt, caption=caption, light=light, dark=dark)


def listed(items: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{name} {text}" for name, text in items)


def put_title(figure: Figure, title: str, subject: str, theme: Theme, apart: float = 0.02) -> None:
    """Two lines at the top left, in a strip of fixed height that the axes stay out of.

    ``apart``: space between axes side by side, as a share of their width.
    """
    height = figure.get_figheight()
    rect = (0, 0, 1, 1 - 0.58 / height)
    figure.set_layout_engine("constrained", rect=rect, wspace=apart)
    figure.text(0.005, 1 - 0.27 / height, title, size=12.5, weight="bold", color=theme.ink)
    figure.text(0.005, 1 - 0.47 / height, subject, size=8.5, color=theme.muted)


def legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.4,
        fontsize=8,
    )


def label_times(axis: Axis) -> None:
    """Labels a log axis of seconds the way a person says them: 30 s, 5 min, 2 h."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(FixedLocator(uncrowded(TIME_TICKS, low, high, 9)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))


def label_ratios(axis: Axis, at_most: int = 16) -> None:
    """Labels a log axis of ratios: 0.5x, 1x, 2x."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(FixedLocator(uncrowded(RATIO_TICKS, low, high, at_most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))


def uncrowded(ticks: Sequence[float], low: float, high: float, at_most: int) -> list[float]:
    """Those of the ticks in low..high that are 1/at_most of the log axis away from earlier ones."""
    apart = np.log(high / low) / at_most
    kept: list[float] = []
    for tick in ticks:
        if low <= tick <= high and all(abs(np.log(tick / other)) >= apart for other in kept):
            kept.append(tick)
    return sorted(kept)


def clock(seconds: float) -> str:
    """Such as 30 s, 5 min, 2 h."""
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"
