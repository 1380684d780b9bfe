from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf, nextafter

from saga.core.fairness import WeightedShares
from saga.core.policy import EngineView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class Dlpm(WeightedShares):
    """Which tenants may go next? Those with a deficit left in the current round.

    Cao et al., Locality-aware Fair Scheduling in LLM Serving (deficit longest prefix match), 2025:
    a round adds ``quantum`` to every deficit, uncached prompt and output tokens use it up, and a
    new round begins when nobody who waits has any left. A tenant that was served C tokens has
    ``rounds * quantum - C`` left, so C below the next multiple of the quantum above the least C is
    the same. Goes with the ordering ``longest_prefix``. The paper names no quantum: this one is a
    few usual steps. Output is counted when a request has ended.
    """

    quantum: float = 10_000.0
    """Tokens per unit of weight."""
    extend_weight: float = 1.0
    output_weight: float = 2.0

    def __post_init__(self) -> None:
        if not (self.quantum > 0 and self.extend_weight >= 0 and self.output_weight >= 0):
            raise ValueError("quantum must be above 0 and the weights must not be below 0")

    def limit(self, least: float) -> float:
        rounds = floor(least / self.quantum) + 1
        return max(least, nextafter(rounds * self.quantum, -inf))

    def forecast_cost(
        self, request: RequestView, uncached_tokens: int, engine: EngineView
    ) -> float:
        return self.extend_weight * uncached_tokens

    def final_cost(
        self, request: RequestView, uncached_tokens: int, output_tokens: int, engine: EngineView
    ) -> float:
        return self.extend_weight * uncached_tokens + self.output_weight * output_tokens
