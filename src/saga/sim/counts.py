"""What an engine counts over the measured window."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from saga.report.records import TokenCounts


@dataclass(slots=True)
class Counts:
    """Adds up over engines with ``+``."""

    tokens: TokenCounts = field(default_factory=TokenCounts)
    regenerated_ps: int = 0
    busy_ps: int = 0
    evicted_blocks: int = 0
    num_evictions: int = 0
    num_preemptions: int = 0

    def __add__(self, other: Counts) -> Counts:
        both = Counts(
            TokenCounts(
                **{
                    name.name: getattr(self.tokens, name.name) + getattr(other.tokens, name.name)
                    for name in fields(TokenCounts)
                }
            )
        )
        for name in fields(Counts)[1:]:
            setattr(both, name.name, getattr(self, name.name) + getattr(other, name.name))
        return both
