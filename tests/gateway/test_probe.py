"""Engines of every kind, and what is said of what they lack."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.servers import Handler, refusing, serve

from saga.gateway.probe import EngineInfo, probe
from saga.gateway.upstream import Timeouts, Upstream, UpstreamError

Routes = Mapping[str, Any]
TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=5.0, chunk_s=5.0, total_s=5.0)


def models(*names: str, owner: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "owned_by": owner} for name in names]}


def answering(routes: Routes, seen: list[str] | None = None) -> Handler:
    """JSON, text, or a bare status for each path; 404 for all others."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if seen is not None:
            seen.append(f"{request.method} {request.path} {request.headers.get('authorization')}")
        answer = routes.get(request.path, 404)
        if isinstance(answer, int):
            return web.Response(status=answer)
        if isinstance(answer, (str, bytes)):
            return web.Response(body=answer)
        return web.json_response(answer)

    return handler


def probed(handler: Handler, timeouts: Timeouts = TIMEOUTS) -> EngineInfo:
    async def run() -> EngineInfo:
        async with serve(handler) as url, Upstream() as upstream:
            return await probe(upstream, url, "key", timeouts=timeouts)

    return asyncio.run(run())


VLLM: Routes = {
    "/v1/models": models("qwen", "qwen-lora", owner="vllm"),
    "/version": {"version": "0.33.0"},
    "/metrics": "# HELP\n"
    'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0\n',
    "/kv_event_sources": [{"data_parallel_rank": 0, "endpoint": "tcp://10.0.0.1:5557"}],
}
PLUGIN: Routes = {"/v1/saga/stats": {"kv_capacity_tokens": 12_800, "max_num_seqs": 16, "more": []}}
SGLANG: Routes = {
    "/v1/models": models("m", owner="sglang"),
    "/metrics": "# HELP\nsglang:num_running_reqs 0\n",
    "/get_server_info": {
        "max_total_num_tokens": 471_258,
        "max_running_requests": 128,
        "version": "0.5.23",
        "internal_states": [{}],
    },
}


def test_vllm() -> None:
    info = probed(answering(VLLM))
    assert (info.kind, info.version, info.models) == ("vllm", "0.33.0", ("qwen", "qwen-lora"))
    assert (info.kv_capacity_tokens, info.max_num_seqs) == (16_000, None)
    assert info.capabilities == {"metrics", "kv_events"}
    assert [note.split(":")[0] for note in info.notes] == [
        "It does not tell how many requests it runs at once",
        "It has no SAGA plugin",
    ]


def test_vllm_tells_its_kv_events_by_rank_in_some_releases() -> None:
    sources = {"0": {"enable_kv_cache_events": True, "endpoint": "tcp://10.0.0.1:5557"}}
    assert "kv_events" in probed(answering({**VLLM, "/kv_event_sources": sources})).capabilities
    assert "kv_events" not in probed(answering({**VLLM, "/kv_event_sources": {}})).capabilities


def places(*ports: int) -> tuple[str, ...]:
    return tuple(f"tcp://127.0.0.1:{port}" for port in ports)


def test_where_kv_events_are() -> None:
    assert probed(answering(VLLM)).kv_event_endpoints == places(5557)
    ranks = {str(rank): {"endpoint": f"tcp://*:{5557 + rank}"} for rank in range(3)}
    info = probed(answering({**VLLM, "/kv_event_sources": ranks}))
    assert info.kv_event_endpoints == places(5557, 5558, 5559)
    plugin = {"/v1/saga/stats": {"events_endpoint": "tcp://0.0.0.0:5600"}}
    assert probed(answering({**VLLM, **plugin})).kv_event_endpoints == places(5557, 5600)
    alone = probed(answering({"/v1/models": models("m", owner="saga"), **plugin}))
    assert (alone.kv_event_endpoints, "kv_events" in alone.capabilities) == (places(5600), True)


@pytest.mark.parametrize("endpoint", ["ipc:///tmp/kv", "tcp://broker.example:5557", "tcp://*:x"])
def test_kv_events_elsewhere_are_not_followed_and_it_says_so(endpoint: str) -> None:
    sources = {"/kv_event_sources": {"0": {"endpoint": endpoint}}}
    info = probed(answering({**VLLM, **sources}))
    assert (info.kv_event_endpoints, "kv_events" in info.capabilities) == ((), False)
    assert info.notes[-1].startswith("It publishes KV events, but on no TCP port of its own host")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"kv_events_config": '{"publisher": "zmq", "endpoint": "tcp://*:6000"}'}, places(6000)),
        ({"kv_events_config": '{"publisher": "zmq"}', "dp_size": 2}, places(5557, 5558)),
        ({"kv_events_config": '{"publisher": "zmq", "endpoint": "ipc://kv"}'}, ()),
        ({"kv_events_config": '{"publisher": "null"}', "dp_size": "two"}, ()),
        ({"kv_events_config": "no JSON"}, ()),
        ({"kv_events_config": {"publisher": "zmq"}}, ()),
    ],
)
def test_sglang_tells_its_kv_events_among_its_settings(
    told: dict[str, Any], expected: tuple[str, ...]
) -> None:
    server = {"/get_server_info": {**SGLANG["/get_server_info"], **told}}
    info = probed(answering({**SGLANG, **server}))
    assert (info.kv_event_endpoints, info.kv_capacity_tokens) == (expected, 471_258)


