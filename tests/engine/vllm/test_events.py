"""Events on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from saga.engine.publisher import KvPublisher
from saga.engine.vllm.events import Events, rank_endpoint


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    made = Events(KvPublisher(f"ipc://{tmp_path}/events", unix_time=lambda: 12.5))
    yield made
    made.close()


@pytest.fixture
def subscriber(events: Events) -> Iterator[zmq.Socket[bytes]]:
    """Connected, and known to the publisher."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVTIMEO, 20)
    assert events.endpoint is not None
    socket.connect(events.endpoint)
    socket.subscribe(b"saga")
    for _ in range(500):
        events.note("released", "hello", 0)
        events.flush()
        try:
            socket.recv_multipart()
            break
        except zmq.Again:
            continue
    yield socket
    socket.close()


def received(socket: zmq.Socket[bytes]) -> tuple[bytes, int, object]:
    topic, number, body = socket.recv_multipart()
    return topic, int.from_bytes(number, "big"), msgspec.msgpack.decode(body)


def test_a_flush_is_one_numbered_message(events: Events, subscriber: zmq.Socket[bytes]) -> None:
    for _ in range(2):
        events.note("retained", "t/a", 320)
        events.note("evicted", "t/b", 160)
        events.flush()
    topic, first, body = received(subscriber)
    assert topic == b"saga"
    assert body == [12.5, [["retained", "t/a", 320], ["evicted", "t/b", 160]]]
    assert received(subscriber)[1] == first + 1, "the next one, so that a loss can be seen"


def test_of_one_session_the_last_of_each_kind_is_told(
    events: Events, subscriber: zmq.Socket[bytes]
) -> None:
    events.note("evicted", "t/a", 320)
    events.note("evicted", "t/b", 320)
    events.note("retained", "t/a", 320)
    events.note("evicted", "t/a", 16)
    events.flush()
    told = [["evicted", "t/b", 320], ["retained", "t/a", 320], ["evicted", "t/a", 16]]
    assert received(subscriber)[2] == [12.5, told]


def test_nothing_noted_is_nothing_sent(events: Events, subscriber: zmq.Socket[bytes]) -> None:
    events.flush()
    with pytest.raises(zmq.Again):
        received(subscriber)


def test_nobody_needs_to_listen(events: Events) -> None:
    for number in range(20_000):
        events.note("evicted", f"t/{number}", 0)
        events.flush()


@pytest.mark.parametrize(
    ("endpoint", "rank", "expected"),
    [
        ("tcp://*:5610", 0, "tcp://*:5610"),
        ("tcp://*:5610", 3, "tcp://*:5613"),
        ("tcp://[::1]:5610", 1, "tcp://[::1]:5611"),
        ("tcp://*:0", 3, "tcp://*:0"),
        ("tcp://127.0.0.1:*", 3, "tcp://127.0.0.1:*"),
        ("ipc:///tmp/events", 2, "ipc:///tmp/events_dp2"),
        ("inproc://events", 2, "inproc://events_dp2"),
    ],
)
def test_each_data_parallel_engine_has_its_own_endpoint(
    endpoint: str, rank: int, expected: str
) -> None:
    assert rank_endpoint(endpoint, rank) == expected


def test_without_an_endpoint_nothing_is_told() -> None:
    events = Events(None)
    events.note("retained", "t/a", 1)
    events.flush()
    events.close()
    assert events.endpoint is None
