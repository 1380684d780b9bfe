"""Chains and claims without an engine: what is kept, what goes, and whose it is then."""

from __future__ import annotations

from itertools import pairwise

import pytest

from saga.core.cache import EvictionPolicy
from saga.engine.vllm.chain import Chain
from saga.engine.vllm.holdings import CLAIMS_PER_BLOCK, Holdings
from saga.engine.vllm.quota import tenant_of
from saga.policies.lru import Lru
from saga.policies.prefix_lru import PrefixLru
from saga.policies.wa_lru import WaLru

BY_SCORE = WaLru(alpha=0, gamma=0)


class Engine:
    """Blocks in use and free, as an engine has them."""

    def __init__(
        self, num_blocks: int = 100, policy: EvictionPolicy = BY_SCORE, share: float = 1.0
    ) -> None:
        self.evicted: list[tuple[str, int]] = []
        self.holdings = Holdings(
            num_blocks,
            policy,
            tenant_share=share,
            evicted=lambda chain: self.evicted.append((chain.name, chain.resident_tokens)),
        )
        self.free: set[int] = set()

    def step(
        self, session: str, blocks: range, *, until: int = 1, score: float = 1, now: int = 0
    ) -> list[int]:
        """A request of the session ran on these blocks; returns what nobody claims any more."""
        for block in blocks:
            self.touch(block)
        loose = self.holdings.claim(
            session, blocks, [10 * (n + 1) for n in range(len(blocks))], now
        )
        self.holdings.retain(session, until, score, now)
        self.holdings.hold(blocks[::-1], now)
        self.free.update(blocks)
        self.check()
        return loose

    def touch(self, block: int) -> None:
        if self.holdings.owners[block] and block in self.free:
            self.holdings.use(block)
        self.free.discard(block)

    def reclaim(self, wanted: int, now: int = 0) -> list[int]:
        taken = self.holdings.reclaim(wanted, now)
        self.free.difference_update(taken)
        self.check()
        return taken

    def chain(self, session: str) -> Chain:
        return self.holdings.chains[session]

    def check(self) -> None:
        self.holdings.check(lambda block: block in self.free)


def test_tails_go_first_and_one_session_after_the_other() -> None:
    engine = Engine()
    engine.step("a", range(5), score=0.5)
    engine.step("b", range(5, 10), score=0.1)
    assert engine.reclaim(7) == [9, 8, 7, 6, 5, 4, 3]
    assert engine.evicted == [("b", 0), ("a", 30)]
    assert list(engine.holdings.chains) == ["a"]


def test_the_order_that_is_told_beforehand_is_the_one_in_which_they_go() -> None:
    engine = Engine(policy=PrefixLru())
    for number in range(4):
        blocks = range(5 * number, 5 * number + 5)
        engine.step(f"s{number}", blocks, until=0, now=number)
    told = list(engine.holdings.in_order())
    assert engine.reclaim(20, now=9) == told


def test_a_policy_that_takes_all_or_nothing_takes_all() -> None:
    engine = Engine(policy=Lru())
    engine.step("a", range(5))
    assert engine.reclaim(1) == [4, 3, 2, 1, 0]


def test_a_shared_block_goes_with_the_last_that_claims_it() -> None:
    engine = Engine()
    engine.step("a", range(4), score=0.1)
    engine.step("b", range(6), score=0.9)
    engine.step("c", range(3), score=0.5)
    assert (engine.chain("a").tokens, engine.chain("b").tokens) == (4, 2)
    assert engine.reclaim(1) == [5], "a has nothing to give that b does not need; c neither"
    assert (engine.chain("b").tokens, engine.chain("b").resident_tokens) == (5, 50)
    assert sorted(engine.holdings.chains) == ["b", "c"], "c could still use its three"
    assert engine.reclaim(5) == [4, 3, 2, 1, 0]


def test_what_a_session_no_longer_has_is_loose() -> None:
    engine = Engine()
    engine.step("a", range(6))
    engine.step("b", range(5))
    assert engine.step("a", range(3)) == [5]
    assert engine.chain("b").tokens == 2
    assert engine.holdings.release("b", 0) == [4, 3]
    assert engine.holdings.release("a", 0) == [2, 1, 0]
    assert engine.holdings.num_held == 0
    engine.check()


