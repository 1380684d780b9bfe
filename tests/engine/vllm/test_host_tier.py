"""What the host tier keeps, apart from vLLM: whose copies go first, and that none is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.gateway.servers import ManualClock

from saga.engine.vllm.hints import Hints
from saga.engine.vllm.host_tier import ALWAYS, HostTier, StoreRule
from saga.policies.wa_lru import WaLru

SLOTS = 24
SESSIONS = ("a/1", "a/2", "b/1", "b/2")
names = st.sampled_from(SESSIONS)


def tier(rule: StoreRule = ALWAYS, **more: Any) -> HostTier:
    options = {
        "tenant_share": 1.0,
        "clock": ManualClock(),
        "usual_gap_s": lambda: None,
        "pressure": lambda: 1.0,
        **more,
    }
    return HostTier(SLOTS, WaLru(), rule, **options)


def visit(one: HostTier, session: str | None, slots: range, **hints: Any) -> None:
    """A request from its arrival to its end; its copies are in these slots."""
    one.arrived("r", Hints(session=session, **hints))
    for slot in slots:
        one.idle(slot)
    if session is not None:
        one.retain(session, 0, None)
    one.finished("r", list(slots))
    one.left("r")


# ---- what is stored


@given(
    gap_s=st.none() | st.floats(0, 100),
    pressure=st.floats(0, 1),
    least_gap_s=st.floats(0, 100),
    least_pressure=st.floats(0, 1),
)
def test_long_gaps_under_pressure(
    gap_s: float | None, pressure: float, least_gap_s: float, least_pressure: float
) -> None:
    rule = StoreRule(min_gap_s=least_gap_s, min_pressure=least_pressure)
    one = tier(rule, pressure=lambda: pressure, usual_gap_s=lambda: gap_s)
    one.arrived("r", Hints(session="a/1"))
    long = gap_s is None or gap_s >= least_gap_s
    assert one.wants("r", 3) == (long and pressure >= least_pressure)
    assert one.num_skipped == (0 if one.wants("r", 0) else 3)
    assert ALWAYS.worth(gap_s, pressure)


@pytest.mark.parametrize("hints", [Hints(), Hints(session="a/1", final=True)])
def test_nobody_comes_back(hints: Hints) -> None:
    one = tier()
    one.arrived("r", hints)
    assert not one.wants("r", 1)


def test_what_a_request_says_goes_before_what_is_usual() -> None:
    one = tier(StoreRule(min_gap_s=5, min_pressure=0), usual_gap_s=lambda: 1.0)
    one.arrived("r", Hints(session="a/1", return_s=5))
    one.arrived("q", Hints(session="a/1"))
    assert (one.wants("r", 1), one.wants("q", 1)) == (True, False)


def test_one_decision_for_all_of_a_context() -> None:
    pressure = [0.9, 0.1]
    one = tier(StoreRule(min_gap_s=0, min_pressure=0.5), pressure=lambda: pressure.pop(0))
    one.arrived("r", Hints(session="a/1"))
    assert [one.wants("r", 1) for _ in range(3)] == [True] * 3


# ---- what goes


def test_first_what_nobody_claims_then_by_score() -> None:
    one = tier()
    visit(one, "a/1", range(4))
    visit(one, None, range(4, 8))
    visit(one, "a/2", range(8, 12))
    one.retain("a/1", 0, 0.9)
    one.retain("a/2", 0, 0.1)
    assert one.evict(4, []) == [7, 6, 5, 4], "the head goes last"
    assert one.evict(3, []) == [11, 10, 9], "from the tail of the lowest score"
    assert one.evict(2, []) == [8, 3]


def test_promises_hold_until_nothing_else_is_left() -> None:
    one = tier()
    visit(one, "a/1", range(4))
    visit(one, "a/2", range(4, 8))
    one.retain("a/1", 10**9, 0.0)
    one.retain("a/2", 0, 1.0)
    assert one.evict(5, []) == [7, 6, 5, 4, 3]


def test_a_session_whose_request_is_here_is_kept() -> None:
    one = tier()
    visit(one, "a/1", range(4))
    visit(one, "a/2", range(4, 8))
    one.retain("a/1", 0, 0.0)
    one.arrived("next", Hints(session="a/1"))
    assert one.evict(4, []) == [7, 6, 5, 4]
    one.left("next")
    visit(one, "b/1", range(8, 12))
    assert one.evict(1, []) == [3]


def test_what_is_over_goes_first_but_for_what_others_use() -> None:
    one = tier()
    visit(one, None, range(20, 24))
    visit(one, "a/1", range(4))
    one.arrived("r", Hints(session="a/2"))
    one.finished("r", [0, 1])
    one.left("r")
    one.release("a/1")
    assert set(one.evict(2, []) or []) == {2, 3}
    assert one.evict(4, []) == [23, 22, 21, 20]
    assert one.resident("a/2") == 2


def test_it_cannot_give_what_is_not_idle() -> None:
    one = tier()
    visit(one, "a/1", range(4))
    one.busy(1)
    assert one.evict(4, []) is None
    assert one.evict(3, [0]) is None
    assert one.evict(2, [0]) == [3, 2]


# ---- laws


class Life(RuleBasedStateMachine):
    """A tier, beside the plainest account of which slots are full, and who reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.tier = tier(clock=self.clock, tenant_share=0.5)
        self.readers: dict[int, int] = {}
        """By full slot; -1: it is being written."""
        self.requests: dict[str, tuple[str, list[int]]] = {}
        self.count = 0

    def idle(self, slot: int) -> bool:
        return self.readers.get(slot) == 0

    @rule(session=names, final=st.booleans())
    def arrive(self, session: str, final: bool) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.requests[name] = (session, [])
        self.tier.arrived(name, Hints(session=session, final=final))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), wanted=st.integers(1, 8))
    def store(self, data: st.DataObject, wanted: int) -> None:
        _, slots = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        free = [slot for slot in range(SLOTS) if slot not in self.readers]
        missing = max(0, wanted - len(free))
        spared = set(slots)
        able = sum(self.idle(slot) for slot in range(SLOTS) if slot not in spared)
        taken = self.tier.evict(missing, spared) if missing else []
        if taken is None:
            assert able < missing
            return
        assert able >= missing
        assert len(set(taken)) == len(taken) == missing
        assert all(self.idle(slot) and slot not in spared for slot in taken)
        for slot in taken:
            del self.readers[slot]
        for slot in (free + taken)[:wanted]:
            self.readers[slot] = -1
            slots.append(slot)

    @rule(data=st.data(), succeeded=st.booleans())
    def written(self, data: st.DataObject, succeeded: bool) -> None:
        writing = [slot for slot, readers in self.readers.items() if readers < 0]
        for slot in data.draw(st.lists(st.sampled_from(writing), unique=True)) if writing else []:
            if succeeded:
                self.readers[slot] = 0
                self.tier.idle(slot)
            else:
                del self.readers[slot]
                self.tier.lost(slot)
                for _, slots in self.requests.values():
                    slots[:] = [one for one in slots if one != slot]

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        ready = [slot for slot, readers in self.readers.items() if readers >= 0]
        for slot in data.draw(st.lists(st.sampled_from(ready), unique=True)) if ready else []:
            if self.readers[slot] == 0:
                self.tier.busy(slot)
            self.readers[slot] += 1

    @rule(data=st.data())
    def has_read(self, data: st.DataObject) -> None:
        read = [slot for slot, readers in self.readers.items() if readers > 0]
        for slot in data.draw(st.lists(st.sampled_from(read), unique=True)) if read else []:
            self.readers[slot] -= 1
            if self.readers[slot] == 0:
                self.tier.idle(slot)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        _, slots = self.requests.pop(name)
        self.tier.finished(name, [slot for slot in slots if slot in self.readers])
        self.tier.left(name)

    @rule(session=names, ttl=st.integers(0, 20), score=st.none() | st.floats(0, 1))
    def retain(self, session: str, ttl: int, score: float | None) -> None:
        self.tier.retain(session, self.clock.now + ttl, score)

    @rule(session=names)
    def release(self, session: str) -> None:
        self.tier.release(session)

    @rule(us=st.integers(1, 20))
    def sleep(self, us: int) -> None:
        self.clock.now += us

    @rule()
    def reset(self) -> None:
        self.tier.clear()
        self.readers.clear()
        for _, slots in self.requests.values():
            slots.clear()

    @invariant()
    def nothing_is_misfiled(self) -> None:
        self.tier.check(self.idle)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
