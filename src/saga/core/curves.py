"""Distributions of what is long-tailed, learned online: times and token counts.

Values are counted in bins a quarter of an octave wide, so that nothing is assumed about the shape:
real tool times have tails that a log-normal understates several times. What is rarely seen borrows
from what is like it (shrinkage): each curve is its own counts and, in their absence, its parent's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from itertools import accumulate
from math import exp, log2

from saga.core.bounded import Generations

BINS_PER_OCTAVE = 4
MAX_BIN = 40 * BINS_PER_OCTAVE
"""2 ** 40 units: 12 days in microseconds."""
WINDOW_OCTAVES = 2
"""Values within a factor of two of another span two octaves."""
MEMORY = 1_000
"""Values after which one counts e times less: the world changes."""
GAIN = 1.0 + 1.0 / MEMORY
"""By which each value weighs more than the one before."""
LOAN = 6.0
"""Own values that weigh as much as what is borrowed."""
PRIOR_LOAN = 1.0
"""The same, of what was assumed and not seen in others."""
CRUMB = 0.03
"""Of the values within a factor of two of the typical one: too few to move it."""
STALE = 0.1
"""A curve is computed anew when so much of its weight is new."""


def bin_of(value: float) -> int:
    """The bin of a value; everything up to one unit is in the first."""
    if value <= 1.0:
        return 0
    where = int(log2(value) * BINS_PER_OCTAVE + 0.5)
    return where if where < MAX_BIN else MAX_BIN


class Curve:
    """A distribution over bins; immutable."""

    __slots__ = ("_sums", "_typical", "shares")

    def __init__(self, shares: dict[int, float]) -> None:
        """``shares`` by bin, of any sum above 0."""
        total = sum(shares.values())
        self.shares = {one: share / total for one, share in shares.items()}
        """By bin; they sum to 1. Not to be changed."""
        self._sums: tuple[list[int], list[float]] | None = None
        self._typical: float | None = None

    @property
    def typical(self) -> float:
        """The value within a factor of two of which most values are."""
        if self._typical is None:
            self._typical = self._densest()
        return self._typical

    def quantile(self, p: float) -> float:
        """The value that is not exceeded with probability ``p``."""
        bins, below = self._summed()
        at = min(bisect_left(below, p), len(bins) - 1)
        before = below[at - 1] if at else 0.0
        part = min(1.0, max(0.0, (p - before) / (below[at] - before)))
        return float(2.0 ** ((bins[at] - 0.5 + part) / BINS_PER_OCTAVE))

    def chance_by(self, value: float) -> float:
        """The share of values up to this one."""
        bins, below = self._summed()
        place = log2(max(value, 1e-9)) * BINS_PER_OCTAVE + 0.5
        at = bisect_left(bins, int(place)) if place >= 0 else 0
        before = below[at - 1] if at else 0.0
        if at == len(bins) or bins[at] > place:
            return before
        return before + (place - bins[at]) * (below[at] - before)

    def _summed(self) -> tuple[list[int], list[float]]:
        """Bins in their order, and the share of values up to each. Lenders are seldom asked."""
        if self._sums is None:
            bins = sorted(self.shares)
            self._sums = bins, list(accumulate([self.shares[one] for one in bins]))
        return self._sums

    def _densest(self) -> float:
        """The middle of the window in which most values are."""
        (bins, below), width = self._summed(), WINDOW_OCTAVES * BINS_PER_OCTAVE
        first, best, window = 0, -1.0, (0, 0)
        for last, end in enumerate(bins):
            while end - bins[first] >= width:
                first += 1
            inside = below[last] - (below[first - 1] if first else 0.0)
            if inside > best:
                best, window = inside, (first, last)
        return self._middle(bins[window[0] : window[1] + 1], CRUMB * best)

    def _middle(self, bins: Sequence[int], crumb: float) -> float:
        """Between the outermost of these bins that hold more than crumbs."""
        first, last, shares = 0, len(bins) - 1, self.shares
        while shares[bins[first]] < crumb and first < last:
            first += 1
        while shares[bins[last]] < crumb and first < last:
            last -= 1
        return float(2.0 ** ((bins[first] + bins[last]) / 2 / BINS_PER_OCTAVE))


class _Counts:
    """Of one key. Newer values weigh more: each a little more than the one before."""

    __slots__ = ("by_bin", "curve", "fresh_until", "lender", "total", "unit")

    def __init__(self) -> None:
        self.by_bin: dict[int, float] = {}
        self.total = 0.0
        self.unit = 1.0
        """The weight of the next value."""
        self.curve: Curve | None = None
        self.lender: Curve | None = None
        """Whom it borrowed from when it was made."""
        self.fresh_until = 0.0
        """Total up to which ``curve`` is good enough."""

    def add(self, where: int) -> None:
        by_bin, unit = self.by_bin, self.unit
        by_bin[where] = by_bin.get(where, 0.0) + unit
        self.total += unit
        self.unit = unit * GAIN
        if self.unit > 1e9:
            self._rescale()

    @property
    def evidence(self) -> float:
        """Values, in units of the newest."""
        return self.total / self.unit

    def _rescale(self) -> None:
        kept = {one: count / self.unit for one, count in self.by_bin.items()}
        self.by_bin = {one: count for one, count in kept.items() if count > 1e-6}
        self.total = sum(self.by_bin.values())
        self.unit, self.fresh_until = 1.0, 0.0


class Curves:
    """A curve for each of many keys, each a kind of the one before it in its *path* (a tool, then
    the tool with a small argument). Bounded: paths that were not used for long are forgotten."""

    def __init__(self, prior: Curve, *, max_keys: int) -> None:
        self._prior = prior
        self._counts: Generations[Hashable, _Counts] = Generations(max_keys)

    def __len__(self) -> int:
        return len(self._counts)

    def observe(self, path: Sequence[Hashable], value: float) -> None:
        where = bin_of(value)
        for key in path:
            counts = self._counts.get(key)
            if counts is None:
                counts = _Counts()
                self._counts.put(key, counts)
            counts.add(where)

    def curve(self, path: Sequence[Hashable]) -> tuple[Curve, float]:
        """The curve of the last key, and how much of it is known rather than assumed, 0 to 1."""
        parent, known, loan = self._prior, 0.0, PRIOR_LOAN
        for key in path:
            counts = self._counts.get(key)
            if counts is None:
                break
            known, curve = counts.evidence, counts.curve
            mostly_borrowed = known < LOAN and counts.lender is not parent
            if curve is None or mostly_borrowed or counts.total > counts.fresh_until:
                counts.curve = curve = _borrowing(counts, parent, loan)
                counts.lender = parent
                counts.fresh_until = counts.total * (1.0 + STALE)
            parent, loan = curve, LOAN
        return parent, known / (known + LOAN)


def _borrowing(counts: _Counts, parent: Curve, loan: float) -> Curve:
    scale = loan * counts.unit
    shares = {one: scale * share for one, share in parent.shares.items()}
    for one, count in counts.by_bin.items():
        shares[one] = shares.get(one, 0.0) + count
    return Curve(shares)


def bell(middle: float, octaves: float) -> Curve:
    """A prior: about so large, give or take so many octaves (one standard deviation)."""
    centre, spread = bin_of(middle), octaves * BINS_PER_OCTAVE
    bins = range(max(0, round(centre - 3 * spread)), min(MAX_BIN, round(centre + 3 * spread)) + 1)
    return Curve({one: exp(-(((one - centre) / spread) ** 2) / 2) for one in bins[::2]})
