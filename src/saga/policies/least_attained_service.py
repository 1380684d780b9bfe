from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastAttainedService:
    """Which request? One of the workflow that has used the least GPU time so far (PLAS)."""

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.session.workflow.service_us
