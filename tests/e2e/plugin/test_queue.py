"""The free queue under any sequence of what vLLM's block pool does, with laws and with a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.e2e.plugin.engine import HandClock
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    FreeKVCacheBlockQueue,
    KVCacheBlock,
    make_block_hash_with_group_id,
)

from saga.core.cache import EvictionPolicy
from saga.engine.vllm.holdings import Holdings
from saga.engine.vllm.queue import RetainingFreeQueue
from saga.policies.lru import Lru
from saga.policies.prefix_lru import PrefixLru
from saga.policies.wa_lru import WaLru

NUM_BLOCKS = 24
GROUP = 0
BRANCHES = st.lists(st.integers(0, 2), min_size=1, max_size=7)
"""A context is a path; two with the same beginning share the KV of it."""
SESSIONS = st.sampled_from(["t/a", "t/b", "t/c", "u/a", "u/b"])
SCORES = st.sampled_from([0.0, 0.5, 1.0])
PICK = st.integers(0, 99)


class Pool:
    """vLLM's block pool, used as vLLM's managers do."""

    def __init__(self) -> None:
        self.pool = BlockPool(NUM_BLOCKS, enable_caching=True, hash_block_size=16)

    def begin(self, path: Sequence[int], partial: bool) -> list[KVCacheBlock] | None:
        """A request's blocks, prefix hits first; None if there is no room."""
        hits: list[KVCacheBlock] = []
        for end in range(len(path)):
            hit = self.pool.get_cached_block(_hash(path[: end + 1]), [GROUP])
            if hit is None:
                break
            hits.append(hit[0])
        missing = len(path) + partial - len(hits)
        idle = sum(block.ref_cnt == 0 for block in hits)
        if missing + idle > self.pool.get_num_free_blocks():
            return None
        self.pool.touch(hits)
        new = self.pool.get_new_blocks(missing)
        for end, block in enumerate(new[: len(path) - len(hits)], len(hits) + 1):
            self.pool._insert_block_hash(_keyed(path[:end]), block, num_tokens=end * 16)
        hits.extend(new)
        return hits

    def end(self, blocks: Sequence[KVCacheBlock]) -> None:
        self.pool.free_blocks(reversed(blocks))

    def free_ids(self) -> list[int]:
        return [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()]


def _hash(path: Sequence[int]) -> BlockHash:
    return BlockHash(bytes(path))


def _keyed(path: Sequence[int]) -> Any:
    return make_block_hash_with_group_id(_hash(path), GROUP)


