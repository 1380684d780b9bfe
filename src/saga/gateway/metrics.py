"""What the gateway says about itself on ``/metrics``. Names begin with ``saga_``, units are base
units; no label grows with clients' ids, and tenants beyond a cap share one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from saga.gateway.answer import Usage
from saga.gateway.fairness import OTHERS

if TYPE_CHECKING:
    from saga.gateway.service import Gateway

MAX_TENANTS = 1_000
"""Further ones are counted as ``other``."""
OTHER = "other"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000)
OUTCOMES = ("finished", "rejected", "cancelled", "failed")


class Metrics:
    """Counts that the data path writes as plain numbers; everything is put into words only when
    somebody asks, as all runs on one thread."""

    def __init__(self, gateway: Gateway) -> None:
        self.registry = CollectorRegistry()
        self.refused: Counter[int] = Counter()
        """By status."""
        self.num_retries = 0
        self.ttft = Distribution(SECONDS)
        self.held = Distribution(SECONDS)
        self.task = Distribution((*SECONDS, 10_000))
        self._tenants: dict[str, dict[str, int]] = {}
        """Requests that arrived, and by outcome; GPU time that they took."""
        self._sources: Counter[str] = Counter()
        self._rehits: Counter[str] = Counter()
        self._prompt_tokens = self._output_tokens = self._cached_tokens = 0
        self.registry.register(self)
        self.registry.register(_Now(gateway))

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def arrived(self, tenant: str) -> None:
        self._of(tenant)["arrived"] += 1

    def ended(self, tenant: str, outcome: str) -> None:
        self._of(tenant)[outcome] += 1

    def served(self, tenant: str, us: int) -> None:
        self._of(tenant)["service_us"] += us

    def totals(self, counts: Callable[[str], bool]) -> dict[str, int]:
        """Requests that arrived, and by outcome, of the tenants that count."""
        found = [told for tenant, told in self._tenants.items() if counts(tenant)]
        return {what: sum(told[what] for told in found) for what in ("arrived", *OUTCOMES)}

    def answered(self, usage: Usage, source: str, *, resumed: bool) -> None:
        """An answer came whole. ``resumed``: its session had a step before."""
        self._sources[source] += 1
        self._output_tokens += usage.output_tokens or 0
        if usage.prompt_tokens is None:
            return
        self._prompt_tokens += usage.prompt_tokens
        if usage.cached_tokens is None:
            return
        self._cached_tokens += usage.cached_tokens
        if resumed:
            share = usage.cached_tokens / max(1, usage.prompt_tokens)
            self._rehits["full" if share >= 0.8 else "partial" if share >= 0.2 else "miss"] += 1

    def _of(self, tenant: str) -> dict[str, int]:
        known = self._tenants.get(tenant)
        if known is None:
            if len(self._tenants) >= MAX_TENANTS and tenant != OTHER:
                return self._of(OTHER)
            known = self._tenants[tenant] = dict.fromkeys(("arrived", *OUTCOMES, "service_us"), 0)
        return known

    def collect(self) -> Iterable[Metric]:
        arrived = CounterMetricFamily(
            "saga_requests_arrived", "Requests to language models", labels=["tenant"]
        )
        ended = CounterMetricFamily(
            "saga_requests_ended", "By how they ended", labels=["tenant", "outcome"]
        )
        served = CounterMetricFamily(
            "saga_tenant_service_seconds",
            "GPU time of finished requests, at the engines' usual times per token",
            labels=["tenant"],
        )
        for tenant, counts in self._tenants.items():
            arrived.add_metric([tenant], counts["arrived"])
            served.add_metric([tenant], counts["service_us"] / 1e6)
            for outcome in OUTCOMES:
                ended.add_metric([tenant, outcome], counts[outcome])
        yield from (arrived, ended, served)
        yield _by(
            "saga_requests_refused", "Turned away before they were a request", "status",
            {str(status): count for status, count in self.refused.items()},
        )  # fmt: skip
        yield _counter("saga_retries", "Requests sent to an engine again", self.num_retries)
        yield self.ttft.metric("saga_step_ttft_seconds", "Arrival to first byte")
        yield self.held.metric("saga_step_queue_seconds", "Arrival to an engine")
        yield self.task.metric("saga_task_completion_seconds", "Workflow, first arrival to end")
        yield _by("saga_identity_source", "By what told the session", "source", self._sources)
        yield _by(
            "saga_session_rehit", "Resumed sessions by how much KV was there", "result",
            self._rehits,
        )  # fmt: skip
        kinds = {
            "prompt": self._prompt_tokens,
            "output": self._output_tokens,
            "cached": self._cached_tokens,
        }
        yield _by("saga_tokens", "As engines counted them", "kind", kinds)


class Distribution:
    """Values by the bounds that they do not exceed."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def metric(self, name: str, text: str) -> Metric:
        bounds = (*map(floatToGoString, self._bounds), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class _Now:
    """The state of things at the moment of asking."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        gateway, state = self._gateway, self._gateway.host.scheduler.state
        yield _gauge(
            "saga_requests_held", "Requests that wait for an engine", gateway.host.num_held
        )
        yield _gauge("saga_requests_live", "Requests held or with an engine", len(state.requests))
        yield _gauge("saga_workflows", "Unfinished workflows", len(state.workflows))
        yield _gauge("saga_sessions", "Unfinished sessions", len(state.sessions))
        yield _counter("saga_steals", "Sessions that moved to an idle engine", state.num_steals)
        yield _counter(
            "saga_pauses",
            "Times that a session back from its tool waited for memory",
            state.num_pauses,
        )
        yield _counter(
            "saga_sessions_reaped", "Closed because they stayed away", gateway.sessions.num_reaped
        )
        prefetches = gateway.prefetches
        yield _gauge("saga_prefetch_bytes", "Remembered requests", prefetches.last.num_bytes)
        yield _counter("saga_prefetches_failed", "That engines refused", prefetches.num_failed)
        actions = CounterMetricFamily(
            "saga_actions", "Asked of engines", labels=["action", "supported"]
        )
        for counts, supported in ((gateway.host.counts.done, "true"),
                                  (gateway.host.counts.unsupported, "false")):  # fmt: skip
            for name, value in counts.items():
                actions.add_metric([name, supported], value)
        yield actions
        yield from self._engines()
        yield from self._tenants()

    def _engines(self) -> Iterable[Metric]:
        gateway = self._gateway
        state = gateway.host.scheduler.state
        up = GaugeMetricFamily("saga_engine_up", "1: takes requests", labels=["engine"])
        breaker = GaugeMetricFamily("saga_engine_breaker_open", "1: open", labels=["engine"])
        running = GaugeMetricFamily(
            "saga_engine_requests", "Sent there and not over", labels=["engine"]
        )
        kept = GaugeMetricFamily(
            "saga_kv_resident_tokens", "KV of unfinished sessions", labels=["engine"]
        )
        told = CounterMetricFamily(
            "saga_kv_events", "What engines published of their KV", labels=["engine", "kind"]
        )
        now = gateway.host.now
        for name, engine in gateway.fleet.engines.items():
            up.add_metric([name], engine.state == "up")
            breaker.add_metric([name], not engine.breaker.allows(now))
            for kind, count in gateway.kv_events.counts(name).items():
                told.add_metric([name, kind], count)
            known = state.engines.get(name)
            if known is not None:
                running.add_metric([name], len(known.requests))
                kept.add_metric([name], known.resident_tokens)
        yield from (up, breaker, running, kept, told)

    def _tenants(self) -> Iterable[Metric]:
        lag = GaugeMetricFamily(
            "saga_afs_virtual_lag_seconds",
            "Service that a tenant is ahead of those furthest behind, over its weight; the most of "
            "all queues",
            labels=["tenant"],
        )
        scheduler = self._gateway.host.scheduler
        queues = (scheduler.unadmitted, *scheduler.queues.values())
        for tenant in list(scheduler.state.tenants)[:MAX_TENANTS]:
            lag.add_metric([tenant], max(queue.lead(tenant) for queue in queues) / 1e6)
        yield lag
        yield _gauge(
            "saga_afs_deviation_ratio",
            "Largest deviation of any tenant's service from its share, over the proven bound",
            scheduler.deviation,
        )
        yield from self._sampled()

    def _sampled(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily(
            "saga_tenant_requests_waiting", "Arrived and not started", labels=["tenant"]
        )
        longest = GaugeMetricFamily(
            "saga_tenant_longest_wait_seconds", "Of the first of these", labels=["tenant"]
        )
        entitled = GaugeMetricFamily(
            "saga_tenant_entitlement_ratio",
            "Weight over the weights of all with unfinished workflows",
            labels=["tenant"],
        )
        latest = dict(self._gateway.fairness.latest)
        others = latest.pop(OTHERS)
        for tenant, reading in ({OTHER: others} | latest).items():
            waiting.add_metric([tenant], reading.num_waiting)
            longest.add_metric([tenant], reading.longest_wait_us / 1e6)
            entitled.add_metric([tenant], reading.entitlement)
        yield from (waiting, longest, entitled)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    metric = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        metric.add_metric([value], count)
    return metric
