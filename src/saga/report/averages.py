"""Means, quantiles and ratios that are None where there is nothing to compute them from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def geomean(values: Floats) -> float | None:
    """Geometric mean of positive values."""
    return float(np.exp(np.log(values).mean())) if values.size else None


def quantile(values: Floats, q: float) -> float | None:
    """Linear between the two nearest ranks (numpy's default)."""
    return float(np.quantile(values, q)) if values.size else None


def largest(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    return max((float(value) for value in values if value is not None), default=None)


def ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def mean_if_all(values: Iterable[float | None]) -> float | None:
    """The mean, or None if any is missing: leaving the bad seeds out would flatter the preset."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None
