from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class Fcfs:
    """Which request? The one that arrived first."""

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.arrived
