from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saga.core.cache import CacheView, KVEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Lru:
    """Which KV? That of the session idle for longest, all of it at once."""

    static: ClassVar[bool] = True
    whole_entry: ClassVar[bool] = True
    clairvoyant: ClassVar[bool] = False

    def rank(self, entry: KVEntry, cache: CacheView) -> float:
        return -entry.last_access
