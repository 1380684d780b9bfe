"""Whose KV the free blocks of one engine hold, and in which order they go.

A session's KV is a *chain* of hashed blocks from the start of its context. Several chains may claim
one block; it is then listed under its owner, the first of them, and passes to the next one when the
owner lets it go, so that it stays for as long as the longest-kept of its sessions. Blocks are known
by number, here and in the engine's pool.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence

from saga.core.cache import FOREVER, EvictionPolicy, RetentionIndex
from saga.core.errors import InvariantError
from saga.engine.vllm.chain import Chain
from saga.engine.vllm.quota import Quotas

CLAIMS_PER_BLOCK = 8
"""Claims that are remembered, on average; beyond that the oldest chain is forgotten."""


class Holdings:
    """The chains of one engine. Free blocks that no chain claims are not its business.

    ``evicted`` is told of every chain that lost blocks to make room.
    """

    def __init__(
        self,
        num_blocks: int,
        policy: EvictionPolicy,
        *,
        tenant_share: float,
        evicted: Callable[[Chain], None],
    ) -> None:
        self.owners: list[Chain | None] = [None] * num_blocks
        """By block; None if nobody claims it."""
        self.heirs: dict[int, dict[Chain, None]] = {}
        """Who else claims a block, the next owner first."""
        self.chains: OrderedDict[str, Chain] = OrderedDict()
        """By session, the one that ran least recently first."""
        self.num_held = 0
        """Free blocks that are claimed."""
        self.num_evicted = 0
        self.index = RetentionIndex(policy, batched=True)
        self.quotas = Quotas(int(tenant_share * num_blocks), policy)
        self._max_claims = CLAIMS_PER_BLOCK * num_blocks
        self._num_claims = 0
        self._free = bytearray(num_blocks)
        """1 for free blocks that are claimed."""
        self._evicted = evicted
        self._now = 0

    # ---- sessions

    def claim(
        self, session: str, blocks: Sequence[int], ends: Sequence[int], now: int
    ) -> list[int]:
        """The session's context is in these blocks, which are in use and about to be freed.

        Returns free blocks that nobody claims any more, tails first.
        """
        self._now = now
        chain = self.chains.pop(session, None)
        if chain is None:
            chain = Chain(name=session, session=session, tokens=0, last_access=now)
            self.quotas.add(chain)
        loose = self._cut(chain, num_common(chain.blocks, blocks))
        new = blocks[len(chain.blocks) :]
        for block in new:
            if self.owners[block] is None:
                self.owners[block] = chain
                chain.owned += 1
            else:
                self.heirs.setdefault(block, {})[chain] = None
        chain.blocks += new
        self._num_claims += len(new)
        chain.ends, chain.last_access = ends, now
        self.chains[session] = chain
        while self._num_claims > self._max_claims:
            loose += self.release(next(iter(self.chains)), now)
        return loose

    def retain(
        self, session: str, until: int, score: float, now: int, *, waiting: bool = False
    ) -> None:
        """It should stay until then, at this chance of reuse; ``waiting``: until it has run."""
        chain = self.chains[session]
        chain.until, chain.p_reuse = until, score
        self.protect(chain, waiting, now)

    def protect(self, chain: Chain, waiting: bool, now: int) -> None:
        """Applies what was promised, and the quota of its tenant to that."""
        chain.retained_until = FOREVER if waiting else chain.until
        self.index.update(chain, now)
        for loser in self.quotas.excess(chain, now):
            loser.retained_until = 0
            self.index.update(loser, now)

    def release(self, session: str, now: int) -> list[int]:
        """Nobody will ask for it again. Returns its free blocks that nobody claims, tails first."""
        self._now = now
        chain = self.chains.pop(session)
        self.quotas.discard(chain)
        return self._cut(chain, 0)

    # ---- blocks

    def hold(self, blocks: Sequence[int], now: int) -> None:
        """Claimed blocks became free."""
        self._now = now
        self.num_held += len(blocks)
        free, owners = self._free, self.owners
        for block in blocks:
            free[block] = 1
        for owner, count in Counter([owners[block] for block in blocks]).items():
            assert owner is not None
            self._list(owner, count)

    def holds(self, block: int) -> bool:
        """Whether it is free and claimed."""
        return bool(self._free[block])

    def use(self, block: int) -> None:
        """A claimed block that was free is used again."""
        self._free[block] = 0
        self.num_held -= 1
        self._unlist(self._owner(block))

    def lose(self, block: int) -> list[int]:
        """A claimed block that is not free holds the session's KV no longer.

        A prefix cache can use nothing behind it. Returns free blocks that nobody claims any more.
        """
        loose = []
        for chain in self._claimants(block):
            loose += self._cut(chain, chain.blocks.index(block))
        return loose

    def reclaim(self, wanted: int, now: int) -> list[int]:
        """Gives up at least so many free blocks, in the order in which they go."""
        self._now = now
        taken: list[int] = []
        while len(taken) < wanted:
            chain = self.index.victim(now)
            if chain is None:
                raise InvariantError(f"{wanted} blocks wanted, {self.num_held} held")
            assert isinstance(chain, Chain)
            whole = self.index.policy.whole_entry
            taken += self._take(chain, chain.tokens if whole else wanted - len(taken))
            self._evicted(chain)
            if not chain.blocks:
                self.release(chain.name, now)
        self.num_evicted += len(taken)
        return taken

    def in_order(self) -> Iterator[int]:
        """Free blocks, about in the order in which they go: those of retained chains last."""
        for chain in self.index:
            assert isinstance(chain, Chain)
            for block in reversed(chain.blocks):
                if self._free[block] and self.owners[block] is chain:
                    yield block

    def check(self, free: Callable[[int], bool]) -> None:
        """Each claimed free block is listed once, under its owner. Raises InvariantError."""
        claims: Counter[int] = Counter()
        for chain in self.chains.values():
            claims.update(chain.blocks)
            owned = [block for block in chain.blocks if self.owners[block] is chain]
            listed = sum(self._free[block] for block in owned)
            if (chain.owned, chain.tokens) != (len(owned), listed):
                raise InvariantError(f"session {chain.name!r} does not know what it has")
            if (listed > 0) != (chain in self.index):
                raise InvariantError(f"session {chain.name!r} is misfiled")
        for block, owner in enumerate(self.owners):
            if claims[block] != (owner is not None) + len(self.heirs.get(block, ())):
                raise InvariantError(f"block {block} is claimed by {claims[block]} chains")
            if bool(self._free[block]) != (owner is not None and free(block)):
                raise InvariantError(f"block {block} is free or not, and known as the contrary")
        if (self.num_held, self._num_claims) != (sum(self._free), claims.total()):
            raise InvariantError(f"{self.num_held} held, {self._num_claims} claims: miscounted")

    # ---- inside

    def _owner(self, block: int) -> Chain:
        owner = self.owners[block]
        assert owner is not None
        return owner

    def _claimants(self, block: int) -> list[Chain]:
        return [self._owner(block), *self.heirs.get(block, ())]

    def _take(self, chain: Chain, most: int) -> list[int]:
        """Free blocks from its tail, at most so many. What others claim too passes to them."""
        taken: list[int] = []
        owners, heirs, free, blocks = self.owners, self.heirs, self._free, chain.blocks
        while blocks and len(taken) < most:  # the usual case, kept short: all are its own
            block = blocks[-1]
            if not free[block] or block in heirs:
                break
            taken.append(blocks.pop())
            owners[block] = None
            free[block] = 0
        chain.owned -= len(taken)
        self.num_held -= len(taken)
        self._num_claims -= len(taken)
        self._unlist(chain, len(taken))
        while chain.tokens and len(taken) < most:
            block = blocks.pop()
            if self._unclaim(block, chain):
                taken.append(block)
        return taken

    def _cut(self, chain: Chain, keep: int) -> list[int]:
        """Gives up all but the first blocks; returns those that are free and unclaimed by now."""
        loose = []
        while len(chain.blocks) > keep:
            block = chain.blocks.pop()
            if self._unclaim(block, chain):
                loose.append(block)
        return loose

    def _unclaim(self, block: int, chain: Chain) -> bool:
        """Whether the block is free and nobody else claims it."""
        self._num_claims -= 1
        if self.owners[block] is not chain:
            self._disinherit(block, chain)
            return False
        free = self._free[block]
        heir = self.owners[block] = next(iter(self.heirs.get(block, ())), None)
        chain.owned -= 1
        if free:
            self._unlist(chain)
        if heir is None:
            self._free[block] = 0
            self.num_held -= free
            return bool(free)
        self._disinherit(block, heir)
        heir.owned += 1
        if free:
            self._list(heir)
        return False

    def _disinherit(self, block: int, chain: Chain) -> None:
        heirs = self.heirs[block]
        del heirs[chain]
        if not heirs:
            del self.heirs[block]

    def _list(self, chain: Chain, count: int = 1) -> None:
        if not chain.tokens:
            self.index.add(chain, self._now)
        chain.tokens += count

    def _unlist(self, chain: Chain, count: int = 1) -> None:
        chain.tokens -= count
        if not chain.tokens:
            self.index.discard(chain)


def num_common(old: Sequence[int], new: Sequence[int]) -> int:
    """How many leading blocks are the same."""
    for number, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            return number
    return min(len(old), len(new))
