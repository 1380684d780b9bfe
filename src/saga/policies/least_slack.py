from __future__ import annotations

from dataclasses import dataclass

from saga.core.fairness import gpu_us
from saga.core.model import SessionState
from saga.core.policy import ClusterView, RequestView, SessionView


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSlack:
    """Which request? The one that has to start first for its workflow to end in time.

    In time is by its deadline, or, where none is declared or it cannot be met any more, within
    ``stretch / priority`` times what such workflows usually take, counted from its submission or
    from when it last gave way. A request starts so much earlier as the rest of its session takes;
    a sub-agent's also as its ancestors take that wait for it, so that of those that block a join
    the longest goes first. Nobody is overtaken by a workflow like it that came later.
    """

    stretch: float = 1.5
    """The SLO of the paper's fair share."""

    def __post_init__(self) -> None:
        if not self.stretch >= 0:
            raise ValueError(f"stretch is {self.stretch}, allowed is 0 or more")

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        session, workflow = request.session, request.session.workflow
        left_us, deadline = self._left_us(session, cluster), workflow.deadline
        if deadline is not None and cluster.now + left_us <= deadline:
            return deadline - left_us
        usual_us = cluster.graphs[workflow.agent_type].ideal_us.value(0.0)
        return workflow.ranked_at + self.stretch / workflow.priority * usual_us - left_us

    def _left_us(self, session: SessionView, cluster: ClusterView) -> float:
        """What the session has still to do, and after it the ancestors that wait for it."""
        left_us, waits = 0.0, session
        seen = set()
        while waits.id not in seen:
            seen.add(waits.id)
            left_us += self._alone_us(waits, cluster)
            parent = session.workflow.sessions.get(waits.parent or "")
            if parent is None or parent.state is not SessionState.ACTING:
                break
            waits = parent
        return left_us

    def _alone_us(self, session: SessionView, cluster: ClusterView) -> float:
        work = cluster.graphs.remaining(session)
        usual_us = cluster.graphs[session.workflow.agent_type].usual_us(work.steps)
        return gpu_us(work, cluster) if usual_us is None else usual_us