def test_blocks_in_use_are_nobodys_to_give() -> None:
    engine = Engine()
    engine.step("a", range(6))
    for block in range(4):
        engine.touch(block)
    assert engine.reclaim(2) == [5, 4]
    assert engine.chain("a").resident_tokens == 40
    assert engine.holdings.release("a", 0) == []
    engine.check()


def test_a_block_that_lost_its_content_takes_all_behind_it_along() -> None:
    engine = Engine()
    engine.step("a", range(6))
    engine.step("b", range(8))
    engine.touch(3)
    engine.free.discard(3)
    assert sorted(engine.holdings.lose(3)) == [4, 5, 6, 7]
    assert [engine.chain(name).resident_tokens for name in "ab"] == [30, 30]
    engine.check()


def test_time_makes_a_retention_end() -> None:
    engine = Engine()
    engine.step("short", range(5), until=10, score=1.0)
    engine.step("long", range(5, 10), until=90, score=0.0)
    assert engine.reclaim(1, now=5) == [9]
    assert engine.reclaim(1, now=10) == [4], "a retained one gives way to one that is not"


def test_claims_are_bounded_whatever_clients_do() -> None:
    engine = Engine(num_blocks=10)
    for number in range(100):
        engine.step(f"s{number}", range(8), now=number)
    claims = sum(len(chain.blocks) for chain in engine.holdings.chains.values())
    assert claims <= CLAIMS_PER_BLOCK * 10
    assert list(engine.holdings.chains) == [f"s{number}" for number in range(90, 100)]


# ---- tenants


@pytest.mark.parametrize(
    ("session", "tenant"), [("t/a", "t"), ("t/a/b", "t"), ("a", ""), ("/a", ""), ("t/", "t")]
)
def test_the_tenant_of_a_session(session: str, tenant: str) -> None:
    assert tenant_of(session) == tenant


def protected(engine: Engine) -> list[str]:
    chains = engine.holdings.chains.values()
    return [chain.name for chain in chains if chain.retained_until > 0]


def test_a_tenant_keeps_its_best_within_its_cap() -> None:
    engine = Engine(share=0.4)
    engine.step("poor/0", range(90, 100), score=0.0)
    for number in range(6):
        engine.step(f"rich/{number}", range(10 * number, 10 * number + 10), score=number / 10)
    assert protected(engine) == ["poor/0", "rich/2", "rich/3", "rich/4", "rich/5"]


def test_a_tenant_alone_has_no_cap() -> None:
    engine = Engine(share=0.1)
    for number in range(6):
        engine.step(f"rich/{number}", range(10 * number, 10 * number + 10))
    assert len(protected(engine)) == 6


def test_shared_blocks_count_once() -> None:
    engine = Engine(share=0.4)
    engine.step("poor/0", range(90, 100))
    for number in range(6):
        engine.step(f"rich/{number}", range(35))
    assert len(protected(engine)) == 7


def test_what_was_never_protected_counts_for_nothing() -> None:
    engine = Engine(share=0.2)
    engine.step("poor/0", range(90, 100))
    for number in range(6):
        engine.step(f"rich/{number}", range(10 * number, 10 * number + 10), until=0)
    engine.step("rich/last", range(60, 70))
    assert protected(engine) == ["poor/0", "rich/last"]


def test_kv_in_use_is_not_counted() -> None:
    engine = Engine(share=0.2)
    engine.step("poor/0", range(90, 100))
    engine.step("rich/running", range(15))
    for block in range(15):
        engine.touch(block)
    engine.step("rich/idle", range(20, 35))
    assert protected(engine) == ["poor/0", "rich/running", "rich/idle"]


def test_no_tenant_ever_has_more_than_its_cap() -> None:
    engine = Engine(num_blocks=1_000, share=0.25)
    engine.step("poor/0", range(900, 1_000))
    sizes = []
    for number in range(80):
        engine.step(f"rich/{number}", range(10 * number, 10 * number + 10), score=number % 7 / 7)
        rich = [chain for chain in engine.holdings.chains.values() if chain.name[0] == "r"]
        sizes.append(sum(chain.owned for chain in rich if chain.retained_until > 0))
    assert max(sizes) <= 250
    assert all(after >= before - 20 for before, after in pairwise(sizes)), "a little at a time"
