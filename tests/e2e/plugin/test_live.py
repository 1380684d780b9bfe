"""The plugin in real vLLM servers: sessions resume from the cache, and nothing else changes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pytest
import zmq
from tests.e2e.model import make_model
from tests.e2e.processes import MODEL, Vllm, post, start_vllm, wait_for
from tests.gateway.live import ask

SMALL = ("--num-gpu-blocks-override", "400", "--scheduling-policy", "priority")
"""400 blocks of 32 tokens: room for about six of these prompts."""
PLUGIN = ("--scheduler-cls", "saga.engine.vllm.Scheduler")
TURNS = 6
GAP_REQUESTS = 10


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
    environment = {"VLLM_PLUGINS": "saga,saga_endpoint", "SAGA_EVENTS_ENDPOINT": events}
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


def complete(server: Vllm, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 16, "temperature": 0, **more}
    status, answer, _ = post(f"{server.url}/v1/completions", body)
    assert status == 200, answer
    result: dict[str, Any] = answer
    return result


def cached(answer: Mapping[str, Any]) -> int:
    count: int = (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
    return count


def letters(chance: Random, number: int) -> str:
    """As many tokens, and never the same twice."""
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=number))


def gap(server: Vllm, chance: Random) -> None:
    """What others ask while a session is in its tool: more than the cache has room for."""
    for _ in range(GAP_REQUESTS):
        complete(server, letters(chance, 1_870), max_tokens=1)


def control(server: Vllm, op: str, **body: Any) -> Any:
    status, answer, _ = post(f"{server.url}/v1/saga/{op}", body)
    assert status == 200, answer
    return answer


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
