"""What a tenant may ask for: requests and tokens a minute, requests at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from saga.gateway.settings import TenantSettings

MAX_RETRY_AFTER_S: Final = 60
_MINUTE_US: Final = 60_000_000

Limit = Literal["max_concurrent", "requests_per_min", "tokens_per_min"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a request may go on, and what to tell its client."""

    headers: dict[str, str]
    """``x-ratelimit-*`` of the limits that the tenant has."""
    exceeded: Limit | None = None
    """The limit that refuses it; None: it may go on."""
    retry_after_s: int | None = None
    """After which a refused request may try again, 1 to 60; None: that cannot help."""

    @property
    def ok(self) -> bool:
        return self.exceeded is None


UNLIMITED: Final = Verdict(headers={})
"""Of tenants that have no limits."""


class _Bucket:
    """Holds a minute's worth, starts full. ``level`` counts 1/60,000,000 of a unit, so that filling
    by ``per_min`` each microsecond is exact; below 0 it is in debt."""

    def __init__(self, per_min: int, now_us: int, level: int | None = None) -> None:
        self.per_min = per_min
        self.capacity = per_min * _MINUTE_US
        self.level = self.capacity if level is None else min(level, self.capacity)
        self.at = now_us

    def fill(self, now_us: int) -> None:
        self.level = min(self.capacity, self.level + self.per_min * (now_us - self.at))
        self.at = now_us

    def add(self, amount: int) -> None:
        self.level += amount * _MINUTE_US

    def wait_us(self, level: int) -> int:
        """Until it holds that much."""
        return max(0, -(-(level - self.level) // self.per_min))

    def headers(self, unit: str) -> dict[str, str]:
        return {
            f"x-ratelimit-limit-{unit}": str(self.per_min),
            f"x-ratelimit-remaining-{unit}": str(max(0, self.level // _MINUTE_US)),
            f"x-ratelimit-reset-{unit}": f"{_seconds(self.wait_us(self.capacity))}s",
        }


class Limits:
    """Every tenant's use, against its settings. Times are microseconds of one clock.

    Bounded: buckets exist for tenants that the settings give a limit, counts for tenants that have
    requests under way.
    """

    def __init__(self, tenants: Mapping[str, TenantSettings], now_us: int = 0) -> None:
        self._requests: dict[str, _Bucket] = {}
        self._tokens: dict[str, _Bucket] = {}
        self._max_concurrent: dict[str, int] = {}
        self._under_way: Counter[str] = Counter()
        self.configure(tenants, now_us)

    def configure(self, tenants: Mapping[str, TenantSettings], now_us: int) -> None:
        """Other settings from now on; what was used stays used."""
        self._requests = _rebuilt(
            self._requests, {name: t.requests_per_min for name, t in tenants.items()}, now_us
        )
        self._tokens = _rebuilt(
            self._tokens, {name: t.tokens_per_min for name, t in tenants.items()}, now_us
        )
        self._max_concurrent = {
            name: t.max_concurrent for name, t in tenants.items() if t.max_concurrent is not None
        }

    def take(self, tenant: str, tokens: int, now_us: int) -> Verdict:
        """Ask for one request of an estimated number of tokens.

        One that is let in must be given to ``release`` when it ends; a refused one costs nothing.
        """
        requests, budget = self._requests.get(tenant), self._tokens.get(tenant)
        if requests is None and budget is None and tenant not in self._max_concurrent:
            self._under_way[tenant] += 1
            return UNLIMITED
        for bucket in (requests, budget):
            if bucket:
                bucket.fill(now_us)
        exceeded, retry_after_s = self._refusal(tenant, tokens)
        if exceeded is None:
            self._under_way[tenant] += 1
            if requests:
                requests.add(-1)
            if budget:
                budget.add(-tokens)
        headers = requests.headers("requests") if requests else {}
        headers |= budget.headers("tokens") if budget else {}
        return Verdict(headers=headers, exceeded=exceeded, retry_after_s=retry_after_s)

    def _refusal(self, tenant: str, tokens: int) -> tuple[Limit | None, int | None]:
        most = self._max_concurrent.get(tenant)
        if most is not None and self._under_way[tenant] >= most:
            return "max_concurrent", 1  # nobody knows when one of them ends
        requests, budget = self._requests.get(tenant), self._tokens.get(tenant)
        if requests and (wait_us := requests.wait_us(_MINUTE_US)):
            return "requests_per_min", _retry_after_s(wait_us)
        if budget and tokens > budget.per_min:
            return "tokens_per_min", None
        if budget and (wait_us := budget.wait_us(tokens * _MINUTE_US)):
            return "tokens_per_min", _retry_after_s(wait_us)
        return None, None

    def settle(self, tenant: str, estimated: int, actual: int) -> None:
        """Replace the estimate that was taken by what a request used; may leave a debt."""
        if budget := self._tokens.get(tenant):
            budget.add(estimated - actual)

    def release(self, tenant: str) -> None:
        """A request that was let in has ended. Raises ValueError if there is none."""
        if not self._under_way[tenant]:
            raise ValueError(f"tenant {tenant!r} has no request under way")
        self._under_way[tenant] -= 1
        if not self._under_way[tenant]:
            del self._under_way[tenant]  # names that nobody uses any more must not pile up

    def under_way(self, tenant: str) -> int:
        """Requests let in and not released."""
        return self._under_way.get(tenant, 0)


def _rebuilt(
    old: Mapping[str, _Bucket], rates: Mapping[str, int | None], now_us: int
) -> dict[str, _Bucket]:
    buckets = {}
    for name, per_min in rates.items():
        if per_min is None:
            continue
        if before := old.get(name):
            before.fill(now_us)
        buckets[name] = _Bucket(per_min, now_us, before.level if before else None)
    return buckets


def _seconds(us: int) -> int:
    return -(-us // 1_000_000)


def _retry_after_s(wait_us: int) -> int:
    return min(MAX_RETRY_AFTER_S, max(1, _seconds(wait_us)))
