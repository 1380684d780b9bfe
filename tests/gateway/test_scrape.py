"""Pages of engines, old and new, and pages that are none."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.servers import ManualClock, serve

from saga.gateway.scrape import (
    LoadSample,
    missing_from,
    parse_kv_capacity,
    parse_load,
    parse_prefix_caching,
    scrape,
)
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="a \\"odd\\" {name}, a=\\"b\\" 9"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 100.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.99
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1.0e+06 1700000000000
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 900000.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000",x="None"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="500"} 1.0
"""
OLD_VLLM = b"""\
vllm:num_requests_running 1
vllm:num_requests_waiting 0
vllm:gpu_cache_usage_perc 0.5
vllm:gpu_prefix_cache_queries_total 10
vllm:gpu_prefix_cache_hits_total 5"""
SGLANG = b"""\
sglang:num_running_reqs{model_name="m"} 2.0\r
sglang:num_queue_reqs{model_name="m"} 5.0\r
sglang:token_usage{model_name="m"} 0.28\r
sglang:prompt_tokens_total{model_name="m"} 100.0\r
sglang:cached_tokens_total{cache_source="device"} 30.0\r
sglang:cached_tokens_total{cache_source="host"} 12.0\r
sglang:max_total_num_tokens{model_name="m"} 471258.0\r
"""
HYBRID = b'vllm:cache_config_info{block_size="8",kv_cache_size_tokens="99",num_gpu_blocks="2"} 1'


def sample(
    running: int,
    waiting: int,
    kv_used: float | None = None,
    hits: int | None = None,
    queries: int | None = None,
) -> LoadSample:
    return LoadSample(
        at_us=7,
        running=running,
        waiting=waiting,
        kv_used=kv_used,
        prefix_hits=hits,
        prefix_queries=queries,
    )


PAGES = {
    "vllm": (VLLM, sample(7, 2, 0.5, 900_000, 1_000_000)),
    "vllm of old": (OLD_VLLM, sample(1, 0, 0.5, 5, 10)),
    "sglang": (SGLANG, sample(2, 5, 0.28, 42, 100)),
    "only running": (b"vllm:num_requests_running 1\n", sample(1, 0)),
    "a share above one": (
        b"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 1.5\n",
        sample(1, 0, 1.0),
    ),
    "values that are none": (
        b"vllm:num_requests_running NaN\nvllm:num_requests_running x\n"
        b"vllm:num_requests_running\nvllm:num_requests_running{a= 5\n"
        b"vllm:num_requests_waiting -1\nvllm:num_requests_waiting +Inf\n"
        b"vllm:num_requests_waiting 4\n",
        sample(0, 4),
    ),
    "empty": (b"", None),
    "html": (b"<html><body>vllm:num_requests_running 7</body></html>", None),
    "comments": (b"# vllm:num_requests_running 7\n", None),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages(name: str) -> None:
    page, expected = PAGES[name]
    assert parse_load(page, at_us=7) == expected


@pytest.mark.parametrize(
    ("page", "tokens"),
    [
        (VLLM, 24_000),
        (SGLANG, 471_258),
        (HYBRID, 99),
        (b'vllm:cache_config_info{block_size="None",num_gpu_blocks="None"} 1.0', None),
        (b'vllm:cache_config_info{block_size="16"} 1.0', None),
        (b'vllm:cache_config_info{block_size="16",num_gpu_blocks="%s"} 1' % (b"9" * 5_000), None),
        (b"vllm:cache_config_info", None),
        (b"", None),
    ],
)
def test_capacity(page: bytes, tokens: int | None) -> None:
    assert parse_kv_capacity(page) == tokens


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (b'block_size="32",enable_prefix_caching="True"', (True, 32)),
        (b'enable_prefix_caching="False"', (False, None)),
        (b'block_size="None",enable_prefix_caching="None"', (None, None)),
        (b'block_size="16"', (None, 16)),
    ],
)
def test_prefix_caching(labels: bytes, told: tuple[bool | None, int | None]) -> None:
    assert parse_prefix_caching(b"vllm:cache_config_info{%s} 1.0" % labels) == told
    assert parse_prefix_caching(b"other{%s} 1.0" % labels) == (None, None)


def test_what_a_page_lacks() -> None:
    assert missing_from(VLLM) == missing_from(OLD_VLLM) == []
    rest = VLLM.replace(b"vllm:kv_cache", b"x").replace(b"vllm:gpu_cache", b"x")
    assert missing_from(rest) == ["KV in use"]
    assert len(missing_from(b"")) == 5


NAMES = st.sampled_from([b"vllm:num_requests_running", b"vllm:num_requests_waiting", b"other"])


@given(
    values=st.lists(st.tuples(NAMES, st.integers(0, 10**9))),
    labels=st.lists(st.text(max_size=8), min_size=1),
    noise=st.lists(st.sampled_from([b"", b"# HELP x", b"}{", b'vllm:num_requests_running{a="'])),
)
def test_counts_are_the_sums_whatever_stands_between(
    values: list[tuple[bytes, int]], labels: list[str], noise: list[bytes]
) -> None:
    lines = list(noise)
    for number, (name, value) in enumerate(values):
        label = labels[number % len(labels)].replace("\\", "\\\\").replace('"', '\\"')
        label = label.replace("\n", "\\n").replace("\r", "")
        lines.append(b'%s{a="%s"} %d' % (name, label.encode("utf-8", "replace"), value))
        lines += noise
    sums = {name: sum(v for n, v in values if n == name) for name, _ in values}
    got = parse_load(b"\n".join(lines), at_us=0)
    running = sums.get(b"vllm:num_requests_running")
    waiting = sums.get(b"vllm:num_requests_waiting")
    if running is None and waiting is None:
        assert got is None
    else:
        assert got is not None
        assert (got.running, got.waiting) == (running or 0, waiting or 0)


@given(page=st.binary() | st.text(alphabet='vlm:nu_{}"\\= 1\n').map(str.encode))
def test_garbage_is_no_error(page: bytes) -> None:
    parse_load(page, at_us=0)
    parse_load(VLLM + page, at_us=0)
    parse_kv_capacity(b"vllm:cache_config_info" + page)
    parse_prefix_caching(b"vllm:cache_config_info" + page)


def scraped(
    status: int, page: bytes, *, delay_s: float = 0.0, timeout_s: float = 5.0
) -> LoadSample | None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.path == "/metrics"
        assert request.headers["authorization"] == "Bearer key"
        await asyncio.sleep(delay_s)
        return web.Response(status=status, body=page)

    async def run() -> LoadSample | None:
        timeouts = Timeouts(first_byte_s=timeout_s)
        async with serve(handler) as url, Upstream() as upstream:
            return await scrape(upstream, url, "key", ManualClock(7), timeouts=timeouts)

    return asyncio.run(run())


def test_scraping() -> None:
    assert scraped(200, VLLM) == PAGES["vllm"][1]
    assert scraped(404, b"not found") is None
    with pytest.raises(UpstreamError, match="500"):
        scraped(500, VLLM)
    with pytest.raises(UpstreamError) as caught:
        scraped(200, VLLM, delay_s=60.0, timeout_s=0.05)
    assert caught.value.kind == "first_byte"
