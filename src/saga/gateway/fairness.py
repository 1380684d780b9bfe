"""How tenants fare while the gateway runs: what each is given, who is ahead, and who waits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

from saga.core import events as ev
from saga.core.model import Workflow
from saga.core.scheduler import Scheduler
from saga.gateway.live import is_of
from saga.report.records import TOGETHER, Reading, TenantSeries, TimeSeries
from saga.report.sampler import Meter, Thinning

EVERY_US = 10_000_000
NUM_RECENT = 360
"""Samples of the last hour."""
MAX_TENANTS = 64
"""Tenants with a series of their own. When one more comes, the one that has been gone for longest
joins the others; while none is gone, the new one does."""
OTHERS = "/"
"""All others together; no tenant's name contains a slash."""
WINDOW = 6
"""Samples that a share is taken over: what a request took counts when it ends, so that shorter
times say little."""

Span = Literal["hour", "run"]
SPANS: tuple[Span, ...] = get_args(Span)
NOTHING = Reading()


class FairnessView:
    """Samples a scheduler: the last hour, and the whole run in samples that thin out.

    ``served`` is told what tenants have been given since the last sample, in microseconds of GPU
    time. Memory is bounded, for any number of tenants and any length of time.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        served: Callable[[str, int], None] = lambda tenant, us: None,
        max_tenants: int = MAX_TENANTS,
    ) -> None:
        self.latest: dict[str, Reading] = {OTHERS: NOTHING}
        """The last sample."""
        self._scheduler = scheduler
        self._served = served
        self._max_tenants = max_tenants
        self._meter = Meter(scheduler)
        self._workflows: dict[str, Workflow] = {}
        """Unfinished ones: the scheduler has forgotten them when their end is told."""
        self._hour = TimeSeries(tenants={OTHERS: TenantSeries()})
        self._run = Thinning(TimeSeries(tenants={OTHERS: TenantSeries()}), EVERY_US)
        self._kept: OrderedDict[str, None] = OrderedDict()
        """Tenants with a series of their own, the one that has been gone for longest first."""
        self._next_us = 0

    def note(self, event: ev.Event) -> None:
        """``event`` was handled."""
        if isinstance(event, ev.WorkflowSubmitted):
            self._workflows[event.workflow] = self._scheduler.state.workflows[event.workflow]
        elif isinstance(event, ev.WorkflowDone):
            self._meter.ends(self._workflows.pop(event.workflow))

    # ---- sampling

    def take(self, now: int) -> None:
        """Samples, if it is time to. O(unfinished workflows and requests)."""
        if now < self._next_us:
            return
        self._next_us = now - now % EVERY_US + EVERY_US
        readings = self._meter.read(now, self._kept)
        self._choose(self._count(readings))
        others = [readings[name] for name in readings if name not in self._kept]
        for name in readings.keys() - self._kept.keys():
            self._meter.forget(name)
        had = self.latest[OTHERS].service_us
        self.latest = {name: readings[name] for name in self._kept}
        self.latest[OTHERS] = _together([Reading(service_us=had), *others])
        self._hour.add(now, self.latest)
        if len(self._hour.at_us) > NUM_RECENT:
            self._hour.keep(slice(1, None))
        if self._run.next_us <= now + EVERY_US // 2:  # they come when there is time for them
            self._run.add(now, self.latest)

    def _count(self, readings: dict[str, Reading]) -> list[str]:
        """Tells what each was given; those that were given something, or ask for it."""
        present = []
        for name, reading in readings.items():
            given = reading.service_us - self.latest.get(name, NOTHING).service_us
            if given:
                self._served(name, given)
            if given or reading.entitlement:
                present.append(name)
        return present

    def _choose(self, present: list[str]) -> None:
        """Who is to have a series."""
        here = set(present)
        gone = iter([name for name in self._kept if name not in here])
        for name in present:
            if name in self._kept:
                self._kept.move_to_end(name)
        for name in present:
            if name in self._kept:
                continue
            if len(self._kept) >= self._max_tenants:
                leaves = next(gone, None)
                if leaves is None:
                    return
                self._leave(leaves)
            self._kept[name] = None
            for series in (self._hour, self._run.series):
                series.enter(name)

    def _leave(self, name: str) -> None:
        del self._kept[name]
        for series in (self._hour, self._run.series):
            series.tenants[OTHERS].take_in(series.tenants.pop(name))

    # ---- what is told

    def told(self, owner: str | None, span: Span) -> dict[str, Any]:
        """Of the tenants that had something in that time; ``owner`` None: of everybody."""
        series = self._hour if span == "hour" else self._run.series
        services = [one.service_us for one in series.tenants.values()]
        total = [sum(parts) for parts in zip(*services, strict=True)]
        tenants = {
            name: _told(one, total)
            for name, one in sorted(series.tenants.items())
            if is_of(owner, name) and _has_something(one)
        }
        others = tenants.pop(OTHERS, None)
        return {
            "span": span,
            "at_us": list(series.at_us),
            "tenants": tenants,
            "others": others,
            "deviation": self._deviation() if owner is None else None,
        }

    def _deviation(self) -> float | None:
        fair = self._scheduler.policies.fairness is not None
        return self._scheduler.deviation if fair else None


def _together(readings: Iterable[Reading]) -> Reading:
    fields = zip(*readings, strict=True)
    return Reading(*(together(values) for together, values in zip(TOGETHER, fields, strict=True)))


def _has_something(one: TenantSeries) -> bool:
    """Something was given to it, or it asked for something."""
    return any(one.entitlement) or one.service_us[:1] != one.service_us[-1:]


def _told(one: TenantSeries, total: Sequence[int]) -> dict[str, list[Any]]:
    return {
        "share": _shares(one.service_us, total),
        "entitlement": [round(part, 4) for part in one.entitlement],
        "lead_us": [round(lead) for lead in one.lead_us],
        "longest_wait_us": list(one.longest_wait_us),
        "num_waiting": list(one.num_waiting),
        "committed_tokens": list(one.committed_tokens),
    }


def _shares(service: Sequence[int], total: Sequence[int]) -> list[float | None]:
    """Of what all were given in the window that ends at each sample; None: nobody was."""
    shares: list[float | None] = []
    for end, so_far in enumerate(service):
        begin = max(0, end - WINDOW)
        given = total[end] - total[begin]
        shares.append(round((so_far - service[begin]) / given, 4) if given else None)
    return shares
