from __future__ import annotations

from dataclasses import dataclass

from saga.core.loads import Measure
from saga.core.policy import ClusterView, RequestView, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastLoaded:
    """Which engine? The least loaded one, for every request anew."""

    load: Measure = "requests"

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        engine = cluster.least_loaded(self.load, request.id)
        return Route(engine, "least loaded")
