from __future__ import annotations

from dataclasses import dataclass

from saga.core.fairness import WeightedShares
from saga.core.policy import EngineView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class Vtc(WeightedShares):
    """Which tenant? The one with the least virtual token counter.

    Sheng et al., Fairness in Serving Large Language Models, OSDI 2024: all prompt tokens are
    counted when a request is sent, cached or not. Output is counted when it has ended, since only
    then does the scheduler know of it; the paper counts every token as it comes. Counters are per
    engine. Who comes back starts no lower than the least counter was at the last turn.
    """

    input_weight: float = 1.0
    output_weight: float = 2.0

    def __post_init__(self) -> None:
        if not (self.input_weight >= 0 and self.output_weight >= 0):
            raise ValueError("input_weight and output_weight must not be below 0")

    def forecast_cost(
        self, request: RequestView, uncached_tokens: int, engine: EngineView
    ) -> float:
        return self.input_weight * request.prompt_tokens

    def final_cost(
        self, request: RequestView, uncached_tokens: int, output_tokens: int, engine: EngineView
    ) -> float:
        return self.input_weight * request.prompt_tokens + self.output_weight * output_tokens
