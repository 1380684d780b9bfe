from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saga.core.policy import LOADS, ClusterView, RequestView, Route, least_loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastLoaded:
    """Which engine? The least loaded one, for every request anew."""

    load: Literal["requests", "sessions", "committed", "paper"] = "requests"

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        engine = least_loaded(cluster.engines, LOADS[self.load], request.id)
        return Route(engine, "least loaded")
