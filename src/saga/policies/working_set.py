from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """May this workflow start? If on some engine the contexts of the unfinished sessions, their
    expected growth and the newcomer stay within ``kappa`` of the KV capacity.

    An engine without any session always admits, so nothing waits for ever.
    """

    kappa: float = 1.0
    growth_tokens: int = 8_000
    """Expected growth per session, about twelve steps; the best of 3,500, 8,000 and 12,000 on
    ``swe-bench`` in overload."""

    def __post_init__(self) -> None:
        if not (self.kappa > 0 and self.growth_tokens >= 0):
            raise ValueError("kappa must be above 0 and growth_tokens not below 0")

    def admit(self, request: RequestView, cluster: ClusterView) -> Verdict:
        need = request.prompt_tokens + self.growth_tokens
        for engine in cluster.engines:
            committed = engine.committed_tokens + self.growth_tokens * engine.num_sessions
            fits = committed + need <= self.kappa * engine.kv_capacity_tokens
            if fits or engine.num_sessions == 0:
                return Verdict(True, "its working set fits")
        return Verdict(False, "no engine has KV memory for its working set")
