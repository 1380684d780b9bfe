"""How every picture of a report looks: palettes that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from saga.report.extras import sim_extra

with sim_extra():
    import matplotlib as mpl


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of one appearance; ``presets`` are lines and points, ``parts`` and ``kv`` areas."""

    paper: str
    ink: str
    muted: str
    grid: str
    presets: tuple[str, ...]
    parts: tuple[str, ...]
    kv: tuple[str, ...]


# Lines: Okabe and Ito, "Color Universal Design" (jfly.uni-koeln.de/color), the reference in the
# ink's grey. Areas: Paul Tol's "light" scheme (sronpersonalpages.nl/~pault), waste in its reds.
LIGHT = Theme(
    paper="#ffffff",
    ink="#1c1e21",
    muted="#666c75",
    grid="#e3e5e8",
    presets=("#4d535c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    parts=("#eedd88", "#77aadd", "#ee8866", "#44bb99", "#cfd2d6", "#a9a4c9"),
    kv=("#77aadd", "#44bb99", "#ee8866", "#eceef0"),
)
DARK = Theme(
    paper="#17191c",
    ink="#e8eaed",
    muted="#a0a6af",
    grid="#30343a",
    presets=("#b4bac3", "#4ba3dc", "#f0803c", "#2fc79b", "#e29bc3", "#f0b73a", "#8fd0f5"),
    parts=("#d8c566", "#5f95cc", "#e07a58", "#37a688", "#5b616a", "#8d87b5"),
    kv=("#3d6c9f", "#27775f", "#b2532e", "#2b2f34"),
)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.2, 1.5)))


def styled(theme: Theme) -> AbstractContextManager[None]:
    """Draws what is drawn inside in a theme: no frames, quiet grid, text before decoration."""
    settings: Any = {  # Any: matplotlib's type of the keys differs between versions
        "figure.facecolor": theme.paper,
        "figure.dpi": 160,
        "figure.constrained_layout.use": True,
        "savefig.facecolor": theme.paper,
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
        "font.size": 9,
        "text.color": theme.ink,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
    }
    return mpl.rc_context(settings)


def preset_styles(presets: Sequence[str], theme: Theme) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each preset's line; the dashes change when the colours are used up."""
    count = len(theme.presets)
    return {
        name: (theme.presets[index % count], DASHES[(index // count) % len(DASHES)])
        for index, name in enumerate(presets)
    }
