from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView

COLD = float(1 << 52)
"""Later than every submission time in microseconds (142 years)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridOrder:
    """Which request? Warm sessions before cold ones, and within each the older workflow.

    The paper names a hybrid of breadth and depth first and does not state its rule: going deep
    where KV is resident, and taking turns by age where it is not, is this project's reading.
    """

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        warm = request.session.resident_tokens > 0
        return request.session.workflow.submitted + (0.0 if warm else COLD)
