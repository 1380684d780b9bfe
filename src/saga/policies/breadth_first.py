from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class BreadthFirst:
    """Which request? One of the session that has had the fewest steps: all advance together."""

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.session.num_steps
