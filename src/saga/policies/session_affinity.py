from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from saga.core.policy import LOADS, ClusterView, RequestView, Route, least_loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAffinity:
    """Which engine? The session's own, whatever its load; the least loaded for a new session."""

    load: Literal["requests", "sessions", "committed", "paper"] = "sessions"

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        own = request.session.home or request.session.assigned
        if own is not None and not own.draining:
            return Route(own, "affinity")
        return Route(least_loaded(cluster.engines, LOADS[self.load], request.id), "new session")
