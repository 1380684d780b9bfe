"""Levels that keep their word: what is said to hold in 90 % of cases does, whatever the model does.

Adaptive conformal inference (Gibbs and Candes, NeurIPS 2021), one stream of levels per model: when
a level was exceeded, the next one is set a little higher, else a very little lower. In the long run
each level is right as often as it says, for any sequence of values.
"""

from __future__ import annotations

from bisect import bisect_right
from math import sqrt

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
STEP = 0.06
"""Times the standard deviation of a level: extreme ones must not leap when they are exceeded."""
_STEPS = tuple(STEP * sqrt(level * (1.0 - level)) for level in LEVELS)
_MOVES = tuple(
    (level, step * level, step * (1.0 - level)) for level, step in zip(LEVELS, _STEPS, strict=True)
)
"""By level: how far it rises when it was exceeded, and falls when it held."""
EDGE = 0.0001
CAUTIOUS = (0.015, 0.08, 0.24, 0.5, 0.76, 0.92, 0.985)
"""Where it begins: a new model is less sure than it thinks."""


class Calibration:
    """Which of a model's own levels to ask for, for each level that is wanted."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked = list(CAUTIOUS)

    def asked(self) -> tuple[float, ...]:
        """For each of ``LEVELS``, in their order; a snapshot."""
        asked, least, most = [], EDGE, 1.0 - EDGE
        for level in self._asked:
            if level > least:  # independent streams may cross
                least = level if level < most else most
            asked.append(least)
        return tuple(asked)

    def learn(self, share: float) -> None:
        """A value came of which the model itself had expected ``share`` to be no larger."""
        asked = self._asked
        for number, (level, rise, fall) in enumerate(_MOVES):
            ask = asked[number]
            held = share < ask or (share == ask and level >= 0.5)
            asked[number] = ask - fall if held else ask + rise


def translate(level: float, come: tuple[float, ...], go: tuple[float, ...]) -> float:
    """``level`` of one scale, on the other; straight lines between the points and the ends."""
    at = bisect_right(come, level)
    low, high = (come[at - 1] if at else 0.0), (come[at] if at < len(come) else 1.0)
    start, end = (go[at - 1] if at else 0.0), (go[at] if at < len(go) else 1.0)
    return start + (end - start) * ((level - low) / (high - low) if high > low else 0.0)
