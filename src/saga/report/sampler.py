"""What the tenants of a scheduler have, looked at now and then, in memory that does not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from saga.core.model import Workflow
from saga.core.scheduler import Scheduler
from saga.report.records import Reading, TenantSeries, TimeSeries

MOST_SAMPLES = 400
"""When there are so many, every second one goes, and the times between the next ones double."""


class Meter:
    """Reads off a scheduler what each tenant has. O(unfinished workflows and requests)."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._served: Counter[str] = Counter()
        """GPU time so far, by tenant."""
        self._counted: dict[str, int] = {}
        """What of that is of which unfinished workflow."""

    def ends(self, workflow: Workflow) -> None:
        """It is over, and will not be read again."""
        counted = self._counted.pop(workflow.id, 0)
        self._served[workflow.tenant.id] += round(workflow.service_us) - counted

    def forget(self, tenant: str) -> None:
        """Its service is counted from now on."""
        self._served.pop(tenant, None)

    def read(self, at: int, tenants: Iterable[str] = ()) -> dict[str, Reading]:
        """Of these tenants, then of the others that have something or had before."""
        state = self._scheduler.state
        counted: dict[str, int] = {}
        for workflow in state.workflows.values():
            service = counted[workflow.id] = round(workflow.service_us)
            self._served[workflow.tenant.id] += service - self._counted.get(workflow.id, 0)
        self._counted = counted
        waiting, since = Counter[str](), dict[str, int]()
        for request in state.requests.values():  # in the order in which they arrived
            if request.started is None:
                name = request.session.workflow.tenant.id
                waiting[name] += 1
                since.setdefault(name, request.arrived)
        readings = {}
        for name in dict.fromkeys((*tenants, *state.tenants, *self._served)):
            tenant = state.tenants.get(name)
            readings[name] = Reading(
                service_us=self._served[name],
                committed_tokens=0 if tenant is None else tenant.committed_tokens,
                num_waiting=waiting[name],
                longest_wait_us=max(0, at - since.get(name, at)),
                lead_us=self._scheduler.unadmitted.lead(name),
                entitlement=0.0 if tenant is None else tenant.weight / state.total_weight,
            )
        return readings


class Thinning:
    """A series of any length of time, in at most ``MOST_SAMPLES`` samples."""

    def __init__(self, series: TimeSeries, every_us: int) -> None:
        if every_us < 1:
            raise ValueError(f"every_us={every_us}: must be at least 1")
        self.series = series
        self.next_us = 0
        """When the next sample is due."""
        self._every_us = every_us

    def add(self, at: int, readings: Mapping[str, Reading]) -> None:
        self.series.add(at, readings)
        if len(self.series.at_us) == MOST_SAMPLES:
            self._every_us *= 2
            self.series.keep(slice(None, None, 2))
        self.next_us = self.series.at_us[-1] + self._every_us


class Sampler:
    """Samples a scheduler at multiples of a time; call ``take`` with every time that passes.

    ``tenants``: all that will come. ``every_us``: the first time between samples.
    """

    def __init__(self, scheduler: Scheduler, tenants: Iterable[str], every_us: int) -> None:
        self.series = TimeSeries(tenants={tenant: TenantSeries() for tenant in sorted(tenants)})
        self._scheduler = scheduler
        self._meter = Meter(scheduler)
        self._thinning = Thinning(self.series, every_us)
        self.next_us = self._thinning.next_us

    def ends(self, workflow: str) -> None:
        """Call before the scheduler is told that it is over."""
        self._meter.ends(self._scheduler.state.workflows[workflow])

    def take(self, now: int) -> None:
        """Takes all samples that are due by ``now``; nothing has happened since the last one."""
        while self.next_us <= now:
            self._thinning.add(self.next_us, self._read(self.next_us))
            self.next_us = self._thinning.next_us

    def finish(self, now: int) -> TimeSeries:
        """The series; its last sample is of what the run ended with, even if one of ``now`` is
        there already."""
        self.take(now)
        self.series.add(now, self._read(now))
        return self.series

    def _read(self, at: int) -> dict[str, Reading]:
        return self._meter.read(at, self.series.tenants)
