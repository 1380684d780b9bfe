"""Service accounting and start-time fair queueing over tenants.

Service is GPU time: charged at dispatch by forecast, corrected when the request ends. A tenant's
virtual time advances by service over share; whoever has the smallest goes next; a tenant that comes
back from idleness starts at the system's virtual time, so that idleness is not saved up.
"""

from __future__ import annotations

from collections import OrderedDict

from saga.core.model import Request, Tenant, Workflow
from saga.core.policy import ClusterView, FairnessPolicy

REFRESH_PER_EVENT = 1
"""Urgencies looked at again per event: a small constant keeps decisions flat in the number of
workflows, at the price that with very many of them an epoch is stretched."""


class ServiceLedger:
    """Who was given how much, and whose turn it is. Without a policy it only keeps count."""

    def __init__(self, policy: FairnessPolicy | None, epoch_us: int) -> None:
        self._policy = policy
        self._epoch_us = epoch_us
        self._rotation: OrderedDict[str, Workflow] = OrderedDict()
        """Unfinished workflows, the one whose urgency is the stalest first."""
        self.virtual_time = 0.0
        """The largest virtual time at which anybody was served."""
        self._left: dict[str, float] = {}
        """Tenants without workflows whose virtual time is ahead: they come back with that debt."""

    def enter(self, workflow: Workflow, cluster: ClusterView) -> None:
        if self._policy is not None:
            self._rotation[workflow.id] = workflow
            self._refresh(workflow, cluster)

    def reassess(self, workflow: Workflow, cluster: ClusterView) -> None:
        """It has a session more; one without sessions has nothing to be urgent about."""
        if self._policy is not None:
            self._refresh(workflow, cluster)

    def leave(self, workflow: Workflow) -> None:
        """Call when the workflow ends."""
        if self._policy is not None:
            del self._rotation[workflow.id]
            workflow.tenant.urgency -= workflow.urgency
            workflow.urgency = 0.0
            self._reshare(workflow.tenant)

    def refresh(self, cluster: ClusterView) -> None:
        """Brings the stalest urgencies up to date, a few per call."""
        for _ in range(min(REFRESH_PER_EVENT, len(self._rotation))):
            workflow = next(iter(self._rotation.values()))
            if cluster.now - workflow.urgency_at < self._epoch_us:
                return
            self._refresh(workflow, cluster)

    def join(self, tenant: Tenant) -> None:
        """Call when the tenant is new, or back."""
        tenant.virtual_time = max(self.virtual_time, self._left.pop(tenant.id, 0.0))

    def part(self, tenant: Tenant) -> None:
        """Call when the tenant's last workflow has ended. A lead that is used up is forgotten."""
        self._left = {id: ahead for id, ahead in self._left.items() if ahead > self.virtual_time}
        if tenant.virtual_time > self.virtual_time:
            self._left[tenant.id] = tenant.virtual_time

    def queued(self, tenant: Tenant) -> None:
        """One more request of the tenant waits."""
        if tenant.num_queued == 0:
            tenant.virtual_time = max(tenant.virtual_time, self.virtual_time)
        tenant.num_queued += 1

    def unqueued(self, tenant: Tenant) -> None:
        """One fewer, without having been served."""
        tenant.num_queued -= 1

    def charge(self, request: Request, cost_us: float) -> None:
        """The request is given ``cost_us`` of GPU time, by forecast."""
        tenant = request.session.workflow.tenant
        tenant.num_queued -= 1
        self.virtual_time = max(self.virtual_time, tenant.virtual_time)
        request.charged_us = cost_us
        self._add(tenant, cost_us)

    def settle(self, request: Request, cost_us: float) -> None:
        """What the request really took: 0 if it is queued again."""
        self._add(request.session.workflow.tenant, cost_us - request.charged_us)
        request.charged_us = cost_us

    def _add(self, tenant: Tenant, service_us: float) -> None:
        tenant.service_us += service_us
        due = service_us - tenant.credit_us
        tenant.credit_us = max(0.0, -due)
        if due > 0.0:
            tenant.virtual_time += due / tenant.share

    def _refresh(self, workflow: Workflow, cluster: ClusterView) -> None:
        assert self._policy is not None
        urgency = self._policy.urgency(workflow, cluster)
        workflow.tenant.urgency += urgency - workflow.urgency
        workflow.urgency = urgency
        workflow.urgency_at = cluster.now
        self._rotation.move_to_end(workflow.id)
        self._reshare(workflow.tenant)

    def _reshare(self, tenant: Tenant) -> None:
        assert self._policy is not None
        tenant.share = self._policy.share(tenant, max(0.0, tenant.urgency))
