from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga.core.policy import ClusterView, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class Plas:
    """Which request? One of the workflow that has attained the least service, in a few classes.

    Autellix's program-level attained service (Luo et al., 2025): the GPU time of a workflow's
    earlier calls puts it into one of ``num_queues``, whose upper limits grow by ``factor``; first
    come first served inside. A workflow that has waited ``beta`` times its service, its calls
    before included, counts in the first queue. What runs is not preempted. The paper's numbers are
    not known: these are this project's.
    """

    num_queues: int = 8
    first_s: float = 1.0
    """GPU-seconds at which a workflow leaves the first queue."""
    factor: float = 2.0
    beta: float = 10.0

    def __post_init__(self) -> None:
        if not (self.num_queues >= 1 and self.first_s > 0 and self.factor > 1 and self.beta > 0):
            raise ValueError(
                "num_queues must be at least 1, factor above 1, first_s and beta above 0"
            )

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.arrived

    def choose(self, heads: Sequence[RequestView], cluster: ClusterView) -> RequestView:
        return min(heads, key=lambda head: self.queue(head, cluster.now))

    def first_score(self, request: RequestView, cluster: ClusterView) -> float:
        return 0.0

    def next_score(self, request: RequestView, output_tokens: int, cluster: ClusterView) -> float:
        """Microseconds that the workflow's calls have waited."""
        dispatched = cluster.now if request.dispatched is None else request.dispatched
        return request.session.workflow.score + (dispatched - request.arrived)

    def queue(self, head: RequestView, now: int) -> int:
        """The queue it counts in, the first being 0."""
        workflow = head.session.workflow
        service = workflow.service_us
        if workflow.score + (now - head.arrived) >= self.beta * service:
            return 0
        limit, queue = self.first_s * 1e6, 0
        while queue < self.num_queues - 1 and service >= limit:
            limit *= self.factor
            queue += 1
        return queue