class QueueMachine(RuleBasedStateMachine):
    """Requests with and without sessions on a small pool. As long as no session was there, stock
    vLLM does the same beside it."""

    @initialize(
        policy=st.sampled_from([WaLru(), PrefixLru(), Lru()]),
        share=st.sampled_from([0.2, 0.5, 1.0]),
    )
    def make(self, policy: EvictionPolicy, share: float) -> None:
        self.clock = HandClock()
        self.ours, self.stock = Pool(), Pool()
        self.holdings = Holdings(NUM_BLOCKS, policy, tenant_share=share, evicted=lambda chain: None)
        self.queue = RetainingFreeQueue(
            self.ours.pool.free_block_queue, self.ours.pool.blocks, self.holdings, self.clock
        )
        self.ours.pool.free_block_queue = self.queue
        self.running: list[tuple[list[KVCacheBlock], list[KVCacheBlock] | None]] = []
        self.only_stock = True

    @rule(path=BRANCHES, partial=st.booleans())
    def begin(self, path: list[int], partial: bool) -> None:
        blocks = self.ours.begin(path, partial)
        theirs = self.stock.begin(path, partial) if self.only_stock else None
        if self.only_stock:
            assert _ids(blocks) == _ids(theirs)
        if blocks:
            self.running.append((blocks, theirs))

    @rule(pick=PICK)
    def end(self, pick: int) -> None:
        if not self.running:
            return
        self._end(*self._taken(pick))

    @rule(pick=PICK, session=SESSIONS, ttl=st.integers(0, 5), score=SCORES)
    def end_of_step(self, pick: int, session: str, ttl: int, score: float) -> None:
        if not self.running:
            return
        self.only_stock = False
        blocks, theirs = self._taken(pick)
        chain = [block.block_id for block in blocks if block.block_hash is not None]
        now = self.clock.now
        if chain:
            ends = range(16, 16 * len(chain) + 1, 16)
            self.queue.add_loose(self.holdings.claim(session, chain, ends, now))
            self.holdings.retain(session, now + ttl, score, now)
        self._end(blocks, theirs)

    @rule(path=BRANCHES, session=SESSIONS, ttl=st.integers(0, 5), score=SCORES)
    def whole_step(self, path: list[int], session: str, ttl: int, score: float) -> None:
        before = len(self.running)
        self.begin(path, True)
        if len(self.running) > before:
            self.end_of_step(before, session, ttl, score)

    @rule(pick=PICK)
    def end_of_session(self, pick: int) -> None:
        if not self.running:
            return
        self.only_stock = False
        blocks, theirs = self._taken(pick)
        own = [b.block_id for b in blocks if b.ref_cnt == 1 and b.block_hash is not None]
        self.queue.go_first(own)
        self._end(blocks, theirs)
        gone = [number for number in reversed(own) if self.holdings.owners[number] is None]
        assert self.ours.free_ids()[: len(gone)] == gone

    @rule(pick=PICK, ttl=st.integers(0, 5), score=st.floats(0, 1), waiting=st.booleans())
    def retain(self, pick: int, ttl: int, score: float, waiting: bool) -> None:
        if not self.holdings.chains:
            return
        now = self.clock.now
        self.holdings.retain(self._session(pick), now + ttl, score, now, waiting=waiting)

    @rule(pick=PICK, first=st.booleans())
    def release(self, pick: int, first: bool) -> None:
        if not self.holdings.chains:
            return
        loose = self.holdings.release(self._session(pick), self.clock.now)
        self.queue.add_loose(loose, first=first)
        assert not first or self.ours.free_ids()[: len(loose)] == loose

    @rule(pick=PICK)
    def lose_content(self, pick: int) -> None:
        """A KV transfer failed: a block in use holds nothing that others could use."""
        if not self.running:
            return
        self.only_stock = False
        blocks = self.running[pick % len(self.running)][0]
        self.ours.pool.evict_blocks({blocks[pick % len(blocks)].block_id})

    @rule(spared=st.integers(0, 12))
    def flood(self, spared: int) -> None:
        """Somebody needs nearly all that is free, and leaves nothing of use."""
        count = max(0, self.ours.pool.get_num_free_blocks() - spared)
        new = self.ours.pool.get_new_blocks(count)
        self.ours.end(new)
        if self.only_stock:
            self.stock.end(self.stock.pool.get_new_blocks(count))

    @rule(pause=st.integers(1, 4))
    def wait(self, pause: int) -> None:
        self.clock.now += pause

    @rule(pick=PICK)
    def hit(self, pick: int) -> None:
        """All that a session left behind can be used, in any state that it is in."""
        if not self.holdings.chains:
            return
        chain = self.holdings.chains[self._session(pick)]
        blocks = [self.ours.pool.blocks[number] for number in chain.blocks]
        self.ours.pool.touch(blocks)
        self.holdings.check(self._is_free)
        assert chain.tokens == 0
        self.ours.end(blocks)
        self.only_stock = False

    @invariant()
    def blocks_are_where_they_should_be(self) -> None:
        free = self.ours.free_ids()
        unused = [
            block.block_id for block in self.ours.pool.blocks if self._is_free(block.block_id)
        ]
        assert sorted(free) == unused, "each free block is in exactly one list"
        assert self.queue.num_free_blocks == len(free)
        plain = FreeKVCacheBlockQueue.get_all_free_blocks(self.queue)
        assert len(plain) + self.holdings.num_held == len(free)
        assert not any(self.holdings.owners[block.block_id] for block in plain)
        assert [block.block_id for block in self.queue.iter_blocks_after(None)] == free
        self.holdings.check(self._is_free)
        if self.only_stock:
            assert free == self.stock.free_ids()

    @invariant()
    def a_cursor_leads_through_all_free_blocks(self) -> None:
        free = self.ours.free_ids()
        for number, cursor in enumerate(free):
            after = self.queue.iter_blocks_after(self.ours.pool.blocks[cursor])
            assert [block.block_id for block in after] == free[number + 1 :]

    def _is_free(self, number: int) -> bool:
        block = self.ours.pool.blocks[number]
        return block.ref_cnt == 0 and not block.is_null

    def _session(self, pick: int) -> str:
        sessions = list(self.holdings.chains)
        return sessions[pick % len(sessions)]

    def _taken(self, pick: int) -> tuple[list[KVCacheBlock], list[KVCacheBlock] | None]:
        return self.running.pop(pick % len(self.running))

    def _end(self, blocks: list[KVCacheBlock], theirs: list[KVCacheBlock] | None) -> None:
        self.ours.end(blocks)
        if self.only_stock and theirs is not None:
            self.stock.end(theirs)


def _ids(blocks: list[KVCacheBlock] | None) -> list[int] | None:
    return None if blocks is None else [block.block_id for block in blocks]


QueueMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60)
TestQueue = QueueMachine.TestCase


class StockMachine(QueueMachine):
    """Nothing but requests without sessions: everything as in stock vLLM."""

    end_of_step = whole_step = end_of_session = retain = release = hit = None  # type: ignore[assignment]


StockMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=60)
TestStock = StockMachine.TestCase


def test_a_block_goes_first_once_and_not_ever_after() -> None:
    ours = Pool()
    holdings = Holdings(NUM_BLOCKS, WaLru(), tenant_share=1.0, evicted=lambda chain: None)
    queue = RetainingFreeQueue(ours.pool.free_block_queue, ours.pool.blocks, holdings, HandClock())
    ours.pool.free_block_queue = queue
    blocks = ours.begin([0, 1], partial=False)
    assert blocks is not None
    queue.go_first(block.block_id for block in blocks)
    ours.end(blocks)
    assert ours.free_ids()[:2] == [blocks[1].block_id, blocks[0].block_id]
    others = ours.begin([2, 2], partial=False)
    assert others is not None and {id(block) for block in others} == {id(block) for block in blocks}
    ours.end(others)
    assert ours.free_ids()[-2:] == [others[1].block_id, others[0].block_id]
