from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, Hold, SessionView
from saga.core.return_times import owner_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTtl:
    """Which KV may not go? That of a session in a tool, until the tool's usual return (Alg. 1).

    ``ttl = min(P95(return time of the tool) (1 - 0.5 m), 300 s)`` with ``m`` the memory pressure
    between its low and high mark (Eq. 6). A tool that was never seen gets the longest TTL. The
    score is P_reuse of the agent execution graph (Eq. 4 and 5); nothing is held while the graph is
    neither declared nor learned.
    """

    percentile: float = 0.95
    max_ttl_s: float = 300.0
    pressure_low: float = 0.7
    pressure_high: float = 0.9
    floor_s: float = 0.0
    """Shortest TTL; the paper has none, and tools of milliseconds then expire before anything."""
    hold_terminal: bool = False
    """Whether a step that calls no tool is held too."""
    release_finished: bool = False
    protect_queued: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile is {self.percentile}, allowed is above 0 to 1")
        if not 0 <= self.pressure_low < self.pressure_high:
            raise ValueError("pressure_low must be at least 0 and below pressure_high")
        if not (self.max_ttl_s >= 0 and self.floor_s >= 0):
            raise ValueError("max_ttl_s and floor_s must be at least 0")

    def hold(self, session: SessionView, cluster: ClusterView) -> Hold | None:
        home = session.home
        if home is None:
            return None
        score = cluster.graphs.p_reuse(session)
        if score is None:
            return None
        if session.tool is None and not self.hold_terminal:
            return Hold(cluster.now, score, "no tool called: scored only")
        pressure = (home.memory_pressure - self.pressure_low) / (
            self.pressure_high - self.pressure_low
        )
        shrink = 1.0 - 0.5 * max(0.0, min(1.0, pressure))
        owner = owner_of(session.workflow.agent_type)
        usual = cluster.return_times.quantile(session.tool, self.percentile, owner=owner)
        longest = self.max_ttl_s * 1e6
        ttl_us = longest if usual is None else min(usual * shrink, longest)
        ttl_us = max(ttl_us, self.floor_s * 1e6)
        return Hold(cluster.now + int(ttl_us), score, f"tool {session.tool or 'none'}")
