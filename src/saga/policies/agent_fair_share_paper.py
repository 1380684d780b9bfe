from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from saga.core.fairness import WeightedShares, gpu_us
from saga.core.policy import ClusterView, RequestView, TenantView, WorkflowView

SHARE = attrgetter("session.workflow.tenant.share")
"""Of the tenant of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFairSharePaper(WeightedShares):
    """Which tenant? The one furthest behind a share proportional to its urgency (Eq. 8 and 9).

    ``AFS_i = sum over its workflows of work_remain / (deadline - now)``; the deadline is submission
    plus ``slo_factor`` times the expected TCT (here: the mean of GPU time plus return times of
    finished workflows of the type, since nobody knows its own TCT). The paper leaves overdue
    deadlines open: their slack is held at ``min_slack_s``.
    """

    slo_factor: float = 1.5
    min_slack_s: float = 1.0
    min_urgency: float = 0.01
    """Nobody's share falls below that of this urgency: a forecast of no work left may be wrong."""
    preempt_after_ms: float = 500.0
    """A queued request whose head waits longer than this may preempt a tenant of lower priority."""
    preempt_ratio: float = 2.0

    def __post_init__(self) -> None:
        if not (self.slo_factor > 0 and self.min_slack_s > 0 and self.min_urgency > 0):
            raise ValueError("slo_factor, min_slack_s and min_urgency must be above 0")

    def urgency(self, workflow: WorkflowView, cluster: ClusterView) -> float:
        cost_us = gpu_us(workflow.remaining, cluster)
        slack_us = self._deadline(workflow, cluster, cost_us) - cluster.now
        return cost_us / max(slack_us, self.min_slack_s * 1e6)

    def share(self, tenant: TenantView, urgency: float) -> float:
        return tenant.weight * max(urgency, self.min_urgency)

    def preempt(
        self, head: RequestView, running: Sequence[RequestView], cluster: ClusterView
    ) -> RequestView | None:
        if cluster.now - head.arrived <= self.preempt_after_ms * 1e3 or not running:
            return None
        lowest = min(running, key=SHARE)
        return lowest if SHARE(head) > self.preempt_ratio * SHARE(lowest) else None

    def _deadline(self, workflow: WorkflowView, cluster: ClusterView, work_us: float) -> float:
        if workflow.deadline is not None:
            return workflow.deadline
        expected = cluster.graphs[workflow.agent_type].ideal_us.value(work_us)
        return workflow.submitted + self.slo_factor * expected
