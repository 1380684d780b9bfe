"""Which workflows cannot make their deadline, asked when they begin, and how long they will wait.

What a workflow will wait for admission is told by those of its tenant that were let in lately: how
long they waited for each place that they were from the front when they came, times its own place.
Where nothing of the tenant waits, a newcomer is next and does not count as waiting.
"""

from __future__ import annotations

from saga.core.model import Request
from saga.core.policy import ClusterView, Policies
from saga.core.queues import FairQueue

LEARN = 0.2
"""Weight of the workflow let in last."""


class Deadlines:
    """Asks the admission policy once about each workflow with a deadline. Without one, nobody is
    refused."""

    def __init__(self, policies: Policies, queue: FairQueue, cluster: ClusterView) -> None:
        self._admission = policies.admission
        self._ordering = policies.ordering
        self._queue = queue
        """For admission."""
        self._cluster = cluster

    def refusal(self, request: Request) -> str:
        """Why the workflow of a request that has just arrived cannot make its deadline; empty if it
        can, or nobody says so. Once given, the answer holds for all of its requests."""
        session, workflow = request.session, request.session.workflow
        if workflow.begun is None:
            workflow.begun = self._cluster.now
            goes_on = session.parent is not None or session.home is not None  # from an earlier life
            if self._admission is not None and workflow.deadline is not None and not goes_on:
                wait_us = self.wait_us(request)
                verdict = self._admission.makes(request, wait_us, self._cluster)
                workflow.refusal = "" if verdict.admit else verdict.reason
        return workflow.refusal

    def wait_us(self, request: Request) -> int:
        """What it will probably wait for admission."""
        ahead = self._queue.num_ahead(request, self._ordering.key(request, self._cluster))
        return 0 if ahead is None else int(request.session.workflow.tenant.place_us * (ahead + 1))

    def enter(self, request: Request, key: float) -> None:
        """Call before it begins to wait for admission."""
        request.place = (self._queue.num_ahead(request, key) or 0) + 1

    def let_in(self, request: Request) -> None:
        """It waits no longer. Those of workflows under way say nothing: they go ahead of others."""
        workflow = request.session.workflow
        if not workflow.num_steps:
            per_place = (self._cluster.now - request.arrived) / request.place
            workflow.tenant.place_us += LEARN * (per_place - workflow.tenant.place_us)
