"""What the gateway says about itself on ``/metrics``. Names begin with ``saga_``, units are base
units; no label grows with clients' ids, and tenants beyond a cap share one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from saga.gateway.answer import Usage

if TYPE_CHECKING:
    from saga.gateway.service import Gateway

MAX_TENANTS = 1_000
"""Further ones are counted as ``other``."""
OTHER = "other"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000)
OUTCOMES = ("finished", "rejected", "cancelled", "failed")


class Metrics:
    """Counters that the data path writes; everything else is read when somebody asks."""

    def __init__(self, gateway: Gateway) -> None:
        self.registry = registry = CollectorRegistry()
        self._arrived = Counter(
            "saga_requests_arrived", "Requests to language models", ["tenant"], registry=registry
        )
        self._ended = Counter(
            "saga_requests_ended", "By how they ended", ["tenant", "outcome"], registry=registry
        )
        self.refused = Counter(
            "saga_requests_refused",
            "Turned away before they were a request",
            ["status"],
            registry=registry,
        )
        self.retries = Counter(
            "saga_retries", "Requests sent to an engine again", registry=registry
        )
        self.ttft = Histogram(
            "saga_step_ttft_seconds", "Arrival to first byte", buckets=SECONDS, registry=registry
        )
        self.held = Histogram(
            "saga_step_queue_seconds", "Arrival to an engine", buckets=SECONDS, registry=registry
        )
        self.task = Histogram(
            "saga_task_completion_seconds",
            "Workflow, first arrival to end",
            buckets=(*SECONDS, 10_000),
            registry=registry,
        )
        self._source = Counter(
            "saga_identity_source", "By what told the session", ["source"], registry=registry
        )
        self._rehit = Counter(
            "saga_session_rehit",
            "Resumed sessions by how much KV was there",
            ["result"],
            registry=registry,
        )
        self._tokens = Counter(
            "saga_tokens", "As engines counted them", ["kind"], registry=registry
        )
        self._prompt = self._tokens.labels("prompt")
        self._output = self._tokens.labels("output")
        self._cached = self._tokens.labels("cached")
        self._tenants: dict[str, tuple[Counter, dict[str, Counter]]] = {}
        """Counters of arrived, and by outcome: looking them up by labels is slow."""
        self.registry.register(_Now(gateway))

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def arrived(self, tenant: str) -> None:
        self._of(tenant)[0].inc()

    def ended(self, tenant: str, outcome: str) -> None:
        self._of(tenant)[1][outcome].inc()

    def answered(self, usage: Usage, source: str, *, resumed: bool) -> None:
        """An answer came whole. ``resumed``: its session had a step before."""
        self._source.labels(source).inc()
        self._output.inc(usage.output_tokens or 0)
        if usage.prompt_tokens is None:
            return
        self._prompt.inc(usage.prompt_tokens)
        if usage.cached_tokens is None:
            return
        self._cached.inc(usage.cached_tokens)
        if resumed:
            share = usage.cached_tokens / max(1, usage.prompt_tokens)
            result = "full" if share >= 0.8 else "partial" if share >= 0.2 else "miss"
            self._rehit.labels(result).inc()

    def _of(self, tenant: str) -> tuple[Counter, dict[str, Counter]]:
        known = self._tenants.get(tenant)
        if known is None:
            if len(self._tenants) >= MAX_TENANTS and tenant != OTHER:
                return self._of(OTHER)
            ended = {outcome: self._ended.labels(tenant, outcome) for outcome in OUTCOMES}
            known = self._tenants[tenant] = self._arrived.labels(tenant), ended
        return known


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
            "saga_sessions_reaped", "Closed because they stayed away", gateway.sessions.num_reaped
        )
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
        now = gateway.host.now
        for name, engine in gateway.fleet.engines.items():
            up.add_metric([name], engine.state == "up")
            breaker.add_metric([name], not engine.breaker.allows(now))
            known = state.engines.get(name)
            if known is not None:
                running.add_metric([name], len(known.requests))
                kept.add_metric([name], known.resident_tokens)
        yield from (up, breaker, running, kept)

    def _tenants(self) -> Iterable[Metric]:
        lag = GaugeMetricFamily(
            "saga_afs_virtual_lag_seconds",
            "Virtual time of a tenant ahead of the system's",
            labels=["tenant"],
        )
        scheduler = self._gateway.host.scheduler
        for tenant in list(scheduler.state.tenants.values())[:MAX_TENANTS]:
            ahead = tenant.virtual_time - scheduler.ledger.virtual_time
            lag.add_metric([tenant.id], ahead / 1e6)
        yield lag


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
