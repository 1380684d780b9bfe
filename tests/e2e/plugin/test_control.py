"""Control messages, on the real scheduler: what they do, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.plugin.engine import BLOCK, STOCK, FakeEngine, tokens
from vllm.v1.engine.core import EngineCore

from saga.engine.vllm import METHOD, register


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def engine(request: pytest.FixtureRequest) -> FakeEngine:
    return FakeEngine(64, asynchronous=request.param, policy="priority", max_num_seqs=2)


class Core:
    """As much of vLLM's engine as the method that is added to it needs."""

    def __init__(self, engine: FakeEngine) -> None:
        self.scheduler = engine.scheduler


def ask(engine: FakeEngine, op: str, **body: Any) -> dict[str, Any]:
    register()
    answer: dict[str, Any] = getattr(EngineCore, METHOD)(Core(engine), op, body)
    return answer


def done(engine: FakeEngine, op: str, **body: Any) -> dict[str, Any]:
    answer = ask(engine, op, **body)
    assert answer["status"] == 200, answer
    result: dict[str, Any] = answer["answer"]
    return result


# ---- sessions


def test_retain_extend_and_release(engine: FakeEngine) -> None:
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=1)
    whole = {"session": "t/a", "resident_tokens": 20 * BLOCK}
    assert done(engine, "stats", session="t/a") == whole
    engine.clock.sleep(2)
    assert retained(engine) == 0
    assert done(engine, "retain", session="t/a", ttl_s=10, score=0.5) == whole
    engine.clock.sleep(8)
    assert done(engine, "extend", session="t/a", ttl_s=1) == whole, "never ends earlier"
    engine.clock.sleep(1.5)
    assert retained(engine) == 1
    assert done(engine, "extend", session="t/a", ttl_s=30) == whole
    engine.clock.sleep(29)
    assert retained(engine) == 1
    assert done(engine, "release", session="t/a") == whole, "what it had"
    assert ask(engine, "stats", session="t/a")["status"] == 404, "it is forgotten"
    assert done(engine, "stats")["session_blocks"] == 0


def retained(engine: FakeEngine) -> int:
    count: int = done(engine, "stats")["num_sessions_retained"]
    return count


def test_a_retention_of_no_time_only_scores(engine: FakeEngine) -> None:
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    assert done(engine, "retain", session="t/a", ttl_s=0, score=2)["resident_tokens"] == 20 * BLOCK
    chain = engine.scheduler.keeper.holdings.chains["t/a"]
    assert (chain.p_reuse, retained(engine)) == (1.0, 0)


def test_what_was_evicted_is_told_apart_from_what_was_never_seen(engine: FakeEngine) -> None:
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    engine.traffic(63, 1)
    assert done(engine, "retain", session="t/a", ttl_s=5) == {
        "session": "t/a",
        "resident_tokens": 0,
    }
    assert ask(engine, "retain", session="t/b", ttl_s=5)["status"] == 404


# ---- requests


def test_priority_moves_a_waiting_request_to_the_front(engine: FakeEngine) -> None:
    names = [engine.submit(tokens(f"r{n}", 3 * BLOCK), 20, priority=n) for n in range(8)]
    engine.step()
    answer = done(engine, "priority", request=names[7], priority=-5)
    assert answer == {"request": names[7], "applied": True}
    assert done(engine, "priority", request=names[2], priority=100)["applied"]
    waiting = [request.request_id for request in engine.scheduler.waiting]
    assert waiting == [names[7], *names[3:7], names[2]], "a heap in which one was changed in place"


def test_without_scheduling_by_priority_it_changes_nothing() -> None:
    engine = FakeEngine(64, max_num_seqs=1)
    names = [engine.submit(tokens(f"r{n}", 3 * BLOCK), 5) for n in range(3)]
    assert done(engine, "priority", request=names[2], priority=-5)["applied"] is False
    assert [request.request_id for request in engine.scheduler.waiting] == names


def test_a_preempted_request_waits_behind_the_others_and_loses_nothing(engine: FakeEngine) -> None:
    names = [engine.submit(tokens(f"r{n}", 3 * BLOCK), 60) for n in range(3)]
    alone = FakeEngine(64, asynchronous=engine.asynchronous)
    expected = alone.answer(tokens("r0", 3 * BLOCK), 60)
    for _ in range(20):
        engine.step()
    request = engine.scheduler.requests[names[0]]
    assert done(engine, "preempt", request=names[0]) == {"request": names[0], "applied": True}
    assert done(engine, "preempt", request=names[0])["applied"] is False, "it waits"
    engine.step()
    assert [one.request_id for one in engine.scheduler.running] == names[1:]
    engine.drain()
    assert list(request.output_token_ids) == expected
    assert request.num_preemptions == 1


