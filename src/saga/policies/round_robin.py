from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Which engine? The next one: the balancer knows nothing of sessions."""

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        engines = cluster.engines
        return Route(engines[cluster.num_arrived % len(engines)], "next in turn")
