"""The plugin in real vLLM servers: sessions resume from the cache, and nothing else changes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pytest
import zmq
from tests.e2e.model import make_model
from tests.e2e.plugin.live import PLUGIN, SMALL, cached, complete, control, gap, letters, resident
from tests.e2e.processes import Vllm, post, start_vllm, wait_for, wait_until
from tests.gateway.live import ask

TURNS = 6


@dataclass(frozen=True, slots=True)
class Pair:
    """The same model, stock and with the plugin."""

    stock: Vllm
    plugin: Vllm
    events: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no server outlives the tests
    folder = tmp_path_factory.mktemp("plugin")
    model, events = make_model(folder / "model"), f"ipc://{folder}/events"
    environment = {
        "VLLM_PLUGINS": "saga,saga_endpoint",
        "SAGA_EVENTS_ENDPOINT": events,
        "SAGA_ENGINE_TENANT_SHARE": "1",  # there is one tenant
    }
    servers = []
    try:
        servers.append(start_vllm(model, folder / "stock.log", *SMALL))
        log = folder / "plugin.log"
        servers.append(start_vllm(model, log, *SMALL, *PLUGIN, environment=environment))
        wait_for(servers)
        yield Pair(servers[0], servers[1], events)
    finally:
        for server in servers:
            server.stop()


def hit_rate(server: Vllm, session: str, **hints: Any) -> float:
    """Of the prompts with which a session comes back, what is cached."""
    chance, found, asked = Random(session), 0, 0
    prompt = letters(chance, 1_770)
    for turn in range(TURNS):
        xargs = {"saga_session": session, **hints}
        answer = complete(server, prompt, vllm_xargs=xargs)
        if turn:
            found += cached(answer)
            asked += answer["usage"]["prompt_tokens"]
        prompt += answer["choices"][0]["text"] + letters(chance, 160)
        gap(server, chance)
    return found / asked


def test_resumed_sessions_are_found_in_the_cache(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    hints = {"saga_ttl_s": 60, "saga_score": 0.9}
    stock = hit_rate(pair.stock, "t/stock", **hints)
    hinted = hit_rate(pair.plugin, "t/hinted", **hints)
    alone = hit_rate(pair.plugin, "t/alone")
    with capsys.disabled():
        print(
            f"\nresumed prompts found in the cache: stock vLLM {stock:.1%}, with hints "
            f"{hinted:.1%}, with a session and no hints {alone:.1%}"
        )
    assert stock == 0
    assert hinted >= 0.9
    assert alone >= 0.9


def test_what_is_read_from_retained_kv_is_what_would_be_computed(pair: Pair) -> None:
    chance = Random(1)
    prompt = letters(chance, 1_500)
    complete(pair.plugin, prompt, vllm_xargs={"saga_session": "t/exact", "saga_ttl_s": 60})
    gap(pair.plugin, chance)
    retained = complete(pair.plugin, prompt, logprobs=3)
    fresh = complete(pair.plugin, prompt, logprobs=3, cache_salt="fresh")
    assert cached(retained) >= 1_440
    assert cached(fresh) == 0
    assert retained["choices"][0]["text"] == fresh["choices"][0]["text"]
    assert retained["choices"][0]["logprobs"] == fresh["choices"][0]["logprobs"]


def test_control_messages_reach_the_scheduler(pair: Pair) -> None:
    server, chance = pair.plugin, Random(2)
    prompt = letters(chance, 1_600)
    complete(server, prompt, vllm_xargs={"saga_session": "t/told", "saga_ttl_s": 0.01})
    whole = {"session": "t/told", "resident_tokens": 1_600}
    assert control(server, "retain", session="t/told", ttl_s=60, score=1) == whole
    gap(server, chance)
    assert control(server, "extend", session="t/told", ttl_s=90) == whole
    assert control(server, "release", session="t/told") == whole
    gap(server, chance)
    assert cached(complete(server, prompt)) == 0


def test_figures(pair: Pair) -> None:
    stats = control(pair.plugin, "stats")
    assert stats["kv_capacity_tokens"] == 399 * 32
    assert stats["max_num_seqs"] == 16
    assert stats["events_endpoint"] == pair.events


def test_what_is_refused(pair: Pair) -> None:
    url = pair.plugin.url
    status, answer, _ = post(f"{url}/v1/saga/retain", {"session": "t/a", "ttl_s": "soon"})
    assert (status, answer["error"]["param"]) == (404, "session")
    status, answer, _ = post(f"{url}/v1/saga/retain", {"session": "", "ttl_s": 1})
    assert (status, answer["error"]["type"]) == (400, "BadRequestError")
    assert post(f"{url}/v1/saga/destroy", {})[0] == 404
    assert ask(f"{url}/v1/saga/stats")[0] == 405
    assert post(f"{pair.stock.url}/v1/saga/stats", {})[0] == 404


def test_subscribers_are_told_what_became_of_sessions(pair: Pair) -> None:
    chance = Random(3)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.connect(pair.events)
    socket.subscribe(b"saga")
    while not socket.poll(100):  # until the publisher knows that somebody listens
        complete(pair.plugin, "Hello", vllm_xargs={"saga_session": "t/hello", "saga_final": 1})
        complete(pair.plugin, letters(chance, 40), vllm_xargs={"saga_session": "t/hello"})
    for number in range(8):  # of three thousand tokens each: four fit
        hints = {"saga_session": f"t/told {number}", "saga_ttl_s": 60}
        complete(pair.plugin, letters(chance, 3_000), vllm_xargs=hints)
    control(pair.plugin, "release", session="t/told 7")
    told: list[list[Any]] = []
    numbers: list[int] = []
    while ["released", "t/told 7", 0] not in told:
        topic, count, body = socket.recv_multipart()
        assert topic == b"saga"
        numbers.append(int.from_bytes(count, "big"))
        told += msgspec.msgpack.decode(body)[1]
    socket.close()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    stored = {session: left for kind, session, left in told if kind == "stored"}
    assert stored["t/told 7"] == 3_008, "whole blocks, the answer's included"
    assert ["retained", "t/told 7", 3_008] in told
    evicted = {session: left for kind, session, left in told if kind == "evicted"}
    assert evicted["t/told 0"] == 0


# ---- who is kept, and until when


def ask_as(server: Vllm, session: str, prompt: str, **hints: float) -> None:
    """A short step of a session."""
    complete(server, prompt, max_tokens=1, vllm_xargs={"saga_session": session, **hints})


def test_a_session_is_kept_for_as_long_as_it_was_said_and_no_longer(pair: Pair) -> None:
    server, chance = pair.plugin, Random(4)
    for name, ttl_s in (("t/lapses", 1), ("t/extended", 1), ("t/long", 60)):
        ask_as(server, name, letters(chance, 1_600), saga_ttl_s=ttl_s, saga_score=1)
    control(server, "extend", session="t/extended", ttl_s=60)
    assert resident(server, "t/lapses") == 1_600
    time.sleep(1.5)
    for number in range(5):  # with these three, more than there is room for
        ask_as(server, f"t/later {number}", letters(chance, 1_870), saga_ttl_s=60, saga_score=0.5)
    assert resident(server, "t/lapses") <= 400, "from its end, as far as there was no other room"
    assert resident(server, "t/extended") == 1_600
    assert resident(server, "t/long") == 1_600


def test_of_more_than_fits_the_least_likely_to_return_go_first(pair: Pair) -> None:
    """Twelve contexts where seven fit, the best ones first: vLLM would keep the last."""
    server, chance = pair.plugin, Random(5)
    for number in range(12):
        hints = {"saga_ttl_s": 60, "saga_score": 1.0 if number < 6 else 0.0}
        ask_as(server, f"t/score {number}", letters(chance, 1_600), **hints)
    left = [resident(server, f"t/score {number}") for number in range(12)]
    assert left[:6] == [1_600] * 6
    assert left[6:10] == [0] * 4
    assert left[11] == 1_600


def test_a_shared_prefix_stays_while_one_of_its_sessions_does(pair: Pair) -> None:
    server, chance = pair.plugin, Random(6)
    prefix = letters(chance, 960)
    prompts = {name: prefix + letters(chance, 640) for name in ("t/leaves", "t/stays")}
    for name, prompt in prompts.items():
        ask_as(server, name, prompt, saga_ttl_s=60, saga_score=0.5)
    control(server, "release", session="t/leaves")
    gap(server, chance)
    other = cached(complete(server, prefix + letters(chance, 640), max_tokens=1))
    left = {
        name: cached(complete(server, prompt, max_tokens=1)) for name, prompt in prompts.items()
    }
    assert other == 960
    assert left == {"t/leaves": 960, "t/stays": 1_568}


def test_a_request_that_is_preempted_loses_nothing(pair: Pair) -> None:
    server, prompt = pair.plugin, letters(Random(7), 1_600)
    whole = complete(server, prompt, max_tokens=1_000, cache_salt="undisturbed")
    before = server.metric("vllm:num_preemptions_total")
    url, which = f"{server.url}/v1/saga/preempt", {"request": "disturbed"}
    with ThreadPoolExecutor(1) as pool:
        more = {"max_tokens": 1_000, "vllm_xargs": {"saga_session": "t/disturbed"}}
        answer = pool.submit(complete, server, prompt, request_id="disturbed", **more)
        wait_until(lambda: post(url, which)[:2] == (200, {**which, "applied": True}), 10)
        disturbed = answer.result(60)
    assert server.metric("vllm:num_preemptions_total") == before + 1
    assert disturbed["usage"]["completion_tokens"] == 1_000
    assert disturbed["choices"][0]["text"] == whole["choices"][0]["text"]
