"""KV brought back before it is asked for, and what is remembered for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.live import Live, chat, fetch, gateway
from tests.gateway.raw import CHAT, DIALECTS
from tests.gateway.servers import serve
from tests.gateway.tiny import Tiny, tiny
from tests.serving import wait_until

from saga import wire
from saga.gateway.prefetch import ENTRY_BYTES, Asked, LastRequests, shortened

MINE = {wire.SESSION_HEADER: "s"}
HOST = {"host_kv_tokens": 50_000}


def hosting(**more: Any) -> Tiny:
    return Tiny(reads_hints=True, stats=HOST, **more)


def prefetching(
    engine: Tiny, script: Callable[[Live], Any], mib: int = 1, key: str | None = None
) -> None:
    """Runs a script in a thread beside a gateway that may remember so much."""

    async def scenario() -> None:
        async with tiny(engine, **{"sessions.prefetch_mib": mib, "engines.api_key": key}) as live:
            await asyncio.to_thread(script, live)

    asyncio.run(scenario())


def ask(live: Live, body: Any, path: str = CHAT, **headers: str) -> int:
    return asyncio.run(fetch(live.url + path, body, headers={**MINE, **headers}))[0]


def prefetch(live: Live, session: str = "default/s") -> bool:
    (engine,) = live.gateway.fleet.engines
    return live.told(lambda gateway: gateway.asks.prefetch(engine, session))


@pytest.mark.parametrize("path", DIALECTS)
def test_the_last_request_is_asked_again_for_one_token(path: str) -> None:
    engine = hosting()
    prompt = {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "t"}]}

    def script(live: Live) -> None:
        assert ask(live, {"model": "m", **prompt, "max_tokens": 500, "n": 2}, path) == 200
        assert prefetch(live)
        wait_until(lambda: len(engine.asked) == 2)

    prefetching(engine, script)
    headers, raw = engine.asked[1]
    body = msgspec.json.decode(raw)
    hints = body.pop("vllm_xargs")
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    store = {"store": False} if path == "/v1/responses" else {}
    assert body == {"model": "m", **prompt, limit: 1, "stream": False, **store}
    assert hints.pop("saga_ttl_s") >= 5
    assert hints == {"saga_session": "default/s", "saga_prefetch": 1, "saga_return_s": 0}
    assert headers["content-type"] == "application/json"


def test_it_is_no_request_of_a_client() -> None:
    engine = hosting()

    def script(live: Live) -> None:
        ask(live, chat("x"))
        assert prefetch(live)
        wait_until(lambda: len(engine.asked) == 2)
        assert live.check_nothing_is_lost()["finished"] == 1

    prefetching(engine, script)


def test_clients_keys_are_not_remembered() -> None:
    engine = hosting()

    def script(live: Live) -> None:
        ask(live, chat("x"), f"{CHAT}?api_key=secret", authorization="Bearer secret")
        assert prefetch(live)
        wait_until(lambda: len(engine.asked) == 2)
        assert "secret" not in str(live.gateway.prefetches.last.get("default/s"))

    prefetching(engine, script, key="ours")
    assert engine.asked[1][0]["authorization"] == "Bearer ours"


@pytest.mark.parametrize(
    ("engine", "mib", "session"),
    [
        (Tiny(reads_hints=True), 1, "default/s"),
        (hosting(), 0, "default/s"),
        (hosting(), 1, "default/other"),
    ],
    ids=["no host tier", "not asked for", "nothing known of the session"],
)
def test_what_cannot_be_done(engine: Tiny, mib: int, session: str) -> None:
    def script(live: Live) -> None:
        ask(live, chat("x"))
        assert not prefetch(live, session)
        (known,) = live.gateway.host.scheduler.state.engines.values()
        assert known.prefetches == (session != "default/s")
        assert live.gateway.prefetches.last.num_bytes == 0 or mib

    prefetching(engine, script, mib)
    assert len(engine.asked) == 1


def test_nothing_is_kept_of_a_session_that_is_over() -> None:
    def script(live: Live) -> None:
        ask(live, chat("x"))
        assert len(live.gateway.prefetches.last) == 1
        ask(live, chat("x", saga={"session_id": "s", "final": True}))
        assert len(live.gateway.prefetches.last) == 0
        assert live.gateway.prefetches.last.num_bytes == 0
        assert not prefetch(live)

    prefetching(hosting(), script)


def test_the_real_request_ends_it() -> None:
    """The answer that nobody waits for takes ten seconds."""
    engine = hosting()

    def script(live: Live) -> None:
        ask(live, chat("x"))
        engine.delay_s = 10.0
        assert prefetch(live)
        assert prefetch(live), "one is enough"
        wait_until(lambda: len(engine.asked) == 2)
        engine.delay_s = 0.0
        ask(live, chat("x"))
        live.told(lambda gateway: None)
        assert live.gateway.prefetches.num_under_way == 0

    prefetching(engine, script)
    assert len(engine.asked) == 3


def test_an_error_is_counted() -> None:
    engine = hosting()

    def script(live: Live) -> None:
        ask(live, chat("x"))
        engine.status = 500
        assert prefetch(live)
        wait_until(lambda: live.gateway.prefetches.num_failed == 1)
        page = asyncio.run(fetch(f"{live.url}/metrics"))[1]
        assert b"\nsaga_prefetches_failed_total 1.0\n" in page
        assert (
            f"\nsaga_prefetch_bytes {live.gateway.prefetches.last.num_bytes}.0\n".encode() in page
        )
        assert next(iter(live.gateway.fleet.engines.values())).state == "up"

    prefetching(engine, script)


BODIES = st.binary(max_size=300)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), BODIES | st.none()), max_size=60))
def test_what_is_remembered_is_bounded_and_the_newest(steps: list[tuple[str, Any]]) -> None:
    last, model = LastRequests(3_000), dict[str, bytes]()

    def size() -> int:
        return sum(len(body) + ENTRY_BYTES for body in model.values())

    for name, body in steps:
        model.pop(name, None)
        if body is None:
            last.drop(name)
        else:
            last.put(name, Asked("chat", CHAT, body))
            model[name] = body
        while size() > 3_000:
            del model[next(iter(model))]
        assert last.num_bytes == size()
        assert len(last) == len(model)
        for key, kept in model.items():
            found = last.get(key)
            assert found is not None
            assert found.body == kept


def test_a_body_larger_than_all_room_is_not_kept() -> None:
    last = LastRequests(ENTRY_BYTES)
    last.put("a", Asked("chat", CHAT, b"x"))
    assert (len(last), last.num_bytes) == (0, 0)


def test_a_client_cannot_pose_as_another_session() -> None:
    """Its own arguments stay, and hints among them do not."""
    asked = chat("x", vllm_xargs={"mine": 1, "saga_session": "red/s", "saga_final": 1})
    ours = {"saga_session": "blue/s"}
    body = msgspec.json.decode(shortened(Asked("chat", CHAT, msgspec.json.encode(asked)), ours))
    assert body["vllm_xargs"] == {"mine": 1, **ours}


@pytest.mark.parametrize("tiers", [("a", "a"), ("a", "b"), (None, None), ("a", None)])
def test_a_session_moves_with_its_kv_where_engines_share_a_tier(
    tiers: tuple[str | None, str | None],
) -> None:
    async def scenario() -> None:
        engines = [
            Tiny(reads_hints=True, stats={**HOST, "shared_tier": tier} if tier else {})
            for tier in tiers
        ]
        async with serve(engines[0].handle) as one, serve(engines[1].handle) as other:
            await asyncio.to_thread(moved, one, other)

    def moved(one: str, other: str) -> None:
        with gateway(engines=[one, other]) as live:
            names = list(live.gateway.fleet.engines)
            wait_until(lambda: len(live.gateway.host.scheduler.state.engines) == 2)
            done = live.told(lambda gateway: gateway.asks.move("default/s", *names))
            assert done == (tiers == ("a", "a"))

    asyncio.run(scenario())
