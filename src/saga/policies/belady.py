from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saga.core.cache import CacheView, KVEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Belady:
    """Which KV? The one whose next use is farthest away (Belady 1966). Sees the future."""

    static: ClassVar[bool] = True
    whole_entry: ClassVar[bool] = False
    clairvoyant: ClassVar[bool] = True

    def rank(self, entry: KVEntry, cache: CacheView) -> float:
        return entry.next_use
