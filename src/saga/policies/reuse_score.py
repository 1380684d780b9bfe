from __future__ import annotations

from dataclasses import dataclass

from saga.core.policy import ClusterView, Hold, SessionView


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseScore:
    """Which KV may not go? None: it is only scored with P_reuse (the paper without its TTL)."""

    release_finished: bool = False
    protect_queued: bool = False

    def hold(self, session: SessionView, cluster: ClusterView) -> Hold | None:
        score = cluster.graphs.p_reuse(session)
        return None if score is None else Hold(cluster.now, score, "scored only")
