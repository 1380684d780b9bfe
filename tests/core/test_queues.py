"""The fair queue against a naive one; removal, re-entry, bounded memory."""

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.core.model import Request, Session, Tenant, Workflow
from saga.core.queues import FairQueue, Limit

WINDOWS = (None, 0.0, 3.0, float("inf"))


def limit(window: float | None) -> Limit | None:
    return None if window is None else lambda least: least + window


def make_request(name: str, tenant: Tenant) -> Request:
    workflow = Workflow(id=name, tenant=tenant, agent_type="agent", submitted=0, ranked_at=0)
    session = Session(id=name, workflow=workflow)
    return Request(id=name, session=session, arrived=0, prompt_tokens=1, expected_output_tokens=1)


def pop(queue: FairQueue, amount: float = 0.0) -> Request:
    request = queue.peek()
    assert request is not None
    queue.take(request, amount)
    return request


@dataclass(frozen=True)
class Turn:
    """One random operation; ``pick`` chooses among what is there, ``amount`` is of service."""

    what: str
    pick: int
    tenant: str
    key: float
    amount: float


TURNS = st.lists(
    st.builds(
        Turn,
        what=st.sampled_from(
            ["push"] * 4 + ["pop"] * 3 + ["any", "remove", "again", "settle", "settle", "correct"]
        ),
        pick=st.integers(0, 99),
        tenant=st.sampled_from("abc"),
        key=st.sampled_from([0.0, 1.0, 2.0, float("-inf")]),
        amount=st.integers(0, 9).map(float),
    ),
    max_size=80,
)


@dataclass
class Naive:
    """What a tenant has, by the definition."""

    time: float = 0.0
    credit: float = 0.0
    in_flight: list[list[float]] = field(default_factory=list)
    """What each was charged at its turn, and by now."""

    def add(self, amount: float) -> None:
        due = amount - self.credit
        self.credit = max(0.0, -due)
        self.time += max(0.0, due)


class Play:
    """A queue beside a list of (key, number of entry, request) and tenants' virtual times."""

    def __init__(self, window: float | None) -> None:
        self.window = window
        self.queue = FairQueue(limit(window))
        self.waiting: list[tuple[float, int, Request]] = []
        self.tenants = {name: Tenant(id=name) for name in "abc"}
        self.naive: dict[str, Naive] = {}
        self.virtual_time = 0.0
        self.gone: list[Request] = []
        self.number = 0

    def play(self, turns: list[Turn]) -> None:
        for turn in turns:
            if turn.what == "push":
                self.push(self.new_request(turn), turn.key)
            elif turn.what == "again" and self.gone:
                self.push(self.gone.pop(turn.pick % len(self.gone)), turn.key)
            elif turn.what == "remove" and self.waiting:
                request = self.waiting[turn.pick % len(self.waiting)][2]
                self.queue.remove(request)
                self.leave(request)
            elif turn.what in ("pop", "any") and self.waiting:
                first = self.queue.first(3)
                self.serve(first[turn.pick % len(first) if turn.what == "any" else 0], turn.amount)
            elif turn.what in ("settle", "correct"):
                self.change(turn)
            self.compare()

    def new_request(self, turn: Turn) -> Request:
        """Some are of the workflow of one that waits or waited."""
        request = make_request(f"r{self.number}", self.tenants[turn.tenant])
        before = [other for _, _, other in self.waiting] + self.gone
        own = [other for other in before if other.session.workflow.tenant.id == turn.tenant]
        if own and turn.pick % 2:
            request.session = own[turn.pick % len(own)].session
        return request

    def push(self, request: Request, key: float) -> None:
        self.number += 1
        naive = self.naive.setdefault(self.name(request), Naive(self.virtual_time))
        if self.name(request) not in self.times():
            naive.time = max(naive.time, self.virtual_time)
        self.queue.push(request, key)
        self.waiting.append((key, self.number, request))

    def serve(self, request: Request, amount: float) -> None:
        self.virtual_time = max(self.virtual_time, min(self.times().values()))
        naive = self.naive[self.name(request)]
        naive.add(amount)
        naive.in_flight.append([amount, amount])
        self.queue.take(request, amount)
        self.leave(request)

    def change(self, turn: Turn) -> None:
        naive = self.naive.get("" if self.window is None else turn.tenant)
        if naive is None or not naive.in_flight:
            return
        if turn.what == "correct":
            naive.in_flight[0][1] += turn.amount
            naive.add(turn.amount)
            charged, by_now = naive.in_flight[0]
            self.queue.correct(turn.tenant, turn.amount, by_now - charged)
        else:
            charged, by_now = naive.in_flight.pop(0)
            final = turn.amount + (by_now if by_now > charged else 0.0)  # no error shrinks again
            naive.add(final - by_now)
            self.queue.settle(turn.tenant, final - by_now, final - charged)
            self.forget()

    def leave(self, request: Request) -> None:
        self.waiting = [item for item in self.waiting if item[2] is not request]
        self.gone.append(request)
        self.forget()

    def forget(self) -> None:
        """When nothing waits and nothing runs, everybody is equal; the idle lose their credit."""
        idle = [
            name
            for name, naive in self.naive.items()
            if name not in self.times() and not naive.in_flight and naive.time <= self.virtual_time
        ]
        if not self.waiting and not any(naive.in_flight for naive in self.naive.values()):
            idle = list(self.naive)
        for name in idle:
            del self.naive[name]

    def name(self, request: Request) -> str:
        return "" if self.window is None else request.session.workflow.tenant.id

    def times(self) -> dict[str, float]:
        """Of those that wait."""
        return {self.name(item[2]): self.naive[self.name(item[2])].time for item in self.waiting}

    def compare(self) -> None:
        queue = self.queue
        assert len(queue) == len(self.waiting)
        assert queue.requests() == [request for _, _, request in self.waiting]
        assert queue.oldest() is (self.waiting[0][2] if self.waiting else None)
        assert not any(request in queue for request in self.gone)
        for tenant in self.tenants.values():
            newcomer = make_request("newcomer", tenant)
            keys = [key for key, _, r in self.waiting if self.name(r) == self.name(newcomer)]
            for key in (0.0, 1.5):
                ahead = sum(other <= key for other in keys)
                assert queue.num_ahead(newcomer, key) == (ahead if keys else None)
        assert queue.virtual_time == self.virtual_time
        found = queue.first(99)
        times = self.times()
        most = min(times.values(), default=0.0) + (self.window or 0.0)
        heads = [
            min((item for item in self.waiting if self.name(item[2]) == name), key=lambda x: x[:2])
            for name, time in times.items()
            if time <= most
        ]
        assert found == [request for _, _, request in sorted(heads, key=lambda item: item[:2])]
        assert queue.peek() is (found[0] if found else None)
        assert queue.first(1) == found[:1]
        firsts: dict[str, Request] = {}
        for _, _, request in sorted(self.waiting, key=lambda item: item[:2]):
            if times[self.name(request)] <= most:
                firsts.setdefault(request.session.workflow.id, request)
        assert queue.heads() == list(firsts.values())
        for name, naive in self.naive.items():
            lane = queue.lanes[name]
            assert (lane.virtual_time, lane.credit) == (naive.time, naive.credit)
        assert queue.lanes.keys() == self.naive.keys()
        assert queue.deviation <= 1.0


