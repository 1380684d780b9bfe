"""Circuit breaker of one engine: stops sending to what keeps failing. Pure; time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

_BUCKETS = 10
"""Parts of the window that are forgotten as a whole."""
_NOT_ITS_FAULT = frozenset({501, 503, 529})
"""Not implemented, and overloaded under either name: a busy engine is not a broken one."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    """Requests pass."""
    OPEN = "open"
    """None does."""
    HALF_OPEN = "half_open"
    """One does, on trial."""


def is_failure(status: int) -> bool:
    """Whether an answer speaks against the engine; 4xx speaks against the request."""
    return status >= 500 and status not in _NOT_ITS_FAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerLimits:
    failures: int = 5
    """In a row: opens."""
    share: float = 0.5
    """Of failures in the window, from ``min_count`` outcomes on: opens."""
    min_count: int = 20
    window_s: float = 30.0
    cooldown_s: float = 10.0
    """Open for so long, then one trial; a trial that ends in nothing is over after as long."""


@dataclass(slots=True)
class _Bucket:
    number: int
    count: int = 0
    failures: int = 0


class Breaker:
    """Never decides alone: whether an engine can be spared is known to the fleet."""

    def __init__(self, limits: BreakerLimits = BreakerLimits()) -> None:
        self.limits = limits
        self._in_a_row = 0
        self._window: deque[_Bucket] = deque(maxlen=_BUCKETS)
        self._opened: int | None = None
        self._trial: int | None = None

    @property
    def closed(self) -> bool:
        return self._opened is None

    def state(self, now_us: int) -> BreakerState:
        if self._opened is None:
            return BreakerState.CLOSED
        cooled = now_us >= self._opened + self._cooldown_us
        return BreakerState.HALF_OPEN if cooled else BreakerState.OPEN

    def allows(self, now_us: int) -> bool:
        """Whether a request may be sent now."""
        match self.state(now_us):
            case BreakerState.CLOSED:
                return True
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return self._trial is None or now_us >= self._trial + self._cooldown_us

    def sent(self, now_us: int) -> None:
        """A request was sent: if the breaker is half open, it is the trial."""
        if self.state(now_us) is BreakerState.HALF_OPEN and self.allows(now_us):
            self._trial = now_us

    def succeeded(self, now_us: int) -> None:
        """While open it is the late answer to an old request, and proves nothing."""
        match self.state(now_us):
            case BreakerState.CLOSED:
                self._in_a_row = 0
                self._count(now_us, failures=0)
            case BreakerState.OPEN:
                pass
            case BreakerState.HALF_OPEN:
                self._opened = self._trial = None
                self._in_a_row = 0
                self._window.clear()

    def failed(self, now_us: int) -> None:
        match self.state(now_us):
            case BreakerState.CLOSED:
                self._in_a_row += 1
                self._count(now_us, failures=1)
                if self._in_a_row >= self.limits.failures or self._share_exceeded(now_us):
                    self._opened = now_us
            case BreakerState.OPEN:
                pass
            case BreakerState.HALF_OPEN:
                self._opened = now_us

    @property
    def _cooldown_us(self) -> int:
        return round(self.limits.cooldown_s * 1e6)

    def _bucket_number(self, now_us: int) -> int:
        return int(now_us // (self.limits.window_s * 1e6 / _BUCKETS))

    def _count(self, now_us: int, failures: int) -> None:
        number = self._bucket_number(now_us)
        if not self._window or self._window[-1].number != number:
            self._window.append(_Bucket(number))
        self._window[-1].count += 1
        self._window[-1].failures += failures

    def _share_exceeded(self, now_us: int) -> bool:
        oldest = self._bucket_number(now_us) - _BUCKETS
        recent = [bucket for bucket in self._window if bucket.number > oldest]
        count = sum(bucket.count for bucket in recent)
        failures = sum(bucket.failures for bucket in recent)
        return count >= self.limits.min_count and failures >= self.limits.share * count
