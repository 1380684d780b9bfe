from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView, SessionView, TenantView, Verdict
from saga.core.return_times import owner_of


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """May this session start? If on some engine the contexts of the unfinished sessions, their
    expected growth and the newcomer stay within ``kappa`` of the KV capacity.

    An engine without any session always admits, so nothing waits for ever. A session counts while
    it is away for as long as its tool usually takes: nobody knows which sessions are over.
    """

    kappa: float = 0.9
    """The rest is for sessions that grow by more than expected."""
    reserve: float = 0.1
    """Part of the KV capacity, beyond ``kappa``, for tenants that have less than their share."""

    absent_percentile: float = 0.95
    absent_unknown_s: float = 60.0
    """After a tool that was never seen to return."""
    absent_floor_s: float = 5.0
    """At least; also after a step without a tool that was never seen to be followed by another."""

    def __post_init__(self) -> None:
        if not (self.kappa > 0 and self.reserve >= 0):
            raise ValueError("kappa must be above 0 and reserve not below 0")
        if not 0 < self.absent_percentile <= 1:
            raise ValueError("absent_percentile must be above 0 and at most 1")
        if not (self.absent_unknown_s >= 0 and self.absent_floor_s >= 0):
            raise ValueError("absent_unknown_s and absent_floor_s must not be below 0")

    def admit(self, request: RequestView, cluster: ClusterView) -> Verdict:
        need = request.prompt_tokens
        need += self.growth_tokens(request.session, need, cluster)
        kappa = self.kappa
        if self._is_owed(request.session.workflow.tenant, need, cluster):
            kappa += self.reserve
        for engine in cluster.engines:
            taken = engine.committed_tokens + engine.growth_tokens
            fits = taken + need <= kappa * engine.kv_capacity_tokens
            if fits or engine.num_sessions == 0:
                return Verdict(True, "its working set fits")
        return Verdict(False, "no engine has KV memory for its working set")

    def _is_owed(self, tenant: TenantView, need: int, cluster: ClusterView) -> bool:
        """Whether its working set stays within its share of the memory."""
        return tenant.committed_tokens + need <= self.kappa * cluster.entitled_tokens(tenant)

    def growth_tokens(self, session: SessionView, tokens: int, cluster: ClusterView) -> int:
        workflow = session.workflow
        return cluster.graphs[workflow.agent_type].growth_tokens(tokens, workflow.mean_steps)

    def absence_us(self, session: SessionView, cluster: ClusterView) -> int:
        owner = owner_of(session.workflow.agent_type)
        usual = cluster.return_times.quantile(session.tool, self.absent_percentile, owner=owner)
        if usual is None:
            usual = 0 if session.tool is None else int(self.absent_unknown_s * 1e6)
        return max(usual, int(self.absent_floor_s * 1e6))