@pytest.mark.parametrize("window", WINDOWS)
@settings(max_examples=300)
@given(turns=TURNS)
def test_the_queue_does_what_its_definition_says(window: float | None, turns: list[Turn]) -> None:
    Play(window).play(turns)


@given(TURNS)
def test_every_request_comes_out_once(turns: list[Turn]) -> None:
    play = Play(0.0)
    play.play(turns)
    waiting = {request.id for _, _, request in play.waiting}
    popped = [pop(play.queue).id for _ in range(len(play.queue))]
    assert sorted(popped) == sorted(waiting)
    assert play.queue.peek() is None


def test_many_are_told_by_a_sample() -> None:
    queue, tenant, random = FairQueue(limit(0.0)), Tenant(id="t"), Random(1)
    for number in range(5_000):
        queue.push(make_request(f"r{number}", tenant), random.random())
    newcomer = make_request("newcomer", tenant)
    for key in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert queue.num_ahead(newcomer, key) == pytest.approx(5_000 * key, abs=900)
    assert queue.num_ahead(newcomer, 0.0) == 0
    assert queue.num_ahead(newcomer, 1.0) == 5_000


def raced(window: float, lead: float) -> FairQueue:
    """A tenant that is so far ahead, and one that never was served; something of it runs."""
    queue = FairQueue(limit(window))
    queue.push(make_request("waits", Tenant(id="behind")), 9.0)
    queue.push(make_request("first", Tenant(id="ahead")), 0.0)
    queue.take(next(request for request in queue.requests() if request.id == "first"), lead)
    return queue


def test_order_by_hand() -> None:
    behind, ahead = Tenant(id="behind"), Tenant(id="ahead")
    queue = raced(0.0, 5.0)
    for name, tenant, key in [
        ("late", behind, 2.0),
        ("first of ahead", ahead, 0.0),
        ("early", behind, 1.0),
        ("early too", behind, 1.0),
    ]:
        queue.push(make_request(name, tenant), key)
    assert pop(queue, 6.0).id == "early"
    assert pop(queue).id == "first of ahead"
    assert [pop(queue).id for _ in range(3)] == ["early too", "late", "waits"]


