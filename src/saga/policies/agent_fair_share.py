from __future__ import annotations

from dataclasses import dataclass

from saga.core.fairness import WeightedShares


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFairShare(WeightedShares):
    """Which tenants may go next? Those at most a window ahead of the one that is furthest behind.

    Shares are the tenants' weights, whatever they ask for. Inside the window the order is free, so
    mean completion times may be cut without anybody losing more than ``docs/fairness.md`` proves.
    """

    window_s: float = 4.0
    """Lead in what engines are sent, GPU-seconds per unit of weight: two to four usual steps."""
    start_window_s: float = 60.0
    """Lead in what started workflows are charged; larger ones let more small ones by."""

    def __post_init__(self) -> None:
        if not (self.window_s >= 0 and self.start_window_s >= 0):
            raise ValueError("window_s and start_window_s must not be below 0")

    def limit(self, least: float) -> float:
        return least + self.window_s * 1e6

    def start_limit(self, least: float) -> float:
        return least + self.start_window_s * 1e6
