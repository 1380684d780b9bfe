"""Service accounting: what requests and workflows take, forecast when they begin, then corrected.

A request is charged its GPU time in the queue of its engine. A workflow is charged, in the queue
for admission, the dominant share of what it is expected to take: GPU time, or KV memory-time (the
part of an engine's KV memory that it holds, also while its tools run, times how long), whichever
is more (Ghodsi et al., Multi-Resource Fair Queueing, SIGCOMM 2012). Sub-agents count as their
workflow does. ``docs/fairness.md`` says what follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from saga.core.graph import RemainingWork
from saga.core.model import Engine, Request, Tenant, Workflow
from saga.core.policy import (
    ClusterView,
    EngineView,
    FairnessPolicy,
    RequestView,
    TenantView,
    WorkflowView,
)
from saga.core.queues import FairQueue

USUAL_COST_US = (250.0, 2_500.0)
"""GPU time per prefilled and per generated token where no engine is up to tell."""

REFRESH_PER_EVENT = 1
"""Urgencies looked at again per event: a small constant keeps decisions flat in the number of
workflows, at the price that with very many of them an epoch is stretched."""


def gpu_us(work: RemainingWork, cluster: ClusterView) -> float:
    """GPU time of work that is still to come, on an engine like the cluster's first."""
    engines = cluster.engines
    if engines:
        return engines[0].cost_us(int(work.new_tokens), int(work.output_tokens))
    return work.new_tokens * USUAL_COST_US[0] + work.output_tokens * USUAL_COST_US[1]


class WeightedShares:
    """What fairness policies say unless they know better: the one furthest behind its weight goes
    next, a request costs its GPU time in microseconds, and nobody is preempted."""

    __slots__ = ()

    def limit(self, least: float) -> float:
        return least

    def start_limit(self, least: float) -> float:
        return least

    def forecast_cost(
        self, request: RequestView, uncached_tokens: int, engine: EngineView
    ) -> float:
        return engine.cost_us(uncached_tokens, request.expected_output_tokens)

    def final_cost(
        self, request: RequestView, uncached_tokens: int, output_tokens: int, engine: EngineView
    ) -> float:
        return engine.cost_us(uncached_tokens, output_tokens)

    def urgency(self, workflow: WorkflowView, cluster: ClusterView) -> float:
        return 0.0

    def share(self, tenant: TenantView, urgency: float) -> float:
        return tenant.weight

    def preempt(
        self, head: RequestView, running: Sequence[RequestView], cluster: ClusterView
    ) -> RequestView | None:
        return None


class ServiceLedger:
    """Who was given how much, and what shares they have. Without a policy it only keeps count."""

    def __init__(self, policy: FairnessPolicy | None, epoch_us: int) -> None:
        self._policy = policy
        self._costs: FairnessPolicy = WeightedShares() if policy is None else policy
        self._epoch_us = epoch_us
        self._rotation: OrderedDict[str, Workflow] = OrderedDict()
        """Unfinished workflows, the one whose urgency is the stalest first."""

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

    def charge(
        self, request: Request, uncached_tokens: int, engine: Engine, queue: FairQueue
    ) -> None:
        """The request is sent, and charged by forecast."""
        cost = self._costs.forecast_cost(request, uncached_tokens, engine)
        tenant = request.session.workflow.tenant
        tenant.num_queued -= 1
        tenant.service += cost
        request.charged, request.share = cost, tenant.share
        queue.take(request, cost / tenant.share)

    def finish(
        self, request: Request, output_tokens: int, engine: Engine, queue: FairQueue
    ) -> None:
        """The request is charged what it took."""
        uncached = request.prompt_tokens - request.cached_tokens
        cost = self._costs.final_cost(request, uncached, output_tokens, engine)
        self.settle(request, cost, queue)

    def settle(self, request: Request, cost: float, queue: FairQueue | None) -> None:
        """What it is charged in the end: 0 if it is queued again. The queue may be gone."""
        tenant = request.session.workflow.tenant
        excess = cost - request.charged
        tenant.service += excess
        request.charged = cost
        if queue is not None:
            queue.settle(tenant.id, excess / request.share, excess / request.share)

    def start(self, head: Request, cluster: ClusterView, queue: FairQueue) -> None:
        """The session of a request is admitted. The first one of a workflow is charged all that
        workflows of its type take, a sub-agent what it makes the workflow expect beyond that."""
        workflow = head.session.workflow
        charged = workflow.charged_us
        expected = workflow.cost_us + gpu_us(workflow.remaining, cluster)
        if charged is None:
            expected = cluster.graphs[workflow.agent_type].cost_us.value(expected)
            charged, workflow.share = 0.0, workflow.tenant.share
        extra = max(0.0, expected - charged)
        queue.take(head, extra / workflow.share)
        if workflow.charged_us is not None:  # one workflow is in flight, not two
            queue.settle(workflow.tenant.id, 0.0, 0.0)
        workflow.charged_us = charged + extra
        workflow.expected_us += extra

    def go_on(self, workflow: Workflow, queue: FairQueue) -> None:
        """It has taken something. Charged more only once it exceeds what was expected."""
        if workflow.charged_us is None or workflow.cost_us <= workflow.charged_us:
            return
        excess, workflow.charged_us = workflow.cost_us - workflow.charged_us, workflow.cost_us
        share, error = workflow.share, workflow.cost_us - workflow.expected_us
        queue.correct(workflow.tenant.id, excess / share, error / share)

    def end(self, workflow: Workflow, queue: FairQueue) -> None:
        """It is over."""
        if workflow.charged_us is not None:
            excess, share = workflow.cost_us - workflow.charged_us, workflow.share
            error = workflow.cost_us - workflow.expected_us
            queue.settle(workflow.tenant.id, excess / share, error / share)

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
