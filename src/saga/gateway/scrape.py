"""How loaded an engine says it is: the few names that matter on its metrics page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from saga.clock import Clock
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

PAGE_LIMIT = 8 * 1024 * 1024
"""Bytes; a vLLM page has some 100 KB."""

RUNNING = (b"vllm:num_requests_running", b"sglang:num_running_reqs")
WAITING = (b"vllm:num_requests_waiting", b"sglang:num_queue_reqs")
KV_USED = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"sglang:token_usage")
PREFIX_HITS = (
    b"vllm:prefix_cache_hits_total",
    b"vllm:gpu_prefix_cache_hits_total",
    b"sglang:cached_tokens_total",
)
PREFIX_QUERIES = (
    b"vllm:prefix_cache_queries_total",
    b"vllm:gpu_prefix_cache_queries_total",
    b"sglang:prompt_tokens_total",
)
GEOMETRY = b"vllm:cache_config_info"
CAPACITY = b"sglang:max_total_num_tokens"
READ: Mapping[str, Sequence[bytes]] = {
    "requests running": RUNNING,
    "requests waiting": WAITING,
    "KV in use": KV_USED,
    "prefix cache hits": PREFIX_HITS,
    "prefix cache queries": PREFIX_QUERIES,
}
"""What is read of an engine's load, and the names under which it may be there."""

_LABELS = rb'\{(?:[^"{}\n]|"(?:[^"\\\n]|\\.)*")*\}'
_SAMPLE = re.compile(rb"(" + _LABELS + rb")?[ \t]+([^ \t\r]+)")
_LABEL = re.compile(rb'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
_SIZE = re.compile(rb"[0-9]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """An engine's own word on its load; with several ranks behind one address, of all of them."""

    at_us: int
    """When it was asked: it is at least as young as that."""
    running: int
    waiting: int
    kv_used: float | None
    """Share of the KV memory, 0 to 1."""
    prefix_hits: int | None
    """Prompt tokens found in the prefix cache since the engine started ..."""
    prefix_queries: int | None
    """... of so many."""


async def scrape(
    upstream: Upstream, url: str, api_key: str | None, clock: Clock, *, timeouts: Timeouts
) -> LoadSample | None:
    """The load of an engine; None if its page has none. Raises UpstreamError, also for a 5xx."""
    at_us = clock.now_us()
    status, page = await upstream.fetch(
        url, "GET", "/metrics", api_key=api_key, timeouts=timeouts, limit=PAGE_LIMIT
    )
    if status >= 500:
        raise UpstreamError("broken", f"/metrics answered {status}")
    return parse_load(page, at_us) if status == 200 else None


def parse_load(page: bytes, at_us: int) -> LoadSample | None:
    """Reads a page in Prometheus' text format; None unless it counts requests.

    Label sets are summed up, shares averaged. Of several names for one thing the first counts.
    Anything that cannot be read is passed over.
    """
    page = b"\n" + page
    running, waiting = _first(page, RUNNING), _first(page, WAITING)
    if not running and not waiting:
        return None
    kv_used = _first(page, KV_USED)
    return LoadSample(
        at_us=at_us,
        running=int(sum(running)),
        waiting=int(sum(waiting)),
        kv_used=min(1.0, math.fsum(kv_used) / len(kv_used)) if kv_used else None,
        prefix_hits=_total(_first(page, PREFIX_HITS)),
        prefix_queries=_total(_first(page, PREFIX_QUERIES)),
    )


def parse_kv_capacity(page: bytes) -> int | None:
    """KV memory in tokens, if the page tells; of all ranks together."""
    page = b"\n" + page
    tokens = sum(_tokens(labels) for labels, _ in _samples(page, GEOMETRY))
    return tokens or _total(_first(page, (CAPACITY,))) or None


def parse_prefix_caching(page: bytes) -> tuple[bool | None, int | None]:
    """Whether a vLLM caches prefixes, and its block size in tokens; None: the page does not say."""
    for labels, _ in _samples(b"\n" + page, GEOMETRY):
        values = dict(_LABEL.findall(labels))
        size = values.get(b"block_size", b"")
        is_on = {b"True": True, b"False": False}.get(values.get(b"enable_prefix_caching", b""))
        return is_on, int(size) if _SIZE.fullmatch(size) else None
    return None, None


def missing_from(page: bytes) -> list[str]:
    """What of ``READ`` the page does not have."""
    return [what for what, names in READ.items() if not _first(b"\n" + page, names)]


def _tokens(labels: bytes) -> int:
    values = {name: value for name, value in _LABEL.findall(labels) if _SIZE.fullmatch(value)}
    # Blocks of hybrid models differ in size; where vLLM tells the sum, it knows better.
    if b"kv_cache_size_tokens" in values:
        return int(values[b"kv_cache_size_tokens"])
    return int(values.get(b"num_gpu_blocks", 0)) * int(values.get(b"block_size", 0))


def _first(page: bytes, names: Sequence[bytes]) -> list[float]:
    for name in names:
        if values := [value for _, value in _samples(page, name)]:
            return values
    return []


def _samples(page: bytes, name: bytes) -> Iterator[tuple[bytes, float]]:
    """Labels and value of each line of that name; ``page`` starts with a line end."""
    at = page.find(b"\n" + name)
    while at >= 0:
        start = at + 1 + len(name)
        at = page.find(b"\n", start)
        end = len(page) if at < 0 else at
        found = _SAMPLE.match(page, start, end)
        value = _number(found[2]) if found else None
        if found and value is not None:
            yield found[1] or b"", value
        at = page.find(b"\n" + name, end)


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _total(values: list[float]) -> int | None:
    return int(sum(values)) if values else None
