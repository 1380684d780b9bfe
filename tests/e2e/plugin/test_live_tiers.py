"""KV behind the device, in real vLLM servers: it comes back as it was, here and elsewhere."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.e2e.model import make_model
from tests.e2e.plugin.live import PLUGIN, SMALL, cached, complete, control, letters, resident
from tests.e2e.processes import (
    MODEL,
    Vllm,
    free_port,
    gateway,
    start_vllm,
    wait_for,
    wait_until,
)
from tests.gateway.live import ask

SESSIONS = 10
TURNS = 4
PRESET = "saga+prefetch.min_gap_s=0.5+prefetch.lead_s=1.0"
"""Tools of these tests take two seconds."""


RESTLESS = "saga+routing.theta=0"
"""No engine that has a session's KV is ever idle enough for it."""


def offload(spec: str, **more: Any) -> tuple[str, str]:
    """A tier with room for 8,000 blocks, five times what the device has."""
    extra = {
        "spec_name": spec,
        "spec_module_path": "saga.engine.vllm.offload",
        "cpu_bytes_to_use": 64 << 20,
        "offload_prompt_only": False,
        **more,
    }
    config = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }
    return "--kv-transfer-config", json.dumps(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no server outlives the tests
    path = tmp_path_factory.mktemp("tiers")
    make_model(path / "model")
    return path


def start(folder: Path, name: str, *options: str) -> Vllm:
    environment = {
        "VLLM_PLUGINS": "saga,saga_endpoint",
        "SAGA_EVENTS_ENDPOINT": f"tcp://127.0.0.1:{free_port()}",
    }
    log = folder / f"{name}.log"
    return start_vllm(folder / "model", log, *SMALL, *PLUGIN, *options, environment=environment)


@pytest.fixture(scope="module")
def sharing(folder: Path) -> Iterator[list[Vllm]]:
    """Two engines and one folder."""
    tier = offload(
        "SharedTierSpec", secondary_tiers=[{"type": "fs", "root_dir": str(folder / "kv")}]
    )
    servers: list[Vllm] = []
    try:
        servers += [start(folder, f"sharing-{number}", *tier) for number in range(2)]
        wait_for(servers)
        yield servers
    finally:
        for server in servers:
            server.stop()


def crowd_out(server: Vllm, chance: Random) -> None:
    """Sessions that are worth more than any other, and more than the device has room for."""
    for _ in range(8):
        hints = {"saga_session": f"crowd/{chance.random()}", "saga_ttl_s": 1, "saga_score": 1}
        complete(server, letters(chance, 1_870), max_tokens=1, vllm_xargs=hints)
    time.sleep(1)


def hit_rate(server: Vllm, label: str) -> float:
    """Of the prompts with which ten sessions in turn come back, what is cached."""
    chance, found, asked = Random(label), 0, 0
    prompts = {f"t/{label} {number}": letters(chance, 1_770) for number in range(SESSIONS)}
    for turn in range(TURNS):
        for session, prompt in prompts.items():
            hints = {"saga_session": session, "saga_return_s": 5}
            answer = complete(server, prompt, vllm_xargs=hints)
            if turn:
                found += cached(answer)
                asked += answer["usage"]["prompt_tokens"]
            prompts[session] = prompt + answer["choices"][0]["text"] + letters(chance, 160)
    return found / asked


def test_sessions_that_do_not_fit_are_found_in_host_memory(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [start(folder, "alone"), start(folder, "host", *offload("HostTierSpec"))]
    try:
        wait_for(servers)
        without, with_tier = (hit_rate(server, "a") for server in servers)
        stats = control(servers[1], "stats")
        read = servers[1].metric("vllm:kv_offload_load_bytes_total")
    finally:
        for server in servers:
            server.stop()
    with capsys.disabled():
        print(
            f"\nresumed prompts found: on the device alone {without:.1%}, with a host tier "
            f"{with_tier:.1%}; {stats['host_stored']} blocks stored, {stats['host_skipped']} not; "
            f"{read / 2**20:.1f} MiB read back"
        )
    assert stats["host_kv_tokens"] == 8_192 * 32
    assert stats["shared_tier"] is None
    assert with_tier > 0.8, "the first sessions met an empty device, and were not copied then"
    assert with_tier > without + 0.2


def test_what_is_read_back_is_what_would_be_computed(
    sharing: list[Vllm], capsys: pytest.CaptureFixture[str]
) -> None:
    server, chance = sharing[0], Random(1)
    prompt = letters(chance, 1_500)
    complete(server, prompt, vllm_xargs={"saga_session": "t/exact", "saga_ttl_s": 0.01})
    crowd_out(server, chance)
    complete(server, "Hello", logprobs=3)  # the first time takes seconds
    assert resident(server, "t/exact") == 0
    begin = time.perf_counter()
    back = complete(server, prompt, logprobs=3)
    took = time.perf_counter() - begin
    begin = time.perf_counter()
    fresh = complete(server, prompt, logprobs=3, cache_salt="fresh")
    anew = time.perf_counter() - begin
    with capsys.disabled():
        print(f"\n{cached(back)} tokens read back: {took:.3f} s; computed anew: {anew:.3f} s")
    assert cached(back) >= 1_440
    assert cached(fresh) == 0
    assert back["choices"][0]["text"] == fresh["choices"][0]["text"]
    assert back["choices"][0]["logprobs"] == fresh["choices"][0]["logprobs"]


def test_a_session_moves_with_its_kv(
    sharing: list[Vllm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [control(server, "stats")["shared_tier"] for server in sharing]
    assert told[0] is not None
    assert told[0] == told[1]
    prompt = letters(Random(2), 1_500)
    with gateway(engines=sharing, log=tmp_path / "gateway.log", preset=RESTLESS) as front:
        first, engine = through(front.url, "moving", prompt)
        settle(sharing)
        grown = prompt + first["choices"][0]["text"] + "What next?"
        begin = time.perf_counter()
        moved, other = through(front.url, "moving", grown, logprobs=3)
        took = time.perf_counter() - begin
        page: bytes = ask(f"{front.url}/metrics")[1]
    assert other != engine
    assert cached(moved) >= 1_472
    (target,) = [server for server in sharing if server.name == other]
    begin = time.perf_counter()
    fresh = complete(target, grown, logprobs=3, cache_salt="fresh")
    anew = time.perf_counter() - begin
    with capsys.disabled():
        print(
            f"\n{cached(moved)} tokens found at the other engine: "
            f"{took:.3f} s; computed anew: {anew:.3f} s"
        )
    assert moved["choices"][0]["text"] == fresh["choices"][0]["text"]
    assert moved["choices"][0]["logprobs"] == fresh["choices"][0]["logprobs"]
    assert any(b'"Move"' in line and b'"true"' in line for line in page.splitlines())


def through(url: str, session: str, prompt: str, **more: Any) -> tuple[dict[str, Any], str]:
    """One request of a session, and which engine answered."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0, **more}
    headers = {"content-type": "application/json", "x-saga-session-id": session}
    status, answer, back = ask(f"{url}/v1/completions", body, headers=headers)
    assert status == 200, answer
    return answer, {name.lower(): value for name, value in back.items()}["x-saga-engine"]


def settle(servers: list[Vllm]) -> None:
    """Copies are made in the step after the one that filled a block. (The first time that anybody
    wants probabilities takes seconds.)"""
    for server in servers:
        complete(server, "Hello", max_tokens=2, logprobs=3)
    time.sleep(0.5)


def test_kv_is_back_before_its_session(sharing: list[Vllm], tmp_path: Path) -> None:
    server, chance = sharing[0], Random(3)
    settings = {"SAGA_SESSIONS__PREFETCH_MIB": "8"}
    prompt = letters(chance, 1_500)
    with gateway(
        engines=[server], log=tmp_path / "gateway.log", preset=PRESET, **settings
    ) as front:
        for _ in range(2):  # so that it is known how long its tool takes
            answer, _ = through(front.url, "waiting", prompt)
            prompt += answer["choices"][0]["text"] + letters(chance, 60)
            time.sleep(4)
        through(front.url, "waiting", prompt)
        time.sleep(0.2)
        control(server, "retain", session="default/waiting", ttl_s=0, score=0)
        crowd_out(server, chance)
        assert resident(server, "default/waiting") < 1_500
        wait_until(lambda: resident(server, "default/waiting") >= 1_500, 5)
        page: bytes = ask(f"{front.url}/metrics")[1]
        read = server.metric("vllm:kv_offload_load_bytes_total")
        answer, _ = through(front.url, "waiting", prompt + "What next?")
    arrived = [line for line in page.splitlines() if line.startswith(b"saga_requests_arrived")]
    assert [line.split()[-1] for line in arrived] == [b"3.0"], "a client asked no more"
    assert cached(answer) >= 1_500
    assert server.metric("vllm:kv_offload_load_bytes_total") == read, "it was there already"
