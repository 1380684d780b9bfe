from __future__ import annotations

from dataclasses import dataclass

from saga.core.loads import Measure
from saga.core.policy import ClusterView, RequestView, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAffinity:
    """Which engine? The session's own, whatever its load; the least loaded for a new session."""

    load: Measure = "sessions"

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        own = request.session.home or request.session.assigned
        if own is not None and not own.draining:
            return Route(own, "affinity")
        return Route(cluster.least_loaded(self.load, request.id), "new session")
