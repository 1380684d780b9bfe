"""The fakes do what they say, since other tests lean on them."""

import pytest

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.errors import UnknownIdError
from saga.testing import FakeCluster, snapshot


def test_a_cluster_obeys_at_once() -> None:
    cluster = FakeCluster("vllm", max_num_seqs=1)
    first, second = cluster.ask("a"), cluster.ask("b")
    engine = cluster.engines["engine-0"]
    assert (engine.running, engine.waiting) == ([first], [second])
    cluster.finish(first)
    assert (engine.running, engine.waiting) == ([second], [])
    cluster.tell(ev.RequestCancelled(at=cluster.now, request=second))
    assert (engine.running, engine.waiting) == ([], [])
    assert [type(action) for action in cluster.actions] == [act.Dispatch, act.Dispatch, act.Cancel]


def test_without_auto_start_nothing_starts_by_itself() -> None:
    cluster = FakeCluster("vllm", auto_start=False)
    request = cluster.ask("a")
    engine = cluster.engines["engine-0"]
    assert engine.waiting == [request]
    cluster.start(request)
    assert engine.running == [request]


def test_engines_start_by_priority_and_preempted_requests_last() -> None:
    cluster = FakeCluster("batch_optimal+admission=null", max_num_seqs=1)
    cluster.finish(cluster.ask("deep"))
    running = cluster.ask("running")
    deep, fresh = cluster.ask("deep"), cluster.ask("fresh")
    engine = cluster.engines["engine-0"]
    assert engine.waiting == [fresh, deep]
    cluster._execute(act.Preempt(request=running, engine="engine-0", reason="test"))
    assert (engine.running, engine.waiting) == ([], [fresh, deep, running])


def test_time_passes_with_the_ticks_that_were_asked_for() -> None:
    cluster = FakeCluster("saga", engines=0)
    cluster.now = 7
    cluster.ask("a")
    epochs = cluster.scheduler.state.num_epochs
    cluster.engine_up("late")
    cluster._execute(act.WakeAt(at=500_000, reason="test"))
    cluster.advance(499_992)
    assert (cluster.now, cluster.wake) == (499_999, 500_000)
    assert cluster.scheduler.state.num_epochs == epochs
    cluster.advance(1)
    assert (cluster.now, cluster.wake) == (500_000, None)
    assert cluster.scheduler.state.num_epochs == epochs + 1


def test_settle_finishes_everything() -> None:
    cluster = FakeCluster("saga+admission=null", engines=2, max_num_seqs=1)
    for number in range(7):
        cluster.ask(f"s{number}")
    cluster.settle()
    state = cluster.scheduler.state
    assert not state.requests
    assert state.num_ended.total() == state.num_arrived == 7


def test_settle_gives_up_on_what_never_moves() -> None:
    cluster = FakeCluster("saga", engines=0)
    request = cluster.ask("a")
    cluster.settle(max_ticks=3)
    assert request in cluster.scheduler.state.requests


def test_a_refused_event_leaves_the_cluster_as_it_was() -> None:
    cluster = FakeCluster("vllm")
    cluster.ask("a")
    before = snapshot((cluster.engines, cluster.scheduler.state, cluster.now))
    with pytest.raises(UnknownIdError):
        cluster.tell(ev.RequestFinished(at=99, request="?", output_tokens=1))
    with pytest.raises(UnknownIdError):
        cluster.tell(ev.EngineDown(at=99, engine="?"))
    assert snapshot((cluster.engines, cluster.scheduler.state, cluster.now)) == before


def test_an_action_that_no_engine_can_obey_is_an_error() -> None:
    cluster = FakeCluster(load_preset("vllm").policies)
    with pytest.raises(ValueError, match="not open"):
        cluster._execute(act.Dispatch(request="r", engine="?", reason="test"))
    cluster.tell(ev.EngineDraining(at=0, engine="engine-0"))
    with pytest.raises(ValueError, match="not open"):
        cluster._execute(act.Dispatch(request="r", engine="engine-0", reason="test"))
    with pytest.raises(ValueError, match="'r' is not on the engine"):
        cluster._execute(act.Cancel(request="r", engine="engine-0", reason="test"))


class Node:
    def __init__(self, *following: "Node") -> None:
        self.following = list(following)


def test_snapshots_compare_shapes() -> None:
    assert snapshot({"a": [1, 2.0, None]}) == snapshot({"a": [1, 2.0, None]})
    assert snapshot([1, 2]) != snapshot([2, 1])
    assert snapshot({"a": 1, "b": 2}) != snapshot({"b": 2, "a": 1})
    assert snapshot({"b", "a"}) == snapshot({"a", "b"})
    assert snapshot(Node) == snapshot(Node)


def test_snapshots_see_cycles_and_sharing() -> None:
    ring, chain = Node(), Node(Node())
    ring.following.append(ring)
    assert snapshot(ring) == snapshot(ring)
    assert snapshot(ring) != snapshot(chain)
    shared = Node()
    assert snapshot(Node(shared, shared)) != snapshot(Node(Node(), Node()))
    assert snapshot(Node(Node(), Node())) == snapshot(Node(Node(), Node()))
