"""KV memory against a naive model that knows every block by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.sim.factory import step

from saga.core.cache import FOREVER, EvictionPolicy
from saga.core.errors import InvariantError
from saga.policies.belady import Belady
from saga.policies.lru import Lru
from saga.policies.prefix_lru import PrefixLru
from saga.policies.wa_lru import WaLru
from saga.sim.kv_cache import KVCache, Segment
from saga.sim.lineage import ENDLESS, Content, Lineage, Span

SIZE = 16


def session(name: str, prefix: Content | None = None, prefix_tokens: int = 0) -> Lineage:
    lineage = Lineage(hash(name), name, SIZE)
    lineage.begin(prefix, prefix_tokens)
    return lineage


def use(cache: KVCache, path: Sequence[Span], blocks: int, now: int, *, hit: int = 0) -> None:
    """A request comes, fills ``blocks`` whole blocks and leaves."""
    cache.pin(path, hit, now)
    cache.grow(path, blocks, now)
    cache.unpin(path, blocks, now)


# ---- by hand


def test_tail_goes_first_and_the_oldest_session_before_others() -> None:
    cache, a, b = KVCache(10, PrefixLru()), session("a"), session("b")
    use(cache, a.path, 5, 1)
    use(cache, b.path, 5, 2)
    cache.evict(2, 3)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (3, 5)
    cache.evict(4, 4)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (0, 4)
    assert cache.counts.evicted_blocks == 6
    assert cache.counts.num_evictions == 1, "of the two victims, one was used up"
    assert cache.shrunk == {"a": 0}


def test_a_policy_of_whole_entries_takes_the_whole_session() -> None:
    cache, a, b = KVCache(10, Lru()), session("a"), session("b")
    use(cache, a.path, 5, 1)
    use(cache, b.path, 5, 2)
    cache.evict(1, 3)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (0, 5)


def test_a_shared_prefix_outlives_its_branches() -> None:
    prefix = Content(0, None, None)
    a, b = session("a", prefix, 4 * SIZE), session("b", prefix, 4 * SIZE)
    cache = KVCache(10, PrefixLru())
    use(cache, a.path, 6, 1)
    use(cache, b.path, 6, 2, hit=4)
    assert cache.resident == 8, "the prefix is held once"
    cache.evict(3, 3)  # a's two blocks, then one of b's
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (4, 5)
    cache.evict(2, 3)  # b's other block, and only now the prefix
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (3, 3)


def test_kv_in_use_is_never_evicted() -> None:
    cache, a, b = KVCache(10, PrefixLru()), session("a"), session("b")
    use(cache, a.path, 4, 1)
    cache.pin(b.path, 0, 2)
    cache.grow(b.path, 6, 2)
    assert cache.available == 4
    with pytest.raises(InvariantError, match="law 5"):
        cache.evict(5, 3)
    assert cache.hit(b.path, 9) == 6


def test_the_last_block_counts_only_if_it_is_whole() -> None:
    cache, a = KVCache(10, PrefixLru()), session("a")
    cache.pin(a.path, 0, 1)
    cache.grow(a.path, 5, 1)
    cache.unpin(a.path, 4, 1)  # 4 whole blocks and a begun one
    assert cache.hit(a.path, 9) == 4
    assert cache.free == 6


def test_a_begun_block_does_not_count_while_a_fork_runs_either() -> None:
    cache, parent = KVCache(10, PrefixLru()), session("parent")
    parent.advance(step(0, 70, 10))
    child = Lineage(2, "child", SIZE)
    child.fork(parent, 2 * SIZE)
    cache.pin(parent.path, 0, 1)
    cache.grow(parent.path, 5, 1)
    cache.pin(child.path, 2, 2)
    cache.grow(child.path, 3, 2)
    cache.unpin(parent.path, 4, 3)
    assert cache.hit(parent.path, 9) == 4
    assert cache.hit(child.path, 9) == 3
    cache.check()


def test_a_begun_block_of_a_shared_prefix_does_not_count() -> None:
    prefix = Content(0, None, None)
    a, b = session("a", prefix, 8 * SIZE), session("b", prefix, 8 * SIZE)
    cache = KVCache(20, PrefixLru())
    cache.pin(a.path, 0, 1)
    cache.grow(a.path, 5, 1)
    cache.unpin(a.path, 4, 2)  # taken away amid its fifth block
    assert cache.hit(b.path, 9) == 4
    cache.pin(b.path, 4, 3)
    cache.grow(b.path, 8, 3)
    cache.pin(a.path, 8, 4)  # b's whole blocks stay, however far a gets
    cache.unpin(b.path, 8, 5)
    cache.unpin(a.path, 8, 6)
    assert cache.hit(a.path, 9) == 8
    cache.check()


def test_released_goes_first_retained_last() -> None:
    cache = KVCache(12, PrefixLru())
    names = ["forever", "retained", "longer", "oldest", "newest", "released"]
    lineages = {name: session(name) for name in names}
    for at, name in enumerate(names):
        use(cache, lineages[name].path, 2, at)
    cache.retain("forever", FOREVER, 1.0, 10)
    cache.retain("longer", 100, 1.0, 10)
    cache.retain("retained", 50, 1.0, 10)
    cache.release("released", 10)
    gone: list[str] = []
    for _ in names:
        cache.evict(2, 20)
        gone += [
            name for name in names if name not in gone and cache.hit(lineages[name].path, 9) == 0
        ]
    assert gone == ["released", "oldest", "newest", "retained", "longer", "forever"]


def test_a_session_with_only_the_declared_prefix_left_has_nothing() -> None:
    """The prefix is on every engine: it makes no engine a session's home."""
    prefix = Content(0, None, None)
    a = session("a", prefix, 4 * SIZE)
    cache = KVCache(10, PrefixLru())
    use(cache, a.path, 6, 1)
    cache.evict(2, 2)
    assert cache.hit(a.path, 9) == 4
    assert cache.shrunk == {"a": 0}


