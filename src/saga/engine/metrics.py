"""The engine's figures under vLLM's names."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from saga.engine.emulated import EmulatedEngine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model_name", "engine")


class _EngineCollector(Collector):
    def __init__(self, engine: EmulatedEngine) -> None:
        self._engine = engine
        self._labels = (engine.options.model, "0")

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._engine, self._engine.stats()
        usage = stats["used_blocks"] / engine.num_blocks
        for name, help_text, value in (
            ("num_requests_running", "Requests in the batch.", stats["num_requests_running"]),
            ("num_requests_waiting", "Requests in the queue.", stats["num_requests_waiting"]),
            ("kv_cache_usage_perc", "KV blocks in use; 1 is all of them.", usage),
        ):
            yield self._gauge(name, help_text, value)
        for name, help_text, value in (
            ("prefix_cache_queries", "Prompt tokens looked up.", stats["prompt_tokens"]),
            ("prefix_cache_hits", "Prompt tokens found in the cache.", stats["hit_tokens"]),
            ("prompt_tokens", "Prompt tokens.", stats["prompt_tokens"]),
            ("generation_tokens", "Output tokens.", stats["generated_tokens"]),
            ("num_preemptions", "Preemptions.", stats["num_preemptions"]),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", help_text, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        yield self._successes()
        yield self._cache_config()

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"vllm:{name}", help_text, labels=_LABELS)
        gauge.add_metric(self._labels, value)
        return gauge

    def _successes(self) -> Metric:
        labels = (*_LABELS, "finished_reason")
        counter = CounterMetricFamily("vllm:request_success", "Ended requests.", labels=labels)
        ended = self._engine.ended
        reasons = {"stop": ended["stop"] + ended["tool"]} | {
            reason: ended[reason] for reason in ("length", "abort")
        }
        for reason, count in reasons.items():
            counter.add_metric((*self._labels, reason), count)
        return counter

    def _cache_config(self) -> Metric:
        labels = ("engine", "block_size", "num_gpu_blocks", "enable_prefix_caching")
        info = GaugeMetricFamily("vllm:cache_config_info", "KV cache geometry.", labels=labels)
        sizes = (str(self._engine.block_size), str(self._engine.num_blocks))
        info.add_metric(("0", *sizes, "True"), 1)
        return info


def exposition(engine: EmulatedEngine) -> bytes:
    """The figures in Prometheus' text format."""
    return generate_latest(_EngineCollector(engine))