@pytest.mark.parametrize(("lead", "first"), [(5.0, "again"), (5.1, "waits")])
def test_inside_the_window_the_key_counts(lead: float, first: str) -> None:
    queue = raced(5.0, lead)
    queue.push(make_request("again", Tenant(id="ahead")), 0.0)
    assert pop(queue).id == first


def test_a_charge_too_high_is_credit() -> None:
    tenant, queue = Tenant(id="t"), FairQueue(limit(0.0))
    for number in range(9):
        queue.push(make_request(f"r{number}", tenant), 0.0)
    lane = queue.lanes["t"]
    pop(queue, 50.0)
    assert (lane.virtual_time, lane.credit) == (50.0, 0.0)
    queue.settle("t", -35.0, -35.0)
    assert (lane.virtual_time, lane.credit) == (50.0, 35.0)
    pop(queue, 30.0)
    assert (lane.virtual_time, lane.credit) == (50.0, 5.0)
    queue.correct("t", 7.0, 7.0)
    assert (lane.virtual_time, lane.credit) == (52.0, 0.0)


def test_idleness_is_not_saved_up_and_a_lead_is_kept() -> None:
    queue = FairQueue(limit(0.0))
    tenants = {name: Tenant(id=name) for name in ("busy", "idle", "greedy")}
    for number in range(9):
        queue.push(make_request(f"b{number}", tenants["busy"]), 1.0)
    queue.push(make_request("g", tenants["greedy"]), 0.0)
    assert pop(queue, 100.0).id == "g"
    queue.settle("greedy", 0.0, 0.0)
    for _ in range(8):
        pop(queue, 10.0)
    queue.push(make_request("i", tenants["idle"]), 0.0)
    queue.push(make_request("g2", tenants["greedy"]), 0.0)
    assert queue.lanes["idle"].virtual_time == queue.virtual_time == 70.0
    assert queue.lead("greedy") == 30.0


def test_a_request_that_enters_again_has_only_its_new_place() -> None:
    tenant, queue = Tenant(id="tenant"), FairQueue(limit(0.0))
    head, moved, other = (make_request(name, tenant) for name in ("head", "moved", "other"))
    for key, request in enumerate([head, moved, other]):
        queue.push(request, key)
    queue.remove(moved)
    queue.push(moved, 5.0)
    assert queue.requests() == [head, other, moved]
    assert [pop(queue).id for _ in range(3)] == ["head", "other", "moved"]


def test_without_a_limit_only_the_key_counts() -> None:
    queue = FairQueue(None)
    other = Tenant(id="b")
    queue.push(make_request("first", other), 0.0)
    queue.push(make_request("late", Tenant(id="a")), 2.0)
    pop(queue, 100.0)
    queue.push(make_request("early", other), 1.0)
    assert pop(queue).id == "early"


@pytest.mark.parametrize("window", WINDOWS)
def test_memory_is_bounded_by_what_waits(window: float | None) -> None:
    """A blocked head, and behind it clients that come and go, each before the others."""
    queue = FairQueue(limit(window))
    queue.push(make_request("blocked", Tenant(id="blocked")), 1e9)
    for number in range(2_000):
        request = make_request(f"r{number}", Tenant(id=f"t{number % 700}"))
        queue.push(request, -float(number))
        queue.peek()
        queue.remove(request)
    assert sum(len(lane.heap) for lane in queue.lanes.values()) <= 40
    heaps = (queue._times, queue._held, queue._offers, queue._ahead)
    assert all(len(heap) <= 40 for heap in heaps)
    head = queue.peek()
    assert head is not None and head.id == "blocked"


def test_an_empty_queue_holds_nothing() -> None:
    queue = FairQueue(limit(0.0))
    requests = [make_request(f"r{number}", Tenant(id=str(number % 3))) for number in range(10)]
    for request in requests:
        queue.push(request, 0.0)
    for request in requests:
        queue.remove(request)
    assert not any(vars(queue)[name] for name in ("lanes", "members", "_times", "_held"))
    assert not (queue._offers or queue._ahead)


def test_the_widest_window_counts_where_it_changes() -> None:
    """Rounds of 10: a is at 11 when it begins to wait again, and waits while b is given 9; then 1
    is left of the round."""
    queue = FairQueue(lambda least: (least // 10.0 + 1.0) * 10.0)
    for name, num, key in (("a", 11, 0.0), ("b", 20, 1.0)):
        for number in range(num):
            queue.push(make_request(f"{name}{number}", Tenant(id=name)), key)
    assert {pop(queue, 1.0).id[0] for _ in range(11)} == {"a"}
    queue.push(make_request("again", Tenant(id="a")), 0.0)
    assert {pop(queue, 1.0).id[0] for _ in range(9)} == {"b"}
    assert queue.deviation <= 1.0
    queue.settle("a", 0.0, 0.0)
    assert queue.deviation <= 1.0
