"""What the tenants have, looked at now and then, in memory that does not grow with the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from saga.core.model import Tenant
from saga.core.scheduler import Scheduler
from saga.report.records import TenantSeries, TimeSeries
from saga.sim.plan import Plan

MOST_SAMPLES = 400
"""When there are so many, every second one goes, and the times between the next ones double."""

LEAST_SPACING_US = 100_000


def spacing_us(plan: Plan) -> int:
    """Time between samples that uses half of them up when the last workflow arrives or, in a closed
    loop, can have ended."""
    if plan.arrivals is not None:
        span = max(plan.arrivals, default=0)
    else:
        span = sum(plan.alone_us) // (plan.agents or 1)
    return max(LEAST_SPACING_US, 2 * span // MOST_SAMPLES)


class Sampler:
    """Samples a scheduler at multiples of a time; call ``take`` with every time that passes.

    ``tenants``: all that will come. ``every_us``: the first time between samples.
    """

    def __init__(self, scheduler: Scheduler, tenants: Iterable[str], every_us: int) -> None:
        if every_us < 1:
            raise ValueError(f"every_us={every_us}: must be at least 1")
        self.series = TimeSeries(tenants={tenant: TenantSeries() for tenant in sorted(tenants)})
        self.next_us = 0
        self._scheduler = scheduler
        self._every_us = every_us
        self._ended: Counter[str] = Counter()
        """GPU time of workflows that are over, by tenant."""

    def ends(self, workflow: str) -> None:
        """Call before the scheduler is told that it is over."""
        ending = self._scheduler.state.workflows[workflow]
        self._ended[ending.tenant.id] += round(ending.service_us)

    def take(self, now: int) -> None:
        """Takes all samples that are due by ``now``; nothing has happened since the last one."""
        while self.next_us <= now:
            self._sample(self.next_us)
            if len(self.series.at_us) == MOST_SAMPLES:
                self._thin_out()
            self.next_us = self.series.at_us[-1] + self._every_us

    def finish(self, now: int) -> TimeSeries:
        """The series; its last sample is of what the run ended with, even if one of ``now`` is
        there already."""
        self.take(now)
        self._sample(now)
        return self.series

    def _sample(self, at: int) -> None:
        state = self._scheduler.state
        service, waiting = self._ended.copy(), Counter[str]()
        for workflow in state.workflows.values():
            service[workflow.tenant.id] += round(workflow.service_us)
        for request in state.requests.values():
            waiting[request.session.workflow.tenant.id] += request.started is None
        self.series.at_us.append(at)
        for name, series in self.series.tenants.items():
            tenant = state.tenants.get(name)
            series.service_us.append(service[name])
            series.committed_tokens.append(0 if tenant is None else tenant.committed_tokens)
            series.num_waiting.append(waiting[name])
            series.lead_us.append(self._scheduler.unadmitted.lead(name))
            series.entitlement.append(self._entitlement(tenant))

    def _entitlement(self, tenant: Tenant | None) -> float:
        return 0.0 if tenant is None else tenant.weight / self._scheduler.state.total_weight

    def _thin_out(self) -> None:
        self._every_us *= 2
        series = self.series
        series.at_us = series.at_us[::2]
        for one in series.tenants.values():
            one.service_us = one.service_us[::2]
            one.committed_tokens = one.committed_tokens[::2]
            one.num_waiting = one.num_waiting[::2]
            one.lead_us = one.lead_us[::2]
            one.entitlement = one.entitlement[::2]
