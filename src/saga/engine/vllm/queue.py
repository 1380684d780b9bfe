"""vLLM's queue of free blocks, with an order of its own for blocks that sessions left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vllm.v1.core.kv_cache_utils import FreeKVCacheBlockQueue, KVCacheBlock

from saga.clock import Clock
from saga.engine.vllm.holdings import Holdings


class RetainingFreeQueue(FreeKVCacheBlockQueue):
    """Free blocks: first those that no session claims, exactly as in vLLM's own queue, then those
    of sessions, in the order of ``holdings``.

    All of them count as free, so that whatever is retained can neither keep a request from being
    admitted nor starve a running one. A free block is in vLLM's linked list if nobody claims it,
    else in ``holdings``. Takes over the list of ``plain``, which must not be used any more.
    """

    def __init__(
        self,
        plain: FreeKVCacheBlockQueue,
        blocks: Sequence[KVCacheBlock],
        holdings: Holdings,
        clock: Clock,
    ) -> None:
        # Not initialised by vLLM: that would link all blocks anew.
        self.num_free_blocks = plain.num_free_blocks
        self.fake_free_list_head = plain.fake_free_list_head
        self.fake_free_list_tail = plain.fake_free_list_tail
        self._blocks = blocks
        self._holdings = holdings
        self._owners = holdings.owners
        self._clock = clock
        self._first: set[int] = set()

    # ---- vLLM's interface

    def popleft(self) -> KVCacheBlock:
        if self.num_free_blocks == self._holdings.num_held > 0:
            return self.popleft_n(1)[0]
        return super().popleft()

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        num_plain = self.num_free_blocks - self._holdings.num_held
        if n <= num_plain:
            popped: list[KVCacheBlock] = super().popleft_n(n)
            return popped
        assert n <= self.num_free_blocks
        popped = super().popleft_n(num_plain)
        missing = n - num_plain
        taken = self._holdings.reclaim(missing, self._clock.now_us())
        self.add_loose(taken[missing:])  # a policy can take more than is wanted
        self.num_free_blocks -= missing
        popped += [self._blocks[number] for number in taken[:missing]]
        return popped

    def remove(self, block: KVCacheBlock) -> None:
        if self._owners[block.block_id] is not None:
            self._holdings.use(block.block_id)
            self.num_free_blocks -= 1
        else:
            super().remove(block)

    def append(self, block: KVCacheBlock) -> None:
        self.append_n([block])

    def append_n(self, blocks: list[KVCacheBlock]) -> None:
        owners, freed = self._owners, blocks
        if self._holdings.chains:
            held = [block.block_id for block in blocks if owners[block.block_id] is not None]
            if held:
                self._holdings.hold(held, self._clock.now_us())
                self.num_free_blocks += len(held)
                blocks = [block for block in blocks if owners[block.block_id] is None]
        if self._first:
            super().prepend_n([block for block in blocks if block.block_id in self._first])
            blocks = [block for block in blocks if block.block_id not in self._first]
            self._first.difference_update(block.block_id for block in freed)
        super().append_n(blocks)

    def prepend_n(self, blocks: list[KVCacheBlock]) -> None:
        """Blocks without a hash: whatever they held of a session is gone."""
        if self._first:
            self._first.difference_update(block.block_id for block in blocks)
        if self._holdings.chains:
            for block in blocks:
                if self._owners[block.block_id] is not None:
                    self.add_loose(self._holdings.lose(block.block_id))
        super().prepend_n(blocks)

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        return list(self.iter_blocks_after(None))

    def iter_blocks_after(self, cursor: KVCacheBlock | None) -> Iterator[KVCacheBlock]:
        """Held blocks come in about the order in which they would go."""
        held = (self._blocks[number] for number in self._holdings.in_order())
        if cursor is None or self._owners[cursor.block_id] is None:
            yield from super().iter_blocks_after(cursor)
        else:
            for block in held:
                if block is cursor:
                    break
        yield from held

    # ---- what became of sessions

    def add_loose(self, numbers: Sequence[int], *, first: bool = False) -> None:
        """Free blocks that sessions gave up: they go last of the plain ones, or first of all."""
        if numbers:
            blocks = [self._blocks[number] for number in numbers]
            self.num_free_blocks -= len(blocks)  # which is counted up again
            if first:
                super().prepend_n(blocks)
            else:
                super().append_n(blocks)

    def go_first(self, numbers: Iterable[int]) -> None:
        """These blocks go before all others once they are free, unless a session claims them."""
        self._first.update(numbers)