def test_a_prefetch_does_not_end_a_retention() -> None:
    cache, a, b = KVCache(4, PrefixLru()), session("a"), session("b")
    use(cache, a.path, 2, 1)
    use(cache, b.path, 2, 2)
    cache.retain("a", 100, 1.0, 3)
    cache.pin(a.path, 2, 4, returned=False)
    cache.unpin(a.path, 2, 5)
    cache.evict(1, 6)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (2, 1)


def test_a_retention_that_is_over_protects_no_more() -> None:
    cache, a, b = KVCache(4, PrefixLru()), session("a"), session("b")
    use(cache, a.path, 2, 1)
    use(cache, b.path, 2, 2)
    cache.retain("a", 50, 1.0, 3)
    cache.evict(1, 49)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (2, 1)
    use(cache, b.path, 2, 49, hit=1)
    cache.evict(1, 50)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (1, 2)


def test_running_again_ends_retention_and_release() -> None:
    cache, a, b = KVCache(4, PrefixLru()), session("a"), session("b")
    use(cache, a.path, 2, 1)
    cache.retain("a", FOREVER, 1.0, 1)
    use(cache, a.path, 2, 2, hit=2)
    use(cache, b.path, 2, 3)
    cache.release("b", 4)
    use(cache, b.path, 2, 5, hit=2)
    cache.evict(1, 6)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (1, 2)


def test_drop_frees_only_what_is_idle_and_its_own() -> None:
    prefix = Content(0, None, None)
    parent = session("parent", prefix, 2 * SIZE)
    parent.advance(step(2 * SIZE, 100, 10))
    child = Lineage(2, "child", SIZE)
    child.fork(parent, 5 * SIZE)
    cache = KVCache(20, PrefixLru())
    use(cache, parent.path, 8, 1)
    cache.pin(child.path, 5, 2)
    cache.grow(child.path, 7, 2)
    cache.drop("parent", 3)
    assert cache.hit(parent.path, 20) == 5
    cache.unpin(child.path, 7, 4)
    cache.drop("parent", 5)
    assert cache.hit(parent.path, 20) == 5, "the child's KV stands on it"
    cache.drop("child", 6)
    cache.drop("parent", 7)
    assert cache.hit(parent.path, 20) == 2, "the prefix is nobody's own"
    cache.check()


