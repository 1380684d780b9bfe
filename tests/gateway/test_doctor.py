"""Engines with and without things, other servers, and what is said of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from tests.gateway.kv import engine as publisher
from tests.gateway.live import gateway
from tests.gateway.patient import (
    CHAT,
    COMPLETIONS,
    METRICS,
    TIERS,
    Vllm,
    answers,
    diagnosed,
    examined,
    of,
)
from tests.gateway.servers import refusing

from saga.gateway.doctor import Diagnosis, advice
from saga.gateway.service import DEFAULT_KV_TOKENS

# ---- vLLM


def test_an_engine_with_everything() -> None:
    with publisher() as events:
        found = diagnosed(Vllm(events=events))
    assert (found.problem, found.kind, found.version) == (None, "vllm", "0.33.0")
    assert found.models == ("tiny",)
    assert answers(found) == {
        "models": "yes",
        "KV memory": "yes",
        "batch size": "yes",
        "prefix cache": "yes",
        "answers requests": "yes",
        "cached tokens in usage": "yes",
        "usage in streams": "yes",
        "load metrics": "yes",
        "KV events": "yes",
        "session id in KV events": "yes",
        "SAGA plugin": "yes",
        "hints in requests": "yes",
        "host tier": "yes",
        "shared tier": "yes",
        "priority scheduling": "unknown",
    }
    assert {finding.fix for finding in found.findings} == {None}
    assert found.figures == {"max_num_seqs": 16, "retained_tokens": 7, "up": True, **TIERS}
    assert of(found, "SAGA plugin").found.startswith("max_num_seqs 16, retained_tokens 7")
    assert of(found, "host tier").found == "6,400 tokens"
    assert of(found, "shared tier").found == TIERS["shared_tier"]
    assert of(found, "KV memory").found == "12,800 tokens in blocks of 32"
    assert of(found, "prefix cache").found == "the same prompt again: 64 tokens cached"


@pytest.mark.parametrize(
    ("taken", "what", "fix"),
    [
        ({"caches": False}, {"prefix cache"}, "--enable-prefix-caching"),
        ({"tells_cached": False}, {"cached tokens in usage"}, "--enable-prompt-tokens-details"),
        (
            {"tells_usage": False},
            {"cached tokens in usage", "usage in streams"},
            "--enable-prompt-tokens-details",
        ),
        ({"metrics": ""}, {"load metrics", "KV memory"}, "leave out --disable-log-stats"),
        (
            {"metrics": METRICS.replace("vllm:num_requests_waiting", "other")},
            {"load metrics"},
            "leave out --disable-log-stats",
        ),
        ({"names_sessions": False}, {"session id in KV events"}, "vLLM 0.32 or newer"),
        (
            {"has_plugin": False},
            {"batch size", "SAGA plugin", "hints in requests", "host tier", "shared tier"},
            "--scheduler-cls",
        ),
        ({"tiers": {}}, {"host tier", "shared tier"}, "HostTierSpec"),
        ({"tiers": {"host_kv_tokens": 64}}, {"shared tier"}, "SharedTierSpec"),
        ({"deaf": 9}, {"KV events"}, "let SAGA's machine connect to tcp://127.0.0.1:"),
    ],
)
def test_what_is_taken_away_is_missed_and_nothing_else(
    taken: dict[str, Any], what: set[str], fix: str
) -> None:
    with publisher() as events:
        found = diagnosed(Vllm(events=events, **taken))
    assert found.problem is None
    missed = [finding for finding in found.findings if finding.answer == "no"]
    assert {finding.what for finding in missed} == what
    assert any(finding.fix is not None and fix in finding.fix for finding in missed)


def test_a_plugin_that_does_not_know_the_session() -> None:
    found = diagnosed(Vllm(reads_hints=False))
    assert (of(found, "SAGA plugin").answer, of(found, "hints in requests").answer) == ("yes", "no")


def test_without_a_prefix_cache_there_are_no_events() -> None:
    with publisher() as events:
        found = diagnosed(Vllm(events=events, caches=False, deaf=9))
    missed = of(found, "KV events")
    assert (missed.answer, missed.fix) == ("no", "--enable-prefix-caching")


def test_an_engine_that_publishes_nothing() -> None:
    found = diagnosed(Vllm())
    missed = of(found, "KV events")
    assert (missed.answer, missed.found) == ("no", "")
    assert missed.fix is not None and missed.fix.startswith("--kv-events-config '{")
    assert "session id in KV events" not in answers(found)


def test_events_where_the_gateway_cannot_follow() -> None:
    with publisher() as events:
        events.endpoint = "ipc:///tmp/kv"
        missed = of(diagnosed(Vllm(events=events)), "KV events")
    assert missed.answer == "no"
    assert "no TCP port" in missed.found
    assert missed.fix == "publish them on a TCP port, as in tcp://*:5557"


def test_events_that_begin_late_are_waited_for() -> None:
    with publisher() as events:
        engine = Vllm(events=events, deaf=2)
        found = diagnosed(engine, events_s=2.0)
    assert of(found, "KV events").answer == of(found, "session id in KV events").answer == "yes"
    assert [path for path, _, _ in engine.asked].count(CHAT) == 3
    assert len(engine.prompts) == 2


def test_two_tiny_requests_of_one_session() -> None:
    engine = Vllm()
    diagnosed(engine, "the key")
    requests = [(headers, body) for path, headers, body in engine.asked if path == CHAT]
    assert len(requests) == 2
    assert {body["max_tokens"] for _, body in requests} == {1}
    assert [body.get("stream") for _, body in requests] == [None, True]
    assert len(engine.prompts) == 1
    words = requests[0][1]["messages"][0]["content"].split()
    assert 2 * 32 < len(words) < 4 * 32, "more than a block"
    assert len({headers["x-session-id"] for headers, _ in requests}) == 1
    assert {headers["authorization"] for headers, _ in requests} == {"Bearer the key"}
    released = [body for path, _, body in engine.asked if path == "/v1/saga/release"]
    assert released == [{"session": requests[0][0]["x-session-id"]}]


def test_requests_can_be_forbidden() -> None:
    with publisher() as events:
        engine = Vllm(events=events)
        found = diagnosed(engine, requests=False)
    assert {path for path, _, _ in engine.asked} == {"/v1/saga/stats"}
    untried = {finding.what for finding in found.findings if "--no-requests" in finding.found}
    assert untried == {
        "answers requests",
        "cached tokens in usage",
        "usage in streams",
        "KV events",
        "session id in KV events",
        "hints in requests",
    }
    assert {answers(found)[what] for what in untried} == {"unknown"}
    assert found.problem is None


def test_routes_of_the_plugin_without_its_scheduler() -> None:
    found = diagnosed(Vllm(statuses={"/v1/saga/stats": 501}))
    missed = of(found, "SAGA plugin")
    assert (missed.answer, missed.found) == ("no", "its routes are there, but not its scheduler")


def test_a_model_without_a_chat_template_completes() -> None:
    engine = Vllm(statuses={CHAT: 400})
    found = diagnosed(engine)
    assert (found.problem, of(found, "answers requests").found) == (None, COMPLETIONS)
    assert {type(body["prompt"]) for path, _, body in engine.asked if path == COMPLETIONS} == {str}


# ---- other engines


@dataclass
class Sglang(Vllm):
    owner: str = "sglang"
    metrics: str = "sglang:num_running_reqs 0\nsglang:num_queue_reqs 0\n"
    has_plugin: bool = False
    server: dict[str, Any] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/server_info":
            return web.json_response({"max_total_num_tokens": 9_000, **self.server})
        return await super().handle(request)


@pytest.mark.parametrize(("off", "answer"), [(True, "no"), (False, "yes"), (None, "unknown")])
def test_sglang(off: bool | None, answer: str) -> None:
    engine = Sglang(
        tells_cached=False, server={"max_running_requests": 8, "disable_radix_cache": off}
    )
    found = diagnosed(engine)
    assert (found.problem, found.kind) == (None, "sglang")
    assert (of(found, "KV memory").found, of(found, "batch size").found) == (
        "9,000 tokens",
        "8 requests",
    )
    assert of(found, "prefix cache").answer == answer
    assert of(found, "cached tokens in usage").fix == "--enable-cache-report"
    assert of(found, "load metrics").fix == "--enable-metrics"
    assert of(found, "load metrics").found.startswith("missing: KV in use, prefix cache hits")
    bodies = [body for path, _, body in engine.asked if path == CHAT]
    assert all(body["session_id"].startswith("saga-doctor/") for body in bodies)


def test_any_other_server_can_be_used_and_lacks_much() -> None:
    found = diagnosed(Vllm(owner="me", metrics="", has_plugin=False, tells_cached=False))
    assert (found.problem, found.kind) == (None, "openai")
    lacks = {what for what, answer in answers(found).items() if answer == "no"}
    assert len(lacks) == 9
    memory = of(found, "KV memory")
    assert memory.fix == "set engines.kv_capacity_tokens"
    assert f"{DEFAULT_KV_TOKENS:,}" in memory.means
    assert all("--" not in (finding.fix or "") for finding in found.findings)


def test_an_engine_that_lists_no_models_is_not_asked() -> None:
    engine = Vllm(models=())
    found = diagnosed(engine)
    assert (found.problem, answers(found)["models"]) == (None, "unknown")
    assert "lists no model" in of(found, "answers requests").found
    assert not [path for path, _, _ in engine.asked if path == CHAT]


# ---- a gateway


def test_a_gateway_shows_its_engines() -> None:
    with gateway(engines=2) as live:
        found = asyncio.run(examined(live.url))
    assert (found.problem, found.kind, found.models) == (None, "gateway", ("saga-emulated",))
    assert [finding.answer for finding in found.findings] == ["yes", "yes"]
    for finding in found.findings:
        assert finding.found.startswith("up: vllm, ")
        assert "It publishes no KV events" in finding.means


def test_a_gateway_without_engines_cannot_be_used() -> None:
    with refusing() as url, gateway(engines=[url]) as live:
        found = asyncio.run(examined(live.url))
    assert found.problem == "it is a SAGA gateway, and none of its engines is up"
    assert [finding.answer for finding in found.findings] == ["no"]


def test_engines_of_different_models_are_no_engines_of_one_gateway() -> None:
    one, same, other = (
        Diagnosis(url=f"http://{number}", kind="vllm", models=models)
        for number, models in enumerate([("a", "b"), ("b", "a"), ("a",)])
    )
    unknown = Diagnosis(url="http://4", kind="openai")
    front = Diagnosis(url="http://5", kind="gateway", models=("c",))
    broken = Diagnosis(url="http://6", problem="it is down", kind="vllm", models=("d",))
    assert advice([one, same, unknown, front, broken]) == []
    assert advice([]) == []
    assert len(advice([one, other])) == 1
