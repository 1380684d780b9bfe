"""What stays and what goes, in vLLM's real scheduler; time stands still unless a test moves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.e2e.plugin.engine import BLOCK, STOCK, FakeEngine, tokens

from saga.engine.vllm.prefixes import is_prefix

Make = Callable[..., FakeEngine]

RANK_BY_SCORE = {"preset": "saga+eviction.alpha=0+eviction.gamma=0"}
"""WA-LRU with nothing but the score, so that a test needs no arithmetic."""
ANSWER = [7] * 40
"""What a tool returned: new tokens of the next step."""


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    def made(num_blocks: int = 64, **more: Any) -> FakeEngine:
        return FakeEngine(num_blocks, asynchronous=request.param, **more)

    return made


def busy(engine: FakeEngine, seeds: range = range(10), blocks: int = 20) -> None:
    """Much more traffic of others than there is room for."""
    for seed in seeds:
        engine.traffic(blocks, seed)


def resume(engine: FakeEngine, text: str, blocks: int = 20, **hints: Any) -> int:
    """The next step of the session that began with ``text``; cached tokens of its prompt."""
    return engine.run(tokens(text, blocks * BLOCK) + ANSWER, **hints)


# ---- hints in requests


def test_a_retained_session_survives_traffic_and_in_stock_vllm_it_does_not(make: Make) -> None:
    for engine, expected in ((make(scheduler=None), 20 * BLOCK), (stock(make), 0)):
        engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
        busy(engine)
        assert resume(engine, "a", session="t/a", ttl_s=60) == expected


def stock(make: Make) -> FakeEngine:
    return make(scheduler=STOCK[make().asynchronous])


def test_a_session_that_vllm_knows_by_itself_is_retained_too(make: Make) -> None:
    engine = make()
    engine.run(tokens("a", 20 * BLOCK), native_session="a", ttl_s=60)
    busy(engine)
    assert resume(engine, "a", native_session="a") == 20 * BLOCK


def test_the_session_of_the_hints_goes_before_the_one_of_vllm(make: Make) -> None:
    engine = make()
    engine.run(tokens("a", 20 * BLOCK), native_session="theirs", session="ours", ttl_s=60)
    assert engine.resident("ours") == 20 * BLOCK
    assert engine.resident("theirs") == 0


def test_a_retention_ends_with_its_time(make: Make) -> None:
    engine = make()
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=2)
    engine.run(tokens("b", 20 * BLOCK), session="t/b", ttl_s=60)
    engine.clock.sleep(1.9)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 2
    engine.clock.sleep(0.2)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 1
    engine.traffic(43, 1)  # 23 blocks were left
    assert engine.resident("t/a") == 0
    assert engine.resident("t/b") == 20 * BLOCK


def test_what_no_session_claims_goes_before_sessions_whose_time_is_over(make: Make) -> None:
    engine = make()
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=2)
    engine.clock.sleep(3)
    busy(engine)
    assert resume(engine, "a", session="t/a") == 20 * BLOCK


@pytest.mark.parametrize("hints", [{"final": 1}, {"final": "true"}, {"ttl_s": 0}])
def test_the_last_step_of_a_session_frees_its_kv_first(make: Make, hints: dict[str, Any]) -> None:
    engine = make()
    before = engine.run(tokens("before", 10 * BLOCK))
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    assert resume(engine, "a", session="t/a", **hints) == 20 * BLOCK
    assert engine.scheduler.keeper.stats()["num_sessions"] == 0
    assert before == 0
    engine.traffic(64 - 1 - 10 - 1, 1)  # all but what was there before it; a block is half full
    assert engine.run(tokens("before", 10 * BLOCK)) == 9 * BLOCK, "older, and yet it stays"


@pytest.mark.parametrize(
    "hints",
    [
        {"ttl_s": "soon"},
        {"ttl_s": float("nan")},
        {"ttl_s": -1},
        {"ttl_s": [60]},
        {"ttl_s": 60, "score": "high"},
        {"ttl_s": 60, "score": None},
        {"session": 7},
        {"session": "x" * 257},
        {"session": "a\nb"},
        {"return_s": True},
        {"final": "perhaps"},
    ],
    ids=repr,
)
def test_bad_hints_change_nothing_and_break_nothing(make: Make, hints: dict[str, Any]) -> None:
    engine = make()
    engine.run(tokens("a", 20 * BLOCK), native_session="a", **hints)
    assert engine.resident("a") == 20 * BLOCK


# ---- what goes first


def test_over_commit_takes_sessions_by_score_each_from_its_tail(make: Make) -> None:
    engine = make(96, additional={"saga": RANK_BY_SCORE})
    for number in range(6):
        text = f"s{number}"
        engine.run(tokens(text, 15 * BLOCK), session=f"t/{text}", ttl_s=60, score=number / 10)
    engine.traffic(40, 1)  # 5 blocks were left, so 35 are taken
    left = [engine.resident(f"t/s{number}") // BLOCK for number in range(6)]
    assert left == [0, 0, 10, 15, 15, 15]
    assert engine.run(tokens("s2", 15 * BLOCK) + ANSWER) == 10 * BLOCK, "its head is what is left"


def test_unprotected_sessions_go_before_retained_ones_whatever_their_score(make: Make) -> None:
    engine = make(64, additional={"saga": RANK_BY_SCORE})
    engine.run(tokens("kept", 20 * BLOCK), session="t/kept", ttl_s=60, score=0.0)
    engine.run(tokens("open", 20 * BLOCK), session="t/open", ttl_s=1, score=1.0)
    engine.clock.sleep(2)
    engine.traffic(43, 1)
    assert engine.resident("t/open") == 0
    assert engine.resident("t/kept") == 20 * BLOCK


def test_a_shared_prefix_stays_for_the_longest_kept_of_its_sessions(make: Make) -> None:
    engine = make(96)
    prefix = tokens("prefix", 10 * BLOCK)
    for name, ttl_s in (("short", 1), ("long", 60), ("done", 60)):
        context = prefix + tokens(name, 5 * BLOCK)
        engine.run(context, session=f"t/{name}", ttl_s=ttl_s)
    engine.run(prefix + tokens("done", 5 * BLOCK) + ANSWER, session="t/done", final=1)
    engine.clock.sleep(2)
    busy(engine, blocks=80)  # 75 blocks were left
    assert engine.resident("t/short") == 10 * BLOCK, "nothing of its own"
    assert engine.resident("t/long") == 15 * BLOCK
    engine.scheduler.keeper.release("t/short")
    busy(engine, blocks=80)
    assert engine.run(prefix + tokens("long", 5 * BLOCK) + ANSWER) == 15 * BLOCK


def test_a_tenant_over_its_cap_loses_its_own_lowest_ranked(make: Make) -> None:
    options = {**RANK_BY_SCORE, "tenant_share": 0.5}
    engine = make(101, additional={"saga": options})
    engine.run(tokens("poor", 10 * BLOCK), session="poor/1", ttl_s=60, score=0.0)
    for number in range(8):
        text = f"rich{number}"
        score = 0.9 - number / 10
        engine.run(tokens(text, 10 * BLOCK), session=f"rich/{number}", ttl_s=60, score=score)
    stats = engine.scheduler.keeper.stats()
    assert stats["num_sessions"] == 9
    assert stats["num_sessions_retained"] == 1 + 4, "95 % of half of 101 blocks have room for four"
    engine.traffic(50, 1)  # 10 blocks were left
    assert engine.resident("poor/1") == 10 * BLOCK, "although its score is the lowest of all"
    kept = [engine.resident(f"rich/{number}") // BLOCK for number in range(8)]
    assert kept == [10] * 4 + [0] * 4


def test_one_tenant_alone_may_have_all(make: Make) -> None:
    engine = make(101, additional={"saga": {"tenant_share": 0.1}})
    for number in range(9):
        engine.run(tokens(f"s{number}", 10 * BLOCK), session=f"t/{number}", ttl_s=60)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 9


def test_a_session_that_waits_for_its_turn_keeps_its_kv_beyond_its_time(make: Make) -> None:
    engine = make(64, max_num_seqs=1)
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=2)
    engine.run(tokens("b", 20 * BLOCK), session="t/b", ttl_s=60)
    engine.submit(tokens("first", 5 * BLOCK), 36 * BLOCK)
    engine.step()
    waiting = engine.submit(tokens("a", 20 * BLOCK) + ANSWER, session="t/a", ttl_s=2)
    engine.clock.sleep(30)
    engine.drain()
    assert engine.cached[waiting] == 20 * BLOCK, "b went, which nobody waits for"
    assert engine.resident("t/b") < 20 * BLOCK


def test_a_request_that_ends_before_it_runs_leaves_the_promise_as_it_was(make: Make) -> None:
    engine = make(64, max_num_seqs=1)
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    engine.submit(tokens("first", 10 * BLOCK), 20)
    engine.step()
    waiting = engine.submit(tokens("a", 20 * BLOCK) + ANSWER, session="t/a", ttl_s=2)
    engine.abort(waiting)
    engine.drain()
    engine.clock.sleep(59)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 1
    engine.clock.sleep(2)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 0
    assert engine.resident("t/a") == 20 * BLOCK


def test_a_context_that_was_cut_keeps_only_what_it_still_has(make: Make) -> None:
    engine = make(64)
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    head = tokens("a", 20 * BLOCK)[: 5 * BLOCK]
    engine.run(head + tokens("summary", 5 * BLOCK), session="t/a", ttl_s=60)
    assert engine.resident("t/a") == 10 * BLOCK
    assert engine.scheduler.keeper.stats()["session_blocks"] == 10


def test_more_input_for_a_request_is_no_other_request(make: Make) -> None:
    engine = make(64)
    name = engine.submit(tokens("a", 5 * BLOCK), 3, session="t/a", resumable=True)
    for _ in range(6):
        engine.step()
    engine.submit(tokens("b", 5 * BLOCK), 3, name=name, session="t/a", resumable=True)
    for _ in range(6):
        engine.step()
    engine.submit([1], name=name, session="t/a", ttl_s=2)
    engine.drain()
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 1
    engine.clock.sleep(301)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 0, "nothing waits any more"


# ---- without hints


def test_without_a_session_everything_is_as_in_stock_vllm(make: Make) -> None:
    """The same blocks in the same order, step by step, with prefix hits and preemptions."""
    engines = [make(40), stock_of(make, 40)]
    for number in range(60):
        for engine in engines:
            shared = tokens(f"prefix {number % 4}", (number % 5) * BLOCK + 1)
            engine.submit(shared + tokens(f"r{number}", 5 + 17 * (number % 9)), 1 + number % 30)
        for _ in range(number % 6):
            ours, theirs = (trace(engine) for engine in engines)
            assert ours == theirs
    for engine in engines:
        engine.drain()
    assert engines[0].free_ids() == engines[1].free_ids()
    assert engines[0].cached == engines[1].cached


def stock_of(make: Make, num_blocks: int) -> FakeEngine:
    return make(num_blocks, scheduler=STOCK[make().asynchronous])


def trace(engine: FakeEngine) -> list[Any]:
    """One step; which blocks everybody has after it."""
    engine.step()
    manager = engine.scheduler.kv_cache_manager
    return [
        [(name, manager.get_block_ids(name)) for name in sorted(engine.scheduler.requests)],
        engine.free_ids(),
    ]


def test_sessions_without_hints_are_kept_as_long_as_sessions_usually_are_away(make: Make) -> None:
    engine = make(96)
    for number in range(20):
        text = f"warm {number}"
        engine.run(tokens(text, 3 * BLOCK), session=f"t/{text}")
        engine.clock.sleep(5)
        engine.run(tokens(text, 3 * BLOCK) + ANSWER, session=f"t/{text}")
        engine.run(tokens(text, 3 * BLOCK) + ANSWER * 2, session=f"t/{text}", final=1)
    engine.run(tokens("a", 20 * BLOCK), session="t/a")
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 1
    engine.clock.sleep(4.9)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 1
    busy(engine)
    assert engine.resident("t/a") == 20 * BLOCK
    engine.clock.sleep(0.2)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 0


# ---- without a session, beside sessions


def chat(engine: FakeEngine, number: int, blocks: int = 6) -> int:
    """A request of a chat, which begins like all of them; its cached tokens."""
    return engine.run(tokens("system", blocks * BLOCK) + tokens(f"chat {number}", 5 * BLOCK))


def sessions(engine: FakeEngine, numbers: range) -> None:
    """More of them than there is room for, all of which will be back."""
    for number in numbers:
        engine.run(tokens(f"s{number}", 12 * BLOCK), session=f"t/{number}", ttl_s=600)


def test_what_chats_have_in_common_stays_beside_sessions_that_fill_the_memory(make: Make) -> None:
    engine = make(64)
    sessions(engine, range(3))
    assert [chat(engine, number) for number in range(2)] == [0, 6 * BLOCK]
    for number in range(2, 8):
        sessions(engine, range(10 * number, 10 * number + 3))
        assert chat(engine, number) == 6 * BLOCK
    stats = engine.scheduler.keeper.stats()
    assert stats["num_prefixes"] == 1


def test_only_what_they_have_in_common_is_claimed(make: Make) -> None:
    engine = make(128)
    sessions(engine, range(1))
    first = tokens("system", 6 * BLOCK) + tokens("one", 10 * BLOCK)
    for prompt in (first, first, tokens("system", 6 * BLOCK) + tokens("two", 10 * BLOCK)):
        engine.run(prompt)
    chains = engine.scheduler.keeper.holdings.chains
    [prefix] = [chain for name, chain in chains.items() if is_prefix(name)]
    assert len(prefix.blocks) == 6


def test_a_beginning_that_nobody_repeats_any_more_goes_like_all_else(make: Make) -> None:
    engine = make(64)
    sessions(engine, range(1))
    for number in range(3):
        chat(engine, number)
        engine.clock.sleep(2)
    engine.clock.sleep(10)  # more than three times the usual gap
    sessions(engine, range(1, 8))
    assert chat(engine, 3) == 0


# ---- the rest of the scheduler


def test_retained_kv_never_keeps_a_request_from_running(make: Make) -> None:
    engine = make(64)
    for number in range(3):
        engine.run(tokens(f"s{number}", 20 * BLOCK), session=f"t/{number}", ttl_s=3600, score=1)
    assert engine.pool.get_num_free_blocks() == 63
    engine.traffic(63, 1)
    assert engine.scheduler.keeper.stats()["session_blocks"] == 0


def test_a_preempted_request_finds_its_session_again_when_it_resumes(make: Make) -> None:
    engine = make(64)
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    name = engine.submit(tokens("a", 20 * BLOCK) + ANSWER, 100, session="t/a", ttl_s=60)
    engine.step()
    engine.step()
    request = engine.scheduler.requests[name]
    assert engine.scheduler.preempt(request)
    engine.submit(tokens("big", 35 * BLOCK), 2)
    engine.drain()
    assert request.num_output_tokens == 100
    assert engine.resident("t/a") // BLOCK == (20 * BLOCK + 40 + 99) // BLOCK


def test_what_a_preempted_request_has_computed_stays_before_the_kv_of_others(make: Make) -> None:
    """Its session had nothing here before; another one has, and that is not retained."""
    engine = make(64)
    engine.run(tokens("b", 20 * BLOCK), session="t/b", ttl_s=0)
    name = engine.submit(tokens("a", 20 * BLOCK), 100, session="t/a", ttl_s=60)
    engine.step()
    engine.step()
    engine.submit(tokens("big", 45 * BLOCK - 8), 2)  # 23 blocks hold nothing
    assert engine.scheduler.preempt(engine.scheduler.requests[name])
    engine.step()
    assert engine.resident("t/b") == 0
    assert engine.resident("t/a") == (20 - 2) * BLOCK
    engine.drain()
    assert engine.resident("t/a") // BLOCK == (20 * BLOCK + 99) // BLOCK


def test_a_reset_of_the_prefix_cache_forgets_all_sessions(make: Make) -> None:
    engine = make(64)
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    assert engine.scheduler.reset_prefix_cache()
    assert engine.scheduler.keeper.stats()["num_sessions"] == 0
    assert sorted(engine.free_ids()) == list(range(1, 64))
    assert resume(engine, "a", session="t/a") == 0


def test_models_with_several_kinds_of_attention_keep_the_whole_context(make: Make) -> None:
    engine = make(128, window=4 * BLOCK)
    engine.run(tokens("a", 20 * BLOCK), session="t/a", ttl_s=60)
    ends = engine.scheduler.keeper.holdings.chains["t/a"].ends
    assert ends == sorted(ends), "the tail of each kind goes before the head of any"
    assert ends[-2:] == [20 * BLOCK] * 2
    busy(engine, blocks=25)
    assert engine.resident("t/a") == 20 * BLOCK
    assert resume(engine, "a", session="t/a") == 20 * BLOCK