def test_vllm_with_the_plugin_knows_better() -> None:
    info = probed(answering({**VLLM, **PLUGIN}))
    assert (info.kind, info.kv_capacity_tokens, info.max_num_seqs) == ("vllm", 12_800, 16)
    assert info.capabilities == {"metrics", "kv_events", "control", "hints"}
    assert info.notes == ()


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"host_kv_tokens": 6_400, "shared_tier": "a"}, (6_400, "a")),
        ({"host_kv_tokens": 6_400, "shared_tier": None}, (6_400, None)),
        ({"host_kv_tokens": 0}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_tiers_behind_the_device(
    told: dict[str, Any], known: tuple[int | None, str | None]
) -> None:
    stats = "/v1/saga/stats"
    info = probed(answering({**VLLM, stats: {**PLUGIN[stats], **told}}))
    assert (info.host_kv_tokens, info.shared_tier) == known
    assert "host_tier" in info.capabilities or known[0] is None
    assert "shared_tier" in info.capabilities or known[1] is None
    assert len(info.capabilities) == 4 + len([what for what in known if what is not None])


@pytest.mark.parametrize("path", ["/get_server_info", "/server_info"])
def test_sglang_under_both_names_of_its_information(path: str) -> None:
    routes = {**SGLANG, path: SGLANG["/get_server_info"]}
    if path == "/server_info":
        del routes["/get_server_info"]
    info = probed(answering(routes))
    assert (info.kind, info.version, info.models) == ("sglang", "0.5.23", ("m",))
    assert (info.kv_capacity_tokens, info.max_num_seqs) == (471_258, 128)
    assert info.capabilities == {"metrics"}


@pytest.mark.parametrize("owner", ["saga", "somebody"])
def test_the_emulated_engine(owner: str) -> None:
    metrics = VLLM["/metrics"] if owner == "saga" else ""
    info = probed(
        answering({"/v1/models": models("m", owner=owner), "/metrics": metrics, **PLUGIN})
    )
    assert info.kind == "saga"
    assert {"control", "hints"} <= info.capabilities


def test_any_other_server_says_all_that_it_lacks() -> None:
    info = probed(answering({"/v1/models": models("gpt", owner="organization")}))
    assert (info.kind, info.version, info.models) == ("openai", None, ("gpt",))
    assert (info.kv_capacity_tokens, info.max_num_seqs) == (None, None)
    assert info.capabilities == frozenset()
    assert len(info.notes) == len(set(info.notes)) == 5
    assert all(note.endswith(".") and note.count(". ") == 0 for note in info.notes)


def test_no_models_is_no_failure() -> None:
    assert "does not list its models" in probed(answering({})).notes[0]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_said(status: int) -> None:
    info = probed(answering({"/v1/models": status}))
    assert info.notes[0] == "It refuses the API key."
    assert not any("list its models" in note for note in info.notes)


def test_the_key_goes_with_each_question() -> None:
    seen: list[str] = []
    probed(answering({}, seen))
    assert "POST /v1/saga/stats Bearer key" in seen
    assert all(line.endswith(" Bearer key") for line in seen)
    assert all(line.startswith("GET ") for line in seen if "/v1/saga/" not in line)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_proxy_without_an_engine_is_no_engine(status: int) -> None:
    with pytest.raises(UpstreamError, match=str(status)):
        probed(answering({"/v1/models": status}))


def test_an_unreachable_engine_is_an_error() -> None:
    async def run() -> None:
        async with Upstream() as upstream:
            with refusing() as url, pytest.raises(UpstreamError):
                await probe(upstream, url, None)

    asyncio.run(run())


def test_a_route_that_hangs_is_one_that_is_missing() -> None:
    quick = answering(VLLM)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/metrics":
            await asyncio.sleep(60)
        return await quick(request)

    info = probed(handler, Timeouts(first_byte_s=0.3))
    assert info.kind == "vllm"
    assert info.capabilities == {"kv_events"}


def test_the_list_of_models_is_bounded() -> None:
    names = [f"m{number}" for number in range(1_500)]
    info = probed(answering({"/v1/models": models(*names, owner="vllm")}))
    assert info.models == tuple(names[:1_000])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["data", "id", "version", "max_total_num_tokens", "endpoint", "kv_events_config"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
PATHS = [
    "/v1/models",
    "/version",
    "/metrics",
    "/server_info",
    "/v1/saga/stats",
    "/kv_event_sources",
]


@settings(max_examples=25)
@given(routes=st.dictionaries(st.sampled_from(PATHS), JSON | st.binary(), max_size=6))
def test_no_answer_whatever_is_an_error(routes: Routes) -> None:
    routes = {
        path: [answer] if isinstance(answer, int) else answer  # a bare number is a status
        for path, answer in routes.items()
    }
    info = probed(answering(routes))
    assert info.kv_capacity_tokens is None or info.kv_capacity_tokens > 0
