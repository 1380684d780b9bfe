"""When workflows arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from saga.sim.chance import Stream, generator
from saga.traces import read_scripts

MAX_CV = 100.0


class Arrivals(Protocol):
    """A process that workflows arrive by."""

    def times_us(self, num: int, seed: int) -> NDArray[np.int64]:
        """The first ``num`` arrivals, microseconds from the start, never decreasing.

        The same seed gives the same times, and a longer run begins with a shorter one.
        """


@dataclass(frozen=True, slots=True)
class Poisson:
    """Memoryless arrivals."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)

    def times_us(self, num: int, seed: int) -> NDArray[np.int64]:
        rng = generator(seed, Stream.ARRIVALS)
        return _at(rng.exponential(1 / self.rate_per_s, num))


@dataclass(frozen=True, slots=True)
class GammaRenewal:
    """Gamma-distributed times between arrivals; with ``cv`` above 1 they come in bursts."""

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)
        if not 0 < self.cv <= MAX_CV:
            raise ValueError(f"cv of arrivals is {self.cv}, allowed is above 0, to {MAX_CV:g}")

    def times_us(self, num: int, seed: int) -> NDArray[np.int64]:
        rng = generator(seed, Stream.ARRIVALS)
        shape = self.cv**-2
        return _at(rng.gamma(shape, 1 / (shape * self.rate_per_s), num))


@dataclass(frozen=True, slots=True)
class FromTrace:
    """A trace's own arrivals, stretched to a mean rate and repeated for longer runs.

    With ``rotate`` the seed says where in the trace, closed to a ring, a run begins; without it
    every run begins with the trace's first arrival.
    """

    trace_us: tuple[int, ...]
    rate_per_s: float
    rotate: bool = True

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)
        if len(set(self.trace_us)) < 2:
            raise ValueError("arrivals from a trace need at least two different times")

    def times_us(self, num: int, seed: int) -> NDArray[np.int64]:
        between = np.diff(np.sort(np.asarray(self.trace_us, dtype=np.float64)))
        mean = between.mean()
        ring = np.append(mean, between) / (mean * self.rate_per_s)
        if self.rotate:
            ring = np.roll(ring, -generator(seed, Stream.ARRIVALS).integers(len(ring)))
        return _at(np.resize(ring, num))


def get_arrivals(
    spec: str, rate_per_s: float, *, workload_us: Sequence[int] | None = None
) -> Arrivals:
    """The arrival process that a specification names, at a mean rate.

    ``poisson``; ``bursty:CV``; ``file:PATH``, the arrivals of a trace file, beginning anywhere in
    it; ``trace``, the workload's own, given as ``workload_us``, beginning at its start. Raises
    ValueError for anything else, and TraceError for a file that cannot be read.
    """
    kind, _, argument = spec.partition(":")
    match kind, argument:
        case "poisson", "":
            return Poisson(rate_per_s)
        case "bursty", cv if _is_number(cv):
            return GammaRenewal(rate_per_s, float(cv))
        case "trace", "":
            if workload_us is None:
                raise ValueError("arrivals 'trace': this workload has no arrival times of its own")
            return FromTrace(tuple(workload_us), rate_per_s, rotate=False)
        case "file", path if path:
            scripts = read_scripts(path).scripts
            times = tuple(s.submitted_us for s in scripts if s.submitted_us is not None)
            return FromTrace(times, rate_per_s)
    raise ValueError(
        f"arrivals are {spec!r}, allowed are 'poisson', 'bursty:CV', 'trace' and 'file:PATH'"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_rate(rate_per_s: float) -> None:
    if not 0 < rate_per_s < float("inf"):
        raise ValueError(f"rate is {rate_per_s} per second, allowed is above 0 and finite")


def _at(between_s: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(np.cumsum(between_s) * 1e6).astype(np.int64)