def test_host_memory_keeps_the_most_recently_stored() -> None:
    cache = KVCache(10, PrefixLru(), host_capacity=5)
    a, b = session("a"), session("b")
    for at, lineage in enumerate((a, b)):
        cache.pin(lineage.path, 0, at)
        cache.grow(lineage.path, 3, at)
        cache.store(lineage.path, 3)
        cache.unpin(lineage.path, 3, at)
    assert cache.host_resident == 5
    cache.evict(6, 5)
    assert (cache.hit(a.path, 9), cache.hit(b.path, 9)) == (0, 0)
    assert (cache.host_hit(a.path, 9), cache.host_hit(b.path, 9)) == (2, 3)
    cache.release("b", 6)
    assert cache.host_hit(b.path, 9) == 0
    assert cache.host_resident == 2


def test_occupancy_by_hand() -> None:
    """10 us running with 4 blocks; 20 us waiting, of which two blocks for 5 us are dead."""
    cache, a = KVCache(10, PrefixLru()), session("a")
    a.advance(step(0, 50, 14))
    cache.pin(a.path, 0, 0)
    cache.grow(a.path, 4, 0)
    cache.unpin(a.path, 4, 10)
    a.advance(step(2 * SIZE, 1, 1))  # the second half is not asked for any more
    cache.liveness_changed(a.changed, 25)
    cache.pin(a.path, 2, 30)
    occupancy = cache.settle(30)
    assert (occupancy.active, occupancy.waiting, occupancy.dead) == (40, 4 * 15 + 2 * 5, 2 * 5)
    assert occupancy.later_hit == 2 * 20


def test_waits_that_began_before_the_window_count_from_its_start() -> None:
    cache, a = KVCache(10, PrefixLru()), session("a")
    use(cache, a.path, 4, 0)
    cache.reset_occupancy(90)
    cache.pin(a.path, 4, 100)
    occupancy = cache.settle(100)
    assert (occupancy.waiting, occupancy.later_hit) == (40, 40)


# ---- vLLM's free queue, block by block


class FreeQueue:
    """vLLM's prefix cache with one request at a time, every block by itself.

    Idle blocks lie in a queue; a request takes those it hits out of it, takes what it lacks from
    the front and, when it ends, appends its blocks last block first. Three things differ from real
    vLLM and from requests that overlap: a block that is not whole is handed back to the *front* of
    the queue (vLLM: to its end; one block per request); a whole prompt that is resident and is
    recomputed in its last block keeps one copy of it (vLLM: two until one is evicted); and if
    sessions fork amid each other's blocks, the simulator's blocks behind the fork are as recent as
    those before it.
    """

    def __init__(self, capacity: int) -> None:
        self.free = capacity
        self.queue: list[tuple[str, int]] = []
        """Cached idle blocks, next victim first."""

    def request(self, blocks: Sequence[tuple[str, int]], limit: int, whole: int) -> int:
        """Uses ``blocks``, the first ``whole`` of them whole; how many of ``limit`` were hit."""
        hit = 0
        while hit < limit and blocks[hit] in self.queue:
            hit += 1
        held = [block for block in blocks if block in self.queue]
        self.queue = [block for block in self.queue if block not in held]
        for _ in range(len(blocks) - len(held)):
            if self.free:
                self.free -= 1
            else:
                self.queue.pop(0)
        self.queue += reversed(blocks[:whole])
        self.free += len(blocks) - whole
        return hit