def test_a_preempted_request_that_runs_again_at_once_loses_nothing(engine: FakeEngine) -> None:
    alone = FakeEngine(64, asynchronous=engine.asynchronous)
    expected = alone.answer(tokens("r", 3 * BLOCK), 60)
    name = engine.submit(tokens("r", 3 * BLOCK), 60)
    request = engine.scheduler.requests[name]
    for number in range(20):
        engine.step()
        if number % 5 == 4:
            assert done(engine, "preempt", request=name)["applied"]
            assert name not in engine.scheduler.prev_step_scheduled_req_ids, "told anew in full"
    engine.drain()
    assert list(request.output_token_ids) == expected


@pytest.mark.parametrize(
    "internal", ["chatcmpl-r1-1a2b3c4d", "cmpl-r1-0-1a2b3c4d", "resp_r1", "r1"]
)
@pytest.mark.parametrize("told", ["r1", "chatcmpl-r1", "cmpl-r1"])
def test_a_request_is_known_by_the_id_that_its_client_saw(internal: str, told: str) -> None:
    engine = FakeEngine(64)
    engine.submit(tokens("r", BLOCK), 5, name=internal)
    engine.submit(tokens("r", BLOCK), 5, name="chatcmpl-r10-1a2b3c4d")
    engine.step()
    assert done(engine, "preempt", request=told) == {"request": "r1", "applied": True}
    assert [one.request_id for one in engine.scheduler.running] == ["chatcmpl-r10-1a2b3c4d"]


# ---- figures


def test_figures(engine: FakeEngine) -> None:
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    engine.run(tokens("b", 20 * BLOCK), session="t/b")
    engine.submit(tokens("c", 3 * BLOCK), 5)
    engine.step()
    engine.submit(tokens("d", 3 * BLOCK), 5)
    assert done(engine, "stats") == {
        "num_requests_running": 1,
        "num_requests_waiting": 1,
        "max_num_seqs": 2,
        "num_blocks": 63,
        "used_blocks": 3,
        "kv_capacity_tokens": 63 * BLOCK,
        "retained_tokens": 40 * BLOCK,
        "num_sessions": 2,
        "num_prefixes": 0,
        "num_sessions_retained": 2,
        "num_sessions_evicted": 0,
        "session_blocks": 40,
        "retained_blocks": 40,
        "evicted_blocks": 0,
        "events_endpoint": None,
    }


# ---- what is refused


@pytest.mark.parametrize(
    ("op", "body", "status", "param"),
    [
        ("retain", {}, 400, "session"),
        ("retain", {"session": 7, "ttl_s": 1}, 400, "session"),
        ("retain", {"session": "a\0b", "ttl_s": 1}, 400, "session"),
        ("retain", {"session": "t/a"}, 400, "ttl_s"),
        ("retain", {"session": "t/a", "ttl_s": -1}, 400, "ttl_s"),
        ("retain", {"session": "t/a", "ttl_s": "soon"}, 400, "ttl_s"),
        ("retain", {"session": "t/a", "ttl_s": True}, 400, "ttl_s"),
        ("retain", {"session": "t/a", "ttl_s": float("inf")}, 400, "ttl_s"),
        ("retain", {"session": "t/a", "ttl_s": 1, "score": "high"}, 400, "score"),
        ("retain", {"session": "t/a", "ttl_s": 1, "score": float("nan")}, 400, "score"),
        ("retain", {"session": "t/unknown", "ttl_s": 1}, 404, "session"),
        ("extend", {"session": "t/a"}, 400, "ttl_s"),
        ("extend", {"session": "t/unknown", "ttl_s": 1}, 404, "session"),
        ("release", {}, 400, "session"),
        ("release", {"session": "t/unknown"}, 404, "session"),
        ("stats", {"session": None}, 400, "session"),
        ("priority", {"request": "r"}, 400, "priority"),
        ("priority", {"request": "r", "priority": 1.5}, 400, "priority"),
        ("priority", {"request": "r", "priority": True}, 400, "priority"),
        ("priority", {"request": "r", "priority": 1 << 40}, 400, "priority"),
        ("priority", {"priority": 1}, 400, "request"),
        ("priority", {"request": "unknown", "priority": 1}, 404, "request"),
        ("preempt", {}, 400, "request"),
        ("preempt", {"request": "unknown"}, 404, "request"),
        ("destroy", {}, 404, None),
    ],
)
def test_bad_input_is_refused_with_a_reason_and_changes_nothing(
    op: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    engine = FakeEngine(64)
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60, score=0.5)
    before = done(engine, "stats"), engine.free_ids()
    answer = ask(engine, op, **body)
    assert (answer["status"], answer["param"]) == (status, param)
    assert param is None or param in answer["reason"]
    assert (done(engine, "stats"), engine.free_ids()) == before


def test_without_the_scheduler_it_says_what_is_missing() -> None:
    answer = ask(FakeEngine(64, scheduler=STOCK[False]), "stats")
    assert answer["status"] == 501
    assert "--scheduler-cls saga.engine.vllm.Scheduler" in answer["reason"]
