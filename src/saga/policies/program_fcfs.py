from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFcfs:
    """Which request? One of the workflow that was submitted first (baselines: program FCFS).

    A workflow that gave way to others counts from then on.
    """

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.session.workflow.ranked_at