@settings(max_examples=200)
@given(
    capacity=st.integers(30, 60),
    prefix_tokens=st.sampled_from([0, 40, 64]),
    turns=st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 90), st.integers(1, 40)), max_size=30
    ),
)
def test_prefix_lru_hits_what_vllms_free_queue_hits(
    capacity: int, prefix_tokens: int, turns: list[tuple[int, int, int]]
) -> None:
    cache, queue = KVCache(capacity, PrefixLru()), FreeQueue(capacity)
    prefix = Content(0, None, None)
    shared = prefix_tokens // SIZE
    sessions = [session(f"s{number}", prefix, prefix_tokens) for number in range(5)]
    for now, (number, new, output) in enumerate(turns, start=1):
        lineage = sessions[number]
        prompt = lineage.context_tokens + new
        computed = prompt + output - 1
        if computed > capacity * SIZE:
            continue
        path = lineage.advance(step(lineage.context_tokens, new, output))
        limit, whole, blocks = (prompt - 1) // SIZE, computed // SIZE, -(-computed // SIZE)
        names = [("prefix" if block < shared else f"s{number}", block) for block in range(blocks)]
        hit = cache.hit(path, limit)
        cache.pin(path, hit, now)
        cache.grow(path, blocks, now)
        cache.unpin(path, whole, now)
        cache.check()
        assert hit == queue.request(names, limit, whole)
        assert cache.free == queue.free


# ---- anything in any order


@dataclass
class User:
    """A running request."""

    session: int
    path: tuple[Span, ...]
    blocks: int
    """Those it has been given."""
    most: int
    """Those it will need."""


Place = tuple[Content, int]


def places(path: Sequence[Span], blocks: int) -> list[Place]:
    """The path's first blocks, one by one."""
    return [
        (span.content, block)
        for span in path
        for block in range(span.content.start, min(span.end, blocks))
    ]


