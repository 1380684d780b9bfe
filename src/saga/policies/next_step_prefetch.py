from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, SessionView
from saga.core.return_times import owner_of


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStepPrefetch:
    """Whose KV should be ready? That of a session whose tool usually returns about now.

    Paper section 4.3 prepares the next step's KV while the tool runs. Here KV that was evicted or
    offloaded meanwhile is brought back ``lead_s`` before the tool's median return time.
    """

    percentile: float = 0.5
    lead_s: float = 1.0
    min_gap_s: float = 2.0
    """Shorter gaps are not worth the memory."""

    def at(self, session: SessionView, cluster: ClusterView) -> int | None:
        owner = owner_of(session.workflow.agent_type)
        usual = cluster.return_times.quantile(session.tool, self.percentile, owner=owner)
        if usual is None or usual < self.min_gap_s * 1e6:
            return None
        return cluster.now + int(usual - self.lead_s * 1e6)
