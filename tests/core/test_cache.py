"""The retention index against a naive model: what goes first."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.core.cache import FOREVER, CacheView, EvictionPolicy, KVEntry, RetentionIndex
from saga.policies.lru import Lru
from saga.policies.prefix_lru import PrefixLru
from saga.policies.wa_lru import WaLru


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedLru(Lru):
    """Which KV? The same as ``Lru``, found by looking at all of it."""

    static: ClassVar[bool] = False


@dataclass
class NaiveIndex:
    """What the docstring of ``RetentionIndex`` says, in as few words as possible."""

    policy: EvictionPolicy
    idle: list[KVEntry] = field(default_factory=list)
    """In the order in which they became idle or were updated."""
    current: KVEntry | None = None
    current_is_open: bool = False
    """Whether it was unprotected when it was chosen."""

    def add(self, entry: KVEntry, now: int) -> None:
        self.idle.append(entry)
        if self.policy.static and self.current is not None and self.current_is_open:
            unprotected = not entry.released and entry.retained_until <= now
            if unprotected and self.rank(entry, now) > self.rank(self.current, now):
                self.current = None

    def rank(self, entry: KVEntry, now: int) -> float:
        return self.policy.rank(entry, CacheView(now, 1, 1))

    def discard(self, entry: KVEntry) -> None:
        self.idle = [other for other in self.idle if other is not entry]
        if self.current is entry:
            self.current = None

    def update(self, entry: KVEntry, now: int) -> None:
        if any(other is entry for other in self.idle):
            self.discard(entry)
            self.add(entry, now)

    def victim(self, now: int) -> KVEntry | None:
        for entry in self.idle:
            if entry.released:
                return entry
        if self.current is None and self.idle:
            self.current = self.first(now)
        return self.current

    def first(self, now: int) -> KVEntry:
        unprotected = [entry for entry in self.idle if entry.retained_until <= now]
        ending = [entry for entry in self.idle if entry.retained_until < FOREVER]
        candidates = unprotected or ending or self.idle
        self.current_is_open = bool(unprotected)
        view = CacheView(
            now,
            max(1, now - min(entry.last_access for entry in candidates)),
            max(1, max(entry.tokens for entry in candidates)),
        )
        return max(candidates, key=lambda entry: self.policy.rank(entry, view))


@dataclass(frozen=True)
class Turn:
    """One random operation; the numbers choose among what is there."""

    what: str
    pick: int
    tokens: int
    p_reuse: float
    retain_us: int | None
    """None: for ever; 0: not at all."""
    released: bool
    pause_us: int


TURNS = st.lists(
    st.builds(
        Turn,
        what=st.sampled_from(["add", "add", "use", "update", "evict", "evict"]),
        pick=st.integers(0, 99),
        tokens=st.integers(1, 3),
        p_reuse=st.sampled_from([0.0, 0.5, 1.0]),
        retain_us=st.sampled_from([0, 0, 1, 10, 30, None]),
        released=st.sampled_from([False, False, False, True]),
        pause_us=st.sampled_from([0, 0, 1, 5, 15]),
    ),
    max_size=60,
)


class Play:
    """Plays turns on an index and a naive one, or on two indexes; compares every victim."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.index = RetentionIndex(policy)
        self.naive = NaiveIndex(policy)
        self.now = 0
        self.number = 0

    def play(self, turns: list[Turn]) -> list[str | None]:
        """The names of the victims, in order; each was asked for twice."""
        victims = []
        for turn in turns:
            self.now += turn.pause_us
            if turn.what == "add":
                self.add(turn)
            elif turn.what == "evict":
                victims.append(self.evict(turn))
            elif self.naive.idle:
                entry = self.naive.idle[turn.pick % len(self.naive.idle)]
                self.use(entry) if turn.what == "use" else self.update(entry, turn)
            self.compare()
        return victims

    def retained_until(self, turn: Turn) -> int:
        return FOREVER if turn.retain_us is None else self.now + turn.retain_us

    def add(self, turn: Turn) -> None:
        self.number += 1
        entry = KVEntry(
            session=f"s{self.number}",
            tokens=turn.tokens,
            last_access=self.now,
            p_reuse=turn.p_reuse,
            retained_until=self.retained_until(turn),
            released=turn.released,
        )
        self.index.add(entry, self.now)
        self.naive.add(entry, self.now)

    def use(self, entry: KVEntry) -> None:
        self.index.discard(entry)
        self.naive.discard(entry)

    def update(self, entry: KVEntry, turn: Turn) -> None:
        entry.p_reuse, entry.released = turn.p_reuse, turn.released
        entry.retained_until = self.retained_until(turn)
        self.index.update(entry, self.now)
        self.naive.update(entry, self.now)

    def evict(self, turn: Turn) -> str | None:
        """Takes one token from the tail, or everything."""
        victim = self.index.victim(self.now)
        assert victim is self.naive.victim(self.now)
        if victim is None:
            return None
        assert self.index.current is victim
        assert self.index.victim(self.now + turn.pause_us) is victim, "it stays the victim"
        victim.tokens -= 1
        if victim.tokens == 0 or self.index.policy.whole_entry:
            self.use(victim)
            assert self.index.current is not victim
        return victim.session

    def compare(self) -> None:
        assert len(self.index) == len(self.naive.idle)
        assert {id(entry) for entry in self.index} == {id(entry) for entry in self.naive.idle}
        assert all(entry in self.index for entry in self.naive.idle)


