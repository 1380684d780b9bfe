"""The fair queue against a naive list; removal, re-entry, bounded memory."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.core.model import Request, Session, Tenant, Workflow
from saga.core.queues import FairQueue


def make_request(name: str, tenant: Tenant) -> Request:
    workflow = Workflow(id=name, tenant=tenant, agent_type="agent", submitted=0)
    session = Session(id=name, workflow=workflow)
    return Request(id=name, session=session, arrived=0, prompt_tokens=1, expected_output_tokens=1)


@dataclass(frozen=True)
class Turn:
    """One random operation; ``pick`` chooses among what is there."""

    what: str
    pick: int
    tenant: str
    key: float


TURNS = st.lists(
    st.builds(
        Turn,
        what=st.sampled_from(
            ["push", "push", "push", "pop", "remove", "again", "serve", "tenant returns"]
        ),
        pick=st.integers(0, 99),
        tenant=st.sampled_from("abc"),
        key=st.sampled_from([0.0, 1.0, 2.0, float("-inf")]),
    ),
    max_size=60,
)


class Play:
    """A queue beside a list of (key, number of entry, request)."""

    def __init__(self, *, fair: bool) -> None:
        self.fair = fair
        self.queue = FairQueue(fair=fair)
        self.waiting: list[tuple[float, int, Request]] = []
        self.tenants = {name: Tenant(id=name) for name in "abc"}
        self.gone: list[Request] = []
        self.number = 0

    def play(self, turns: list[Turn]) -> None:
        for turn in turns:
            tenant = self.tenants[turn.tenant]
            if turn.what == "push":
                self.push(make_request(f"r{self.number}", tenant), turn.key)
            elif turn.what == "again" and self.gone:
                request = self.gone.pop(turn.pick % len(self.gone))
                if request.session.workflow.tenant in self.tenants.values():
                    self.push(request, turn.key)
            elif turn.what == "remove" and self.waiting:
                request = self.waiting[turn.pick % len(self.waiting)][2]
                self.queue.remove(request)
                self.forget(request)
            elif turn.what == "pop" and self.waiting:
                expected = self.queue.peek()
                request = self.queue.pop()
                assert request is expected
                self.forget(request)
            elif turn.what == "serve":
                tenant.virtual_time += turn.pick
            elif turn.what == "tenant returns":
                self.tenant_returns(turn)
            self.compare()

    def push(self, request: Request, key: float) -> None:
        self.number += 1
        self.queue.push(request, key)
        self.waiting.append((key, self.number, request))

    def forget(self, request: Request) -> None:
        self.waiting = [item for item in self.waiting if item[2] is not request]
        self.gone.append(request)

    def tenant_returns(self, turn: Turn) -> None:
        """Everything of the tenant ended; a new one of that name starts somewhere else."""
        for _, _, request in list(self.waiting):
            if request.session.workflow.tenant.id == turn.tenant:
                self.queue.remove(request)
                self.waiting = [item for item in self.waiting if item[2] is not request]
        self.tenants[turn.tenant] = Tenant(id=turn.tenant, virtual_time=turn.pick)

    def compare(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.requests() == [request for _, _, request in self.waiting]
        oldest = self.waiting[0][2] if self.waiting else None
        assert self.queue.oldest() is oldest
        assert all(request in self.queue for _, _, request in self.waiting)
        assert not any(request in self.queue for request in self.gone)
        head = self.queue.peek()
        if head is None:
            assert not self.waiting
            return
        lane = self.waiting
        if self.fair:
            tenant = head.session.workflow.tenant
            times = [request.session.workflow.tenant.virtual_time for _, _, request in lane]
            assert tenant.virtual_time == min(times)
            lane = [item for item in lane if item[2].session.workflow.tenant is tenant]
        assert head is min(lane, key=lambda item: item[:2])[2]


@pytest.mark.parametrize("fair", [True, False])
@settings(max_examples=200)
@given(turns=TURNS)
def test_the_queue_does_what_a_list_does(fair: bool, turns: list[Turn]) -> None:
    Play(fair=fair).play(turns)


@given(TURNS)
def test_every_request_comes_out_once(turns: list[Turn]) -> None:
    play = Play(fair=True)
    play.play(turns)
    waiting = {request.id for _, _, request in play.waiting}
    popped = [play.queue.pop().id for _ in range(len(play.queue))]
    assert sorted(popped) == sorted(waiting)
    assert play.queue.peek() is None
    with pytest.raises(IndexError):
        play.queue.pop()


def test_order_by_hand() -> None:
    behind, ahead = Tenant(id="behind"), Tenant(id="ahead", virtual_time=5.0)
    queue = FairQueue(fair=True)
    for name, tenant, key in [
        ("late", behind, 2.0),
        ("first of ahead", ahead, 0.0),
        ("early", behind, 1.0),
        ("early too", behind, 1.0),
    ]:
        queue.push(make_request(name, tenant), key)
    assert queue.pop().id == "early"
    behind.virtual_time = 6.0
    assert queue.pop().id == "first of ahead"
    assert [queue.pop().id, queue.pop().id] == ["early too", "late"]


def test_a_request_that_enters_again_has_only_its_new_place() -> None:
    tenant, queue = Tenant(id="tenant"), FairQueue(fair=True)
    head, moved, other = (make_request(name, tenant) for name in ("head", "moved", "other"))
    for key, request in enumerate([head, moved, other]):
        queue.push(request, key)
    queue.remove(moved)
    queue.push(moved, 5.0)
    assert queue.requests() == [head, other, moved]
    assert [queue.pop().id for _ in range(3)] == ["head", "other", "moved"]


def test_without_fairness_only_the_key_counts() -> None:
    queue = FairQueue(fair=False)
    queue.push(make_request("late", Tenant(id="a")), 2.0)
    queue.push(make_request("early", Tenant(id="b", virtual_time=100.0)), 1.0)
    assert queue.pop().id == "early"


def test_a_tenant_that_comes_back_is_not_taken_for_the_one_that_left() -> None:
    queue = FairQueue(fair=True)
    other = Tenant(id="other", virtual_time=10.0)
    queue.push(make_request("waits", other), 0.0)
    gone = make_request("gone", Tenant(id="t", virtual_time=20.0))
    queue.push(gone, 0.0)
    queue.remove(gone)
    back = Tenant(id="t", virtual_time=15.0)
    queue.push(make_request("back", back), 0.0)
    back.virtual_time = 30.0
    other.virtual_time = 25.0
    assert queue.peek() is not None
    assert [queue.pop().id, queue.pop().id] == ["waits", "back"]


def test_memory_is_bounded_by_what_waits() -> None:
    """A blocked head, and behind it clients that come and go."""
    tenant = Tenant(id="tenant")
    queue = FairQueue(fair=True)
    queue.push(make_request("blocked", tenant), 0.0)
    for number in range(500):
        request = make_request(f"r{number}", tenant)
        queue.push(request, 1.0)
        queue.remove(request)
    (lane,) = queue._lanes.values()
    assert len(lane.heap) <= 2 * len(queue) + 20
    head = queue.peek()
    assert head is not None and head.id == "blocked"


def test_an_empty_queue_holds_nothing() -> None:
    queue = FairQueue(fair=True)
    requests = [make_request(f"r{number}", Tenant(id=str(number % 3))) for number in range(10)]
    for request in requests:
        queue.push(request, 0.0)
    for request in requests:
        queue.remove(request)
    assert not any(vars(queue)[name] for name in ("_lanes", "_turns", "members"))
