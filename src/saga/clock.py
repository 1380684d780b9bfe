"""The one place that reads a clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time in integer microseconds; never goes back."""

    def now_us(self) -> int: ...


class MonotonicClock:
    """Microseconds since it was made."""

    def __init__(self) -> None:
        self._zero = time.monotonic_ns()

    def now_us(self) -> int:
        return (time.monotonic_ns() - self._zero) // 1_000