@pytest.mark.parametrize("policy", [Lru(), PrefixLru(), ScannedLru(), WaLru()], ids=repr)
@settings(max_examples=150)
@given(turns=TURNS)
def test_the_index_does_what_the_naive_model_does(
    policy: EvictionPolicy, turns: list[Turn]
) -> None:
    Play(policy).play(turns)


@given(TURNS)
def test_ranked_once_or_scanned_each_time_is_the_same(turns: list[Turn]) -> None:
    without = [turn for turn in turns if turn.what != "update"]
    assert Play(Lru()).play(without) == Play(ScannedLru()).play(without)


def entry(name: str, last_access: int = 0, **fields: object) -> KVEntry:
    made = KVEntry(session=name, tokens=10, last_access=last_access)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def index_of(*entries: KVEntry, policy: EvictionPolicy | None = None) -> RetentionIndex:
    index = RetentionIndex(policy or PrefixLru())
    for each in entries:
        index.add(each, now=10)
    return index


def order(index: RetentionIndex, now: int) -> list[str | None]:
    """Empties the index."""
    names = []
    while (victim := index.victim(now)) is not None:
        names.append(victim.session)
        index.discard(victim)
    return names


def test_order_by_hand() -> None:
    index = index_of(
        entry("retained for ever", 0, retained_until=FOREVER),
        entry("retained longer", 1, retained_until=100),
        entry("retained", 2, retained_until=50),
        entry("open", 5),
        entry("open and older", 4),
        entry("expired", 6, retained_until=10),
        entry("released", 9, released=True),
    )
    assert order(index, now=10) == [
        "released",
        "open and older",
        "open",
        "expired",
        "retained longer",
        "retained",
        "retained for ever",
    ]


def test_a_retention_expires_with_time() -> None:
    index = index_of(entry("retained", 0, retained_until=20), entry("open", 5))
    assert index.victim(19) is not None
    index = index_of(entry("retained", 0, retained_until=20), entry("open", 5))
    assert order(index, now=20) == ["retained", "open"]


def test_a_victim_that_becomes_protected_is_let_go() -> None:
    first, second = entry("first", 0), entry("second", 1)
    index = index_of(first, second)
    assert index.victim(10) is first
    first.retained_until = FOREVER
    index.update(first, 10)
    assert index.victim(10) is second


def test_a_victim_stays_although_a_better_one_turns_up() -> None:
    first, second = entry("first", 0), entry("second", 1)
    index = index_of(first, second, policy=WaLru())
    assert index.victim(10) is first
    second.p_reuse = 0.0
    index.update(second, 11)
    assert index.victim(11) is first
    index.discard(first)
    assert index.victim(11) is second


@pytest.mark.parametrize("policy", [PrefixLru(), WaLru()], ids=repr)
def test_a_victim_gives_way_to_what_nobody_will_ask_for(policy: EvictionPolicy) -> None:
    """Only as long as there is something: it has lost its tail already."""
    victim, done, later, best = (entry(name) for name in ("victim", "done", "later", "best"))
    index = index_of(victim, done, later, best, policy=policy)
    assert index.victim(10) is victim
    best.p_reuse = 0.0
    index.update(best, 10)
    for over in (done, later):
        over.released = True
        index.update(over, 11)
        assert index.victim(11) is done, "the first of those that are over stays the victim"
    assert order(index, 11) == ["done", "later", "victim", "best"]


