from __future__ import annotations

from dataclasses import dataclass

from saga.core.loads import Measure
from saga.core.policy import ClusterView, RequestView, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityThreshold:
    """Which engine? The one that has the KV unless it is too loaded, else the least loaded one.

    Paper section 5: ``w*_s if load(w*_s) < theta and KV of s is on w*_s else argmin load``.
    """

    theta: float = 0.8
    load: Measure = "paper"
    """Load by which an engine is too loaded."""
    placement: Measure = "paper"
    """Load by which another engine is chosen."""
    move_kv: bool = False
    """Whether the KV follows a session that leaves a loaded engine, or is computed again."""
    margin: float = 0.0
    """How much lower the other engine's load must be for a session with KV to leave its home."""
    cold_margin: float = 0.0
    """The same where its KV cannot follow."""

    def __post_init__(self) -> None:
        if not self.theta >= 0:
            raise ValueError(f"theta is {self.theta}, allowed is 0 or more")

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        session = request.session
        home = session.home
        warm = home is not None and not home.draining and session.resident_tokens > 0
        if warm and home is not None and cluster.load(self.load, home) < self.theta:
            return Route(home, "affinity")
        best = cluster.least_loaded(self.placement, request.id)
        if not warm or home is None:
            return Route(best, "new session or no KV left")
        follows = self.move_kv and home.shared_kv == best.shared_kv is not None
        gain = cluster.load(self.load, home) - cluster.load(self.load, best)
        if gain < (self.margin if follows else self.cold_margin):
            return Route(home, "affinity: no better engine")
        return Route(best, "home too loaded", move_kv=follows)
