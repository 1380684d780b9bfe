from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saga.core.cache import CacheView, KVEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLru:
    """Which KV? The least recently used block, tails first: vLLM's automatic prefix caching.

    vLLM appends the blocks of a finished request to its free queue last block first, so the session
    idle for longest loses its tail block by block, and shared prefixes outlive their branches.
    """

    static: ClassVar[bool] = True
    whole_entry: ClassVar[bool] = False
    clairvoyant: ClassVar[bool] = False

    def rank(self, entry: KVEntry, cache: CacheView) -> float:
        return -entry.last_access