def test_a_victim_gives_way_to_one_that_ranks_before_it() -> None:
    first, second = entry("first", 1), entry("second", 2)
    index = index_of(second)
    assert index.victim(10) is second
    index.add(first, 10)
    assert index.victim(10) is first


def test_an_update_of_what_is_in_use_does_nothing() -> None:
    index = index_of(entry("idle"))
    in_use = entry("in use")
    index.update(in_use, 10)
    index.discard(in_use)
    assert in_use not in index
    assert len(index) == 1


@pytest.mark.parametrize("retained_until", [0, 1_000, FOREVER])
@pytest.mark.parametrize("policy", [PrefixLru(), WaLru()], ids=repr)
def test_memory_is_bounded_by_what_is_idle(policy: EvictionPolicy, retained_until: int) -> None:
    """Sessions come and go for long without any need to evict."""
    index = index_of(*(entry(f"s{number}") for number in range(5)), policy=policy)
    busy = entry("busy", retained_until=retained_until)
    for now in range(500):
        index.add(busy, now)
        index.discard(busy)
    heaps = [value for value in vars(index).values() if isinstance(value, list)]
    assert len(heaps) == 2
    assert all(len(heap) <= 2 * len(index) + 20 for heap in heaps)
    assert len(order(index, now=600)) == 5


# ---- in batches


@dataclass(frozen=True, kw_only=True)
class CountedLru(PrefixLru):
    """Which KV? The least recently used; counts how often it is asked."""

    static: ClassVar[bool] = False
    asked: list[str | None] = field(default_factory=list)

    def rank(self, entry: KVEntry, cache: CacheView) -> float:
        self.asked.append(entry.session)
        return -entry.last_access


def crowd(count: int, policy: EvictionPolicy, *, batched: bool, until: int = 0) -> RetentionIndex:
    """Many idle sessions, oldest first by number, filed in another order."""
    index = RetentionIndex(policy, batched=batched)
    for number in range(count):
        age = number * 7 % count
        index.add(entry(f"s{age}", last_access=age, retained_until=until), now=count)
    return index


@pytest.mark.parametrize("until", [0, FOREVER], ids=["open", "retained"])
@pytest.mark.parametrize("policy", [CountedLru(), PrefixLru()], ids=["scanned", "ranked once"])
def test_in_batches_the_order_of_a_crowd_is_the_same(policy: EvictionPolicy, until: int) -> None:
    one_by_one = order(crowd(500, policy, batched=False, until=until), now=500)
    assert one_by_one == [f"s{age}" for age in range(500)]
    assert order(crowd(500, policy, batched=True, until=until), now=500) == one_by_one


@pytest.mark.parametrize("until", [0, FOREVER], ids=["open", "retained"])
def test_in_batches_a_victim_costs_little_in_a_crowd(until: int) -> None:
    policy = CountedLru()
    order(crowd(2_000, policy, batched=True, until=until), now=2_000)
    assert len(policy.asked) < 2_000 * 40, "one by one it would be 2,000,000"


def test_in_batches_those_that_were_named_and_are_gone_are_passed_over() -> None:
    index = crowd(64, CountedLru(), batched=True)
    assert index.victim(64) is not None
    gone = {each.session: each for each in index if each.session in ("s0", "s1", "s2")}
    for each in gone.values():
        index.discard(each)
    gone["s2"].released = True
    index.add(gone["s2"], 64)
    assert order(index, 64) == ["s2", *(f"s{age}" for age in range(3, 64))]


@pytest.mark.parametrize("policy", [WaLru(), PrefixLru()], ids=repr)
def test_in_batches_a_retained_victim_gives_way_to_an_unprotected_one(
    policy: EvictionPolicy,
) -> None:
    index = RetentionIndex(policy, batched=True)
    retained, brief = entry("retained", 0, retained_until=50), entry("brief", 1, retained_until=20)
    index.add(retained, 10)
    index.add(brief, 10)
    assert index.victim(10) is retained
    assert index.victim(20) is brief, "its time is over"
    index.discard(brief)
    assert index.victim(20) is retained
    index.add(entry("open", 3), 21)
    assert order(index, 21) == ["open", "retained"]
