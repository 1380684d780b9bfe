"""The book of an engine's blocks, beside a cache that does what engines do."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from saga.gateway.kv_blocks import Held, KvBlocks

SIZE = 16
Chain = tuple[int, ...]
"""What the blocks of a prompt say; a block is known by all up to it."""


def book(max_blocks: int = 10_000, max_sessions: int = 10_000) -> KvBlocks:
    return KvBlocks(max_blocks=max_blocks, max_sessions=max_sessions)


def key(chain: Chain) -> bytes:
    return bytes(chain)


def keys(chain: Chain, begin: int = 0) -> list[bytes]:
    return [key(chain[: end + 1]) for end in range(begin, len(chain))]


def store(blocks: KvBlocks, chain: Chain, session: str | None, begin: int = 0) -> None:
    """The chain's blocks from one on are made for a session."""
    parent = key(chain[:begin]) if begin else None
    blocks.stored(keys(chain, begin), parent, SIZE, session)


# ---- examples


def test_a_session_ends_where_its_last_block_does() -> None:
    blocks = book()
    store(blocks, (1, 2, 3), "a")
    assert blocks.tokens("a") == 3 * SIZE
    store(blocks, (1, 2, 3, 4), "a", begin=3)
    assert blocks.tokens("a") == 4 * SIZE
    assert blocks.changes() == [Held("a", 4 * SIZE, False)]
    assert blocks.changes() == []
    assert blocks.tokens("b") is None


def test_what_goes_from_its_tail_shortens_it() -> None:
    blocks = book()
    store(blocks, (1, 2, 3), "a")
    blocks.changes()
    blocks.removed([key((1, 2, 3))])
    assert blocks.changes() == [Held("a", 2 * SIZE, True)]
    blocks.removed(keys((1, 2)))
    assert blocks.changes() == [Held("a", 0, True)]
    assert (len(blocks), blocks.tokens("a")) == (0, None)


def test_a_shared_beginning_that_goes_shortens_everybody() -> None:
    blocks = book()
    store(blocks, (1, 2), "a")
    store(blocks, (1, 2, 3), "b", begin=2)
    store(blocks, (1, 5), "c", begin=1)
    blocks.removed([key((1, 2))])
    assert [blocks.tokens(name) for name in "abc"] == [SIZE, SIZE, 2 * SIZE]
    blocks.removed([key((1,))])
    assert {held.session: held.tokens for held in blocks.changes()} == {"a": 0, "b": 0, "c": 0}


def test_a_block_that_was_made_twice_goes_with_its_second_copy() -> None:
    blocks = book()
    store(blocks, (1, 2), "a")
    store(blocks, (1, 2), "b")
    blocks.removed(keys((1, 2)))
    assert (blocks.tokens("a"), blocks.tokens("b")) == (2 * SIZE, 2 * SIZE)
    blocks.removed(keys((1, 2)))
    assert {held.tokens for held in blocks.changes()} == {0}


def test_a_session_that_begins_anew_is_not_shortened_by_what_it_left() -> None:
    blocks = book()
    store(blocks, (1, 2, 3), "a")
    store(blocks, (1, 7), "a", begin=1)
    blocks.removed(keys((1, 2, 3), begin=1))
    assert blocks.tokens("a") == 2 * SIZE


def test_blocks_of_unknown_place_say_nothing() -> None:
    blocks = book()
    store(blocks, (1, 2), "a")
    store(blocks, (8, 9), "a", begin=1)  # its first block was made before anybody listened
    assert (blocks.tokens("a"), len(blocks)) == (None, 2)
    blocks.removed([key((8, 9)), b"never heard of"])
    blocks.removed(keys((1, 2)))
    assert blocks.changes() == []


def test_blocks_of_nobody_are_followed_for_those_who_go_on_from_them() -> None:
    blocks = book()
    store(blocks, (1, 2), None)
    store(blocks, (1, 2, 3), "a", begin=2)
    blocks.removed([key((1,))])
    assert blocks.changes() == [Held("a", 0, True)]


def test_what_is_gone_on_from_must_be_there() -> None:
    """Whatever was said of it before: an event too many was counted."""
    blocks = book()
    store(blocks, (1, 2), "a")
    blocks.removed([key((1,))])
    store(blocks, (1, 2, 3), "b", begin=2)
    assert blocks.tokens("b") == 3 * SIZE
    blocks.removed([key((1,))])
    assert {held.session: held.tokens for held in blocks.changes()} == {"a": 0, "b": 0}


def test_only_who_lost_something_is_told_of() -> None:
    blocks = book()
    store(blocks, (1,), "b")
    store(blocks, (1, 2), "a", begin=1)
    blocks.changes()
    blocks.removed([key((1, 2))])
    assert blocks.changes() == [Held("a", SIZE, True)]


def test_sessions_that_moved_together_may_leave_alone() -> None:
    blocks = book()
    store(blocks, (1, 2, 3), "a")
    for name in "bc":
        store(blocks, (1,), name)
    blocks.removed([key((1, 2, 3))])
    blocks.removed([key((1, 2))])
    blocks.leave("a")
    assert {held.session for held in blocks.changes()} == {"b", "c"}


def test_blocks_may_be_of_several_sizes() -> None:
    blocks = book()
    blocks.stored([b"x"], None, 32, "a")
    blocks.stored([b"y"], b"x", 8, "a")
    assert blocks.tokens("a") == 40
    blocks.removed([b"y"])
    assert blocks.tokens("a") == 32