class CacheMachine(RuleBasedStateMachine):
    """Requests of sessions with shared prefixes, forks and cuts come and go in any order."""

    CAPACITY = 24

    @initialize(
        policy=st.sampled_from([PrefixLru(), Lru(), WaLru(), Belady()]),
        host=st.sampled_from([0, 10]),
    )
    def begin(self, policy: EvictionPolicy, host: int) -> None:
        self.now = 0
        self.cache = KVCache(self.CAPACITY, policy, host_capacity=host)
        self.prefix = Content(0, None, None)
        self.sessions: list[Lineage] = []
        self.closed: set[int] = set()
        self.users: list[User] = []
        self.whole: set[Place] = set()
        """Blocks that were once computed to their end."""
        self.block_us = 0
        self.open_session(40)

    def numbers(self, *, idle: bool = True) -> list[int]:
        busy = {user.session for user in self.users} if idle else set()
        return [n for n in range(len(self.sessions)) if n not in self.closed and n not in busy]

    @rule(prefix_tokens=st.sampled_from([0, 40]))
    def open_session(self, prefix_tokens: int) -> None:
        lineage = Lineage(len(self.sessions), f"s{len(self.sessions)}", SIZE)
        lineage.begin(self.prefix, prefix_tokens)
        self.sessions.append(lineage)

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parents = [n for n in self.numbers() if self.sessions[n].context_tokens]
        if not parents:
            return
        parent = self.sessions[data.draw(st.sampled_from(parents))]
        lineage = Lineage(len(self.sessions), f"s{len(self.sessions)}", SIZE)
        lineage.fork(parent, data.draw(st.integers(1, parent.context_tokens)))
        self.sessions.append(lineage)

    @rule(data=st.data(), new=st.integers(1, 70), output=st.integers(1, 40), cut=st.booleans())
    def start(self, data: st.DataObject, new: int, output: int, cut: bool) -> None:
        numbers = self.numbers()
        if not numbers:
            return
        number = data.draw(st.sampled_from(numbers))
        lineage = self.sessions[number]
        kept = lineage.context_tokens
        if cut or kept + new + output > self.CAPACITY * SIZE:
            kept = data.draw(st.integers(0, min(kept, 100)))
        path = lineage.advance(step(kept, new, output))
        self.pass_on(lineage)
        hit = self.cache.hit(path, (kept + new - 1) // SIZE)
        computed = self.whole.union(*(places(user.path, user.blocks) for user in self.users))
        assert computed.issuperset(places(path, hit)), "a hit on a block that was never whole"
        first = min(-(-(kept + new) // SIZE), hit + data.draw(st.integers(1, 8)))
        if first - hit + self.cache.idle_in(path, hit) <= self.cache.available:
            self.cache.pin(path, hit, self.now)
            self.cache.grow(path, first, self.now)
            self.users.append(User(number, path, first, -(-(kept + new + output) // SIZE)))

    @precondition(lambda self: self.users)
    @rule(data=st.data(), more=st.integers(1, 8))
    def grow(self, data: st.DataObject, more: int) -> None:
        user = data.draw(st.sampled_from(self.users))
        end = min(user.blocks + more, user.most)
        if end - user.blocks <= self.cache.available:
            self.cache.grow(user.path, end, self.now)
            user.blocks = end

    @precondition(lambda self: self.users)
    @rule(data=st.data(), begun=st.booleans(), gap=st.sampled_from([5, 50, FOREVER]))
    def leave(self, data: st.DataObject, begun: bool, gap: int) -> None:
        """Also a cancellation or a preemption; ``begun``: amid its last block."""
        user = data.draw(st.sampled_from(self.users))
        self.users.remove(user)
        full = user.blocks - begun
        self.whole |= set(places(user.path, full))
        self.cache.store(user.path, full)
        self.cache.unpin(user.path, full, self.now, self.now + gap)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if numbers := self.numbers():
            number = data.draw(st.sampled_from(numbers))
            self.sessions[number].end()
            self.closed.add(number)
            self.pass_on(self.sessions[number])

    def pass_on(self, lineage: Lineage) -> None:
        self.cache.liveness_changed(lineage.changed, self.now)
        lineage.changed = []

    @rule(us=st.integers(1, 30))
    def wait(self, us: int) -> None:
        self.now += us
        self.block_us += us * self.cache.resident

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        idle = self.cache.resident - self.cache.active
        if idle:
            blocks, before = data.draw(st.integers(1, idle)), self.cache.resident
            self.cache.evict(blocks, self.now)
            gone = before - self.cache.resident
            assert gone >= blocks
            if not self.cache.index.policy.whole_entry:
                assert gone == blocks

    @rule(number=st.integers(0, 9), us=st.sampled_from([1, 40, FOREVER]), score=st.floats(0, 1))
    def retain(self, number: int, us: int, score: float) -> None:
        self.cache.retain(f"s{number}", self.now + us, score, self.now)

    @rule(number=st.integers(0, 9))
    def release(self, number: int) -> None:
        self.cache.release(f"s{number}", self.now)

    @rule(number=st.integers(0, 9))
    def drop(self, number: int) -> None:
        self.cache.drop(f"s{number}", self.now)

    def resident_on(self, paths: Sequence[Sequence[Span]]) -> set[Place]:
        return {place for path in paths for place in places(path, self.cache.hit(path, ENDLESS))}

    @invariant()
    def laws_hold(self) -> None:
        self.cache.check()
        assert self.cache.resident + self.cache.free == self.CAPACITY
        assert self.cache.counts.evicted_blocks >= self.cache.counts.num_evictions
        for entry in self.cache.index:
            assert isinstance(entry, Segment)
            if len(entry.uses) > 1:  # some of it was used again without the rest
                assert 0 < entry.tokens <= entry.evictable
            else:
                assert entry.tokens == entry.evictable

    @invariant()
    def nothing_in_use_is_gone(self) -> None:
        for user in self.users:
            assert self.cache.hit(user.path, user.blocks) == user.blocks

    @invariant()
    def every_block_has_one_use(self) -> None:
        """In use: on the path of a running request; waiting: on that of an open session, or of the
        declared prefix, which somebody may always ask for."""
        active = self.resident_on([user.path for user in self.users])
        paths = [self.sessions[number].path for number in self.numbers(idle=False)]
        live = self.resident_on([*paths, (Span(self.prefix, ENDLESS),)])
        assert self.cache.active == len(active)
        assert self.cache.dead == self.cache.resident - len(live | active)

    @invariant()
    def occupancy_adds_up(self) -> None:
        use = self.cache.settle(self.now)
        assert use.active + use.waiting + use.dead == self.block_us
        assert 0 <= use.later_hit <= use.waiting + use.dead


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_releasing_a_parent_keeps_what_a_fork_continues_from() -> None:
    cache = KVCache(16, PrefixLru())
    parent, child, idle = Lineage(1, "parent", 16), Lineage(2, "child", 16), Lineage(3, "idle", 16)
    for lineage in (idle, parent):
        lineage.begin(None, 0)
        path = lineage.advance(step(0, 96, 1))
        cache.pin(path, 0, lineage.context_tokens)
        cache.grow(path, 6, 100)
        cache.unpin(path, 6, 100)
    child.fork(parent, 96)
    parent.end()
    cache.release("parent", 200)
    cache.evict(10, 300)
    assert cache.hit(child.path, 6) == 2  # the idle session's 6 went first, then 4 of the parent's


# ---- as vLLM's queue of free blocks


class BlockQueue:
    """Prefix caching as vLLM does it, block by block: a queue of free blocks, oldest first; a
    request takes what it hits out of it and appends all its blocks when it leaves, last one first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: list[tuple[Content, int]] = []

    def hit(self, path: Sequence[Span], limit: int) -> int:
        blocks = self.blocks(path, limit)
        return next((i for i, block in enumerate(blocks) if block not in self.queue), len(blocks))

    def use(self, path: Sequence[Span], blocks: int) -> int:
        """One request, alone; how many blocks it found."""
        mine, hit = self.blocks(path, blocks), self.hit(path, blocks)
        idle = [block for block in self.queue if block not in mine[:hit]]
        self.queue = idle[max(0, len(idle) + blocks - self.capacity) :]
        self.queue += reversed(mine)
        return hit

    @staticmethod
    def blocks(path: Sequence[Span], end: int) -> list[tuple[Content, int]]:
        return [
            (span.content, block)
            for span in path
            for block in range(span.content.start, min(span.end, end))
        ]


@settings(max_examples=100)
@given(st.data())
def test_the_least_recently_used_block_goes_whoever_shares_it(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(12, 20))
    cache, blocks = KVCache(capacity, PrefixLru()), BlockQueue(capacity)
    ends: dict[tuple[Span, ...], int] = {}
    for number in range(data.draw(st.integers(5, 25))):
        paths = list(ends)
        choice = data.draw(st.integers(0, 2 * len(paths)))
        if choice < len(paths):
            path = paths[choice]
        else:
            path = branch(data, ends, number)
            ends[path] = path[-1].content.start
        end = ends[path] = min(capacity, ends[path] + data.draw(st.integers(1, 4)))
        hit = cache.hit(path, end)
        now = number // 3  # requests that leave at the same time go in the order in which they left
        use(cache, path, end, now, hit=hit)
        cache.check()
        assert hit == blocks.use(path, end)
        assert [cache.hit(one, 99) for one in ends] == [blocks.hit(one, 99) for one in ends]


def branch(data: st.DataObject, ends: dict[tuple[Span, ...], int], number: int) -> tuple[Span, ...]:
    """A path of its own, or one that shares what another has computed so far, or a part of it."""
    before: tuple[Span, ...] = ()
    other = data.draw(st.integers(0, len(ends)))
    if other < len(ends):
        path, computed = list(ends.items())[other]
        end = data.draw(st.integers(1, min(8, computed)))
        kept = [span for span in path if span.content.start < end]
        before = (*kept[:-1], Span(kept[-1].content, min(kept[-1].end, end)))
    start, parent = (before[-1].end, before[-1].content) if before else (0, None)
    own = Content(start, parent, f"session {number}", {number: ENDLESS})
    return (*before, Span(own, ENDLESS))
