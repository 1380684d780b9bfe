from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saga.core.cache import CacheView, KVEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class WaLru:
    """Which KV? The highest ``alpha R + beta (1 - P_reuse) + gamma S`` (paper, Eq. 1)."""

    alpha: float = 0.3
    beta: float = 0.5
    gamma: float = 0.2

    static: ClassVar[bool] = False
    whole_entry: ClassVar[bool] = False
    clairvoyant: ClassVar[bool] = False

    def rank(self, entry: KVEntry, cache: CacheView) -> float:
        recency = min(1.0, (cache.now - entry.last_access) / cache.max_idle)
        size = min(1.0, entry.tokens / cache.max_tokens)
        return self.alpha * recency + self.beta * (1.0 - entry.p_reuse) + self.gamma * size