def test_the_oldest_are_forgotten_with_what_hangs_under_them() -> None:
    blocks = book(max_blocks=4)
    store(blocks, (1, 2), "a")
    store(blocks, (3, 4), "b")
    store(blocks, (5,), "c")
    assert [blocks.tokens(name) for name in "abc"] == [None, 2 * SIZE, SIZE]
    assert (len(blocks), blocks.num_forgotten) == (3, 2)
    blocks.removed(keys((1, 2)))
    assert [held.session for held in blocks.changes()] == ["b", "c"]


def test_the_session_served_least_recently_is_forgotten() -> None:
    blocks = book(max_sessions=2)
    for name in "abac":
        store(blocks, (ord(name),), name)
    assert [blocks.tokens(name) for name in "abc"] == [SIZE, None, SIZE]


def test_nothing_is_claimed_after_forgetting() -> None:
    blocks = book()
    store(blocks, (1, 2), "a")
    blocks.removed([key((1, 2))])
    blocks.forget()
    assert (blocks.changes(), blocks.tokens("a"), len(blocks)) == ([], None, 0)
    store(blocks, (1,), "a")
    assert blocks.tokens("a") == SIZE


def test_a_thousand_sessions_move_together() -> None:
    """Else each block of a shared prompt that goes would cost as much as there are sessions."""
    blocks, prompt = book(), tuple(range(200))
    for number in range(1_000):
        blocks.stored([*keys(prompt), b"own %d" % number], None, SIZE, f"s{number}")
    for number in range(1_000):
        blocks.removed([b"own %d" % number])
    for _ in range(1_000):
        blocks.removed(keys(prompt, begin=1))
    assert {held.tokens for held in blocks.changes()} == {SIZE}
    assert len(blocks) == 1


# ---- laws

chains = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


class Cache(RuleBasedStateMachine):
    """A prefix cache as engines have it, which may drop any block at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = book()
        self.copies: Counter[Chain] = Counter()
        self.left: dict[str, Chain] = {}
        """What the book is expected to know of each session."""
        self.chains: dict[str, Chain] = {}
        self.told: dict[str, int] = {}

    def hit(self, chain: Chain) -> int:
        return next((n for n in range(len(chain)) if not self.copies[chain[: n + 1]]), len(chain))

    @rule(session=st.sampled_from("abcd"), chain=chains, at_once=st.booleans())
    def serve(self, session: str, chain: Chain, at_once: bool) -> None:
        """``at_once``: beside another one that computes the same, so that nothing is found."""
        begin = 0 if at_once else self.hit(chain)
        self.chains[session] = chain
        if begin < len(chain):
            for end in range(begin, len(chain)):
                self.copies[chain[: end + 1]] += 1
            store(self.blocks, chain, session, begin)
            self.left[session] = chain
        else:  # nothing is announced: the book goes on with what it knows
            self.blocks.leave(session)
            self.left.pop(session, None)

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        there = sorted(chain for chain, copies in self.copies.items() if copies)
        if not there:
            return
        gone = data.draw(st.lists(st.sampled_from(there), max_size=4, unique=True))
        for chain in reversed(gone):
            self.copies[chain] -= 1
            if not self.copies[chain]:
                for session, left in self.left.items():
                    if left[: len(chain)] == chain:
                        self.left[session] = chain[:-1]
        self.blocks.removed([key(chain) for chain in gone])

    @rule()
    def ask(self) -> None:
        """Who listens knows all that is known; who has nothing left is not told of again."""
        for held in self.blocks.changes():
            self.told[held.session] = held.tokens
        for session, chain in self.left.items():
            assert self.told[session] == SIZE * len(chain)
        self.left = {name: chain for name, chain in self.left.items() if chain}

    @invariant()
    def agrees(self) -> None:
        for session, left in self.left.items():
            assert self.blocks.tokens(session) == SIZE * len(left)
            assert self.hit(self.chains[session]) >= len(left), "it claims what is not there"

    @invariant()
    def remembers_no_more_than_it_must(self) -> None:
        """Blocks that are there, and those that are gone and have some under them."""
        there = {chain for chain, copies in self.copies.items() if copies}
        needed = {chain[:end] for chain in there for end in range(1, len(chain) + 1)}
        assert len(self.blocks) == len(needed)


CacheTest = Cache.TestCase
CacheTest.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 9), max_size=5), st.integers(-1, 9)),
        max_size=60,
    )
)
def test_no_order_of_events_breaks_the_bounds(
    events: list[tuple[bool, list[int], int]],
) -> None:
    """Events that no engine publishes, too: circles, parents that are gone, blocks twice."""
    blocks = book(max_blocks=6, max_sessions=3)
    for number, (is_stored, hashes, parent) in enumerate(events):
        if is_stored:
            blocks.stored(hashes, None if parent < 0 else parent, SIZE, f"s{number % 5}")
        else:
            blocks.removed(hashes)
        assert len(blocks) <= 6
        if number % 7 == 0:
            assert len(blocks.changes()) <= 3
    blocks.removed(list(range(10)) * sum(len(hashes) for _, hashes, _ in events))
    assert len(blocks) == 0
    assert all(not held.tokens for held in blocks.changes())
