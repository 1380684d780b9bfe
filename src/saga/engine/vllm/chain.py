"""What one session left behind on an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from saga.core.cache import KVEntry


@dataclass(slots=True, kw_only=True, eq=False)
class Chain(KVEntry):
    """What one session left behind; ``tokens`` of the entry are the free blocks listed under it."""

    name: str
    blocks: list[int] = field(default_factory=list)
    """Claimed, from the head of the context to its tail."""
    ends: Sequence[int] = ()
    """Tokens of the context up to the end of each block; may be longer than ``blocks``."""
    owned: int = 0
    """Blocks that are listed under it as soon as they are free."""
    until: int = 0
    """What was promised; ``retained_until`` is later while a request of the session waits."""

    @property
    def resident_tokens(self) -> int:
        return self.ends[len(self.blocks) - 1] if self.blocks else 0
