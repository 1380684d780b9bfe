from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView, SessionView, Verdict
from saga.core.return_times import owner_of


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """May this workflow start? If on some engine the contexts of the unfinished sessions, their
    expected growth and the newcomer stay within ``kappa`` of the KV capacity.

    An engine without any session always admits, so nothing waits for ever. A session counts while
    it is away for as long as its tool usually takes: nobody knows which sessions are over.
    """

    kappa: float = 1.0
    growth_tokens: int = 8_000
    """Expected growth per session, about twelve steps; the best of 3,500, 8,000 and 12,000 on
    ``swe-bench`` in overload."""

    absent_percentile: float = 0.95
    absent_unknown_s: float = 60.0
    """After a tool that was never seen to return."""
    absent_floor_s: float = 5.0
    """At least; also after a step without a tool that was never seen to be followed by another."""

    def __post_init__(self) -> None:
        if not (self.kappa > 0 and self.growth_tokens >= 0):
            raise ValueError("kappa must be above 0 and growth_tokens not below 0")
        if not 0 < self.absent_percentile <= 1:
            raise ValueError("absent_percentile must be above 0 and at most 1")
        if not (self.absent_unknown_s >= 0 and self.absent_floor_s >= 0):
            raise ValueError("absent_unknown_s and absent_floor_s must not be below 0")

    def admit(self, request: RequestView, cluster: ClusterView) -> Verdict:
        need = request.prompt_tokens + self.growth_tokens
        for engine in cluster.engines:
            committed = engine.committed_tokens + self.growth_tokens * engine.num_sessions
            fits = committed + need <= self.kappa * engine.kv_capacity_tokens
            if fits or engine.num_sessions == 0:
                return Verdict(True, "its working set fits")
        return Verdict(False, "no engine has KV memory for its working set")

    def absence_us(self, session: SessionView, cluster: ClusterView) -> int:
        owner = owner_of(session.workflow.agent_type)
        usual = cluster.return_times.quantile(session.tool, self.absent_percentile, owner=owner)
        if usual is None:
            usual = 0 if session.tool is None else int(self.absent_unknown_s * 1e6)
        return max(usual, int(self.absent_floor_s * 1e6))
