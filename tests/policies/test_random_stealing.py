"""Idle > 100 ms or loads apart by > 2: idle engines (else the least loaded) steal, at most 4."""

from collections.abc import Sequence

import pytest
from tests.policies.factory import Cluster, engine, waiting

from saga.core.model import Engine, Request
from saga.core.policy import Steal
from saga.policies.random_stealing import RandomStealing

MS = 1_000


def steals(
    *engines: Engine, now: int = 1_000 * MS, epoch: int = 1, policy: RandomStealing | None = None
) -> Sequence[Steal]:
    """Every engine's queue holds as many requests as it counts."""
    queues = {e.id: waiting(e.num_queued, f"{e.id}-request") for e in engines}
    cluster = Cluster(engines=engines, now=now, num_epochs=epoch, queues=queues)
    return (policy or RandomStealing()).steals(cluster)


def busy(name: str, queued: int, running: int = 0) -> Engine:
    return engine(name, num_queued=queued, num_running=running, idle_since=None)


def idle(name: str, since: int = 0) -> Engine:
    return engine(name, idle_since=since)


def test_balanced_engines_keep_what_they_have() -> None:
    assert steals(busy("a", 3), busy("b", 3), busy("c", 3)) == []


@pytest.mark.parametrize(("queued", "stolen"), [(7, 0), (8, 0), (9, 1)])
def test_loads_must_differ_by_more_than_the_ratio(queued: int, stolen: int) -> None:
    answer = steals(busy("a", 4), busy("b", queued))  # 0.2 against 0.35, 0.4 and 0.45
    assert len(answer) == stolen
    assert all(steal.target.id == "a" for steal in answer)


def test_the_ratio_is_a_parameter() -> None:
    policy = RandomStealing(max_ratio=1.5)
    assert len(steals(busy("a", 4), busy("b", 7), policy=policy)) == 1
    assert steals(busy("a", 4), busy("b", 6), policy=policy) == []


@pytest.mark.parametrize(("idle_us", "stolen"), [(99_999, 0), (100_000, 0), (100_001, 1)])
def test_an_engine_must_have_been_idle_for_longer_than_100_ms(idle_us: int, stolen: int) -> None:
    now = 500 * MS
    # The other one is no more than twice as loaded: memory of the idle one is nearly full.
    resting = engine("rest", idle_since=now - idle_us, resident_tokens=9_000)
    assert len(steals(resting, busy("b", 2, running=8), now=now)) == stolen


def test_the_oldest_request_is_taken() -> None:
    (steal,) = steals(idle("a"), busy("b", 5))
    assert (steal.request.id, steal.target.id) == ("b-request-0", "a")
    assert "b" in steal.reason


def test_a_queue_of_one_is_left_alone_unless_its_engine_is_overloaded() -> None:
    """The least load is 0.4: an engine with 0.5 is not overloaded, one of 0.85 is."""
    resting = engine("rest", resident_tokens=8_000)
    assert steals(resting, busy("b", 1, running=9)) == []
    overloaded = engine("b", num_queued=1, num_running=10, resident_tokens=6_000, idle_since=None)
    assert len(steals(resting, overloaded)) == 1
    assert len(steals(resting, busy("b", 2, running=8))) == 1


def test_an_engine_with_an_empty_queue_has_nothing_to_steal() -> None:
    assert steals(idle("a"), busy("b", 0, running=10)) == []


def test_every_idle_engine_steals_once_at_most_four_in_all() -> None:
    thieves = [idle(f"idle-{number}") for number in range(7)]
    victims = [busy(f"busy-{number}", 5) for number in range(7)]
    answer = steals(*thieves, *victims)
    assert [steal.target.id for steal in answer] == ["idle-0", "idle-1", "idle-2", "idle-3"]
    assert len({steal.request.id.partition("-request")[0] for steal in answer}) == 4
    assert len(steals(*thieves, *victims, policy=RandomStealing(max_steals=6))) == 6


def test_fewer_victims_than_thieves() -> None:
    thieves = [idle(f"idle-{number}") for number in range(3)]
    answer = steals(*thieves, busy("b", 9))
    assert [(steal.request.id, steal.target.id) for steal in answer] == [("b-request-0", "idle-0")]


def test_the_die_is_the_same_every_time_and_falls_differently_every_epoch() -> None:
    victims = [busy(f"busy-{number}", 5) for number in range(8)]

    def victim(epoch: int) -> str:
        (steal,) = steals(idle("a"), *victims, epoch=epoch)
        return steal.request.id

    assert [victim(epoch) for epoch in range(20)] == [victim(epoch) for epoch in range(20)]
    assert len({victim(epoch) for epoch in range(200)}) == 8


def test_the_least_loaded_steals_while_none_is_idle() -> None:
    answer = steals(busy("a", 9), busy("b", 2), busy("c", 3))
    assert [(steal.request.id, steal.target.id) for steal in answer] == [("a-request-0", "b")]


def test_nobody_steals_from_itself() -> None:
    queue: list[Request] = waiting(2)
    resting = engine("a", num_queued=2)  # idle as far as the clock tells, and yet a queue
    cluster = Cluster(engines=[resting], now=10**6, queues={"a": queue})
    assert list(RandomStealing().steals(cluster)) == []
