"""The host tier, on vLLM's real offloading connector: what is copied, what goes, what comes back.

Every request of these tests reads its KV from memory, and the device compares it with its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import vllm
from packaging.version import Version
from tests.e2e.plugin.engine import BLOCK, STOCK, FakeEngine, tokens

if Version(vllm.__version__) < Version("0.32"):
    pytest.skip("vLLM takes cache policies from 0.32 on", allow_module_level=True)

HOST = {"spec_name": "HostTierSpec", "spec_module_path": "saga.engine.vllm.offload"}
SHARED = HOST | {"spec_name": "SharedTierSpec"}
SLOT_BYTES = 4_096
"""A block here has 512 bytes, and slots are whole pages."""
ANSWER = tokens("what the tool said", 40)
EAGER = {"offload_min_gap_s": 0, "offload_min_pressure": 0, "preset": "saga"}

Make = Callable[..., FakeEngine]


@pytest.fixture
def make() -> Iterator[Make]:
    engines: list[FakeEngine] = []

    def build(
        num_blocks: int = 64, slots: int = 256, *, saga: Any = EAGER, **more: Any
    ) -> FakeEngine:
        offload = {**HOST, "cpu_bytes_to_use": slots * SLOT_BYTES, **more.pop("offload", {})}
        engines.append(FakeEngine(num_blocks, offload=offload, additional={"saga": saga}, **more))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def tier(engine: FakeEngine) -> Any:
    return engine.scheduler.keeper.host


def copied(engine: FakeEngine, session: str) -> int:
    """Blocks of a session that have a copy."""
    number: int = tier(engine).resident(session)
    return number


def crowd_out(engine: FakeEngine) -> None:
    """Nothing stays on the device."""
    engine.traffic(engine.pool.get_num_free_blocks(), 99)


# ---- copies


def test_what_was_crowded_out_comes_back_as_it_was(make: Make) -> None:
    engine = make()
    engine.run(tokens("a", 20 * BLOCK + 3), session="t/a", ttl_s=60)
    crowd_out(engine)
    assert engine.resident("t/a") == 0
    assert copied(engine, "t/a") == 20
    assert engine.run(tokens("a", 20 * BLOCK + 3) + ANSWER, session="t/a") == 20 * BLOCK


@pytest.mark.parametrize(
    ("hints", "blocks"),
    [
        ({"return_s": 30}, 20),
        ({"return_s": 0.5}, 0),
        ({"ttl_s": 0}, 0),
        ({"final": 1}, 0),
        ({}, 20),
    ],
    ids=["a long gap", "a short gap", "over", "final", "who knows"],
)
def test_only_what_will_be_wanted_later_is_copied(
    make: Make, hints: dict[str, Any], blocks: int
) -> None:
    engine = make(saga={"offload_min_gap_s": 1, "offload_min_pressure": 0})
    engine.run(tokens("a", 20 * BLOCK + 3), session="t/a", **hints)
    engine.traffic(1, 0)  # the end of a request is told in the next step
    assert copied(engine, "t/a") == blocks
    assert tier(engine).stats()["host_stored"] == blocks, "nothing without a session"


def test_nothing_is_copied_while_there_is_room(make: Make) -> None:
    engine = make(saga={"offload_min_gap_s": 0, "offload_min_pressure": 0.5})
    engine.run(tokens("a", 20 * BLOCK + 3), session="t/a", ttl_s=60)
    engine.run(tokens("b", 20 * BLOCK + 3), session="t/b", ttl_s=60)
    engine.traffic(1, 0)
    assert [copied(engine, name) for name in ("t/a", "t/b")] == [0, 20]
    assert tier(engine).stats()["host_skipped"] >= 20


def test_gaps_are_learned_where_nothing_is_said(make: Make) -> None:
    engine = make(128, saga={"offload_min_gap_s": 1, "offload_min_pressure": 0})
    for number in range(12):
        engine.run(tokens(f"s{number}", 3 * BLOCK), session=f"t/{number}")
        engine.clock.sleep(0.2)
        engine.run(tokens(f"s{number}", 3 * BLOCK) + ANSWER, session=f"t/{number}")
    engine.run(tokens("a", 20 * BLOCK + 3), session="t/a")
    engine.traffic(1, 0)
    assert copied(engine, "t/a") == 0


# ---- what goes


def fill(engine: FakeEngine, names: str, **hints: Any) -> None:
    for name in names:
        engine.run(tokens(name, 9 * BLOCK + 3), session=f"t/{name}", ttl_s=60, **hints)
    engine.traffic(1, 0)


def test_copies_go_by_score_and_from_the_tail(make: Make) -> None:
    engine = make(slots=30)
    for number, name in enumerate("abc"):
        engine.run(tokens(name, 9 * BLOCK + 3), session=f"t/{name}", ttl_s=60, score=number / 3)
    fill(engine, "d", score=1)
    assert [copied(engine, f"t/{name}") for name in "abcd"] == [3, 9, 9, 9]
    fill(engine, "e", score=1)
    assert [copied(engine, f"t/{name}") for name in "abcde"] == [0, 3, 9, 9, 9]


def test_copies_of_sessions_that_are_over_go_first(make: Make) -> None:
    engine = make(slots=30)
    fill(engine, "abc", score=1)
    engine.run(tokens("b", 9 * BLOCK + 3) + ANSWER, session="t/b", final=1)
    fill(engine, "d", score=0)
    assert [copied(engine, f"t/{name}") for name in "acd"] == [9, 9, 9]


def test_what_is_said_of_a_session_counts_when_only_copies_are_left(make: Make) -> None:
    engine = make(slots=30)
    fill(engine, "abc", score=0.5)
    crowd_out(engine)
    keeper = engine.scheduler.keeper
    assert keeper.resident("t/a") == keeper.resident("t/b") == 0
    keeper.retain("t/b", 0, 0.0)
    keeper.extend("t/a", 600)
    keeper.extend("t/c", 600)
    engine.clock.sleep(100)
    fill(engine, "d", score=1)
    assert [copied(engine, f"t/{name}") for name in "abcd"] == [9, 3, 9, 9]
    keeper.release("t/a")
    fill(engine, "e", score=0)
    assert [copied(engine, f"t/{name}") for name in "bcde"] == [3, 9, 9, 9]


def test_a_context_of_which_only_the_tail_was_read_back_is_kept_whole(make: Make) -> None:
    engine = make(slots=60)
    engine.run(tokens("a", 30 * BLOCK + 3), session="t/a", ttl_s=60)
    engine.traffic(45, 0)  # the head stays on the device
    assert 0 < engine.resident("t/a") < 30 * BLOCK
    assert engine.run(tokens("a", 30 * BLOCK + 3) + ANSWER, session="t/a", ttl_s=60) == 30 * BLOCK
    engine.traffic(1, 0)
    assert copied(engine, "t/a") == (30 * BLOCK + 3 + len(ANSWER)) // BLOCK


def test_kv_is_brought_back_before_its_session_returns(make: Make) -> None:
    engine = make(96)
    context = tokens("a", 20 * BLOCK + 3)
    engine.run(context, session="t/a", ttl_s=1)
    engine.clock.sleep(10)
    crowd_out(engine)
    away = engine.scheduler.keeper.habits.usual_gap_s()
    assert engine.run(context, session="t/a", prefetch=1, ttl_s=5, return_s=0) == 20 * BLOCK
    assert engine.scheduler.keeper.habits.usual_gap_s() == away, "it did not return"
    engine.traffic(70, 1)
    assert engine.resident("t/a") == 20 * BLOCK
    engine.clock.sleep(4)
    assert engine.scheduler.keeper.stats()["num_sessions_retained"] == 1
    engine.run(context + ANSWER, session="t/a")
    assert engine.scheduler.keeper.habits.usual_gap_s() == 14


def test_a_reset_forgets_the_copies(make: Make) -> None:
    engine = make()
    engine.run(tokens("a", 20 * BLOCK + 3), session="t/a", ttl_s=60)
    engine.traffic(1, 0)
    assert engine.scheduler.reset_prefix_cache(reset_connector=True)
    assert copied(engine, "t/a") == 0
    assert engine.run(tokens("a", 20 * BLOCK + 3), session="t/a", ttl_s=60) == 0
    engine.traffic(1, 0)
    assert copied(engine, "t/a") == 20


# ---- laws


@pytest.mark.parametrize("per_chunk", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_requests_read_their_own_tokens(
    make: Make, seed: int, per_chunk: int
) -> None:
    """With shared prefixes, preemptions, aborts and a tier that is too small for all."""
    chance = Random(seed)
    engine = make(80, slots=60, offload={"blocks_per_chunk": per_chunk}, policy="priority")
    heads = [tokens(f"prefix {number}", 4 * BLOCK) for number in range(3)]
    prompts = {f"t/{n}": heads[n % 3] + tokens(f"{n}", 50) for n in range(9)}
    policy = engine.scheduler.connector.connector_scheduler.manager.session_policy
    for _ in range(120):
        session = chance.choice(list(prompts))
        prompt = prompts[session] = prompts[session] + tokens(str(chance.random()), 30)
        if len(prompt) > 20 * BLOCK:
            prompts[session] = prompt[: 6 * BLOCK]
        name = engine.submit(
            prompt,
            chance.randrange(1, 30),
            session=session,
            ttl_s=chance.choice([0, 1, 60]),
            score=chance.random(),
            priority=chance.randrange(3),
        )
        for _ in range(chance.randrange(8)):
            engine.step()
        if chance.random() < 0.1 and name in engine.scheduler.requests:
            engine.abort(name)
        engine.clock.sleep(chance.random())
        here = {chunk.chunk_id: chunk for chunk in policy.chunks.values()}
        tier(engine).check(lambda slot, here=here: slot in here and here[slot].ref_cnt == 0)
    engine.drain()
    stats = tier(engine).stats()
    assert stats["host_stored"] > stats["host_slots"]
    assert stats["host_evicted"] > 0


def test_requests_are_not_preempted_on_demand(make: Make) -> None:
    engine = make()
    name = engine.submit(tokens("a", 20 * BLOCK + 3), 20, session="t/a")
    engine.step()
    assert not engine.scheduler.preempt(engine.scheduler.requests[name])


def test_with_a_stock_scheduler_it_is_a_tier_like_any_other(make: Make) -> None:
    engine = make(64, slots=60, scheduler=STOCK[False])
    for name in "abcd":
        engine.run(tokens(name, 20 * BLOCK + 3), session=f"t/{name}")
    engine.run(tokens("x", 60 * BLOCK + 3))
    assert [engine.run(tokens(name, 20 * BLOCK + 3)) for name in "ad"] == [0, 0]


# ---- several engines


def test_another_engine_reads_what_this_one_wrote(make: Make, tmp_path: Path) -> None:
    folder = {"secondary_tiers": [{"type": "fs", "root_dir": str(tmp_path)}], **SHARED}
    lazy = {"offload_min_gap_s": 60, "offload_min_pressure": 1}
    one, other = (make(offload=folder, saga=lazy) for _ in range(2))
    one.submit(tokens("a", 20 * BLOCK + 3), session="t/a", return_s=0)
    settle(one)
    where = [engine.scheduler.stats()["shared_tier"] for engine in (one, other)]
    assert where[0] is not None
    assert where[0] == where[1]
    name = other.submit(tokens("a", 20 * BLOCK + 3) + ANSWER, session="t/a")
    settle(other)
    assert other.cached[name] == 20 * BLOCK


def settle(engine: FakeEngine) -> None:
    """Files are written and read by threads."""
    deadline = time.monotonic() + 30
    while engine.scheduler.has_requests() and time.monotonic() < deadline:
        engine.step()
        time.sleep(0.001)


def test_engines_of_other_models_share_nothing(make: Make, tmp_path: Path) -> None:
    def named(**more: Any) -> object:
        tiers = [{"type": "fs", "root_dir": str(tmp_path / "kv")}]
        engine = make(offload={**SHARED, "secondary_tiers": tiers, **more})
        return engine.scheduler.stats()["shared_tier"]

    assert named() == named()
    assert named() != named(blocks_per_chunk=2)
    alone = make(offload={**SHARED, "secondary_tiers": []})
    assert alone.scheduler.stats()["shared_tier"] is None
