"""What an emulated engine publishes of its sessions' KV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.factory import Bench, blocks

from saga.engine.options import EngineOptions
from saga.engine.publisher import KvEvent, KvPublisher
from saga.engine.server import EngineApp

FREE = "tcp://127.0.0.1:0"


class Notes:
    """A publisher that writes down what it is told."""

    endpoint = FREE

    def __init__(self) -> None:
        self.events: list[KvEvent] = []

    def publish(self, events: Sequence[KvEvent]) -> None:
        assert events, "a message for nothing"
        self.events += events

    def take(self) -> list[KvEvent]:
        taken, self.events = self.events, []
        return taken


def bench(num_blocks: int = 40) -> tuple[Bench, Notes]:
    notes = Notes()
    return Bench(kv_tokens=num_blocks * 16, publisher=notes), notes


# ---- what is told


def test_what_a_request_leaves_and_what_others_take_of_it() -> None:
    scene, notes = bench()
    scene.ask(blocks("abcdefghi"), 17, session="t/s")
    assert notes.take() == [("stored", "t/s", 160)]
    scene.ask(blocks("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 16, session="t/large")
    assert notes.take() == [("stored", "t/large", 26 * 16)]
    scene.ask(blocks("0123456789"), 1)
    assert notes.take() == [("evicted", "t/s", scene.engine.resident("t/s"))]
    assert 0 < scene.engine.resident("t/s") < 160


def test_control_and_hints_are_told() -> None:
    scene, notes = bench()
    scene.ask(blocks("abcdefghi"), 17, session="s", ttl_s=9.0)
    assert notes.take() == [("stored", "s", 160), ("retained", "s", 160)]
    scene.engine.extend("s", 30.0)
    scene.engine.release("s")
    assert notes.take() == [("retained", "s", 160), ("released", "s", 160)]
    scene.ask(blocks("xyz"), 17, session="last", final=True)
    assert [event[:2] for event in notes.take()] == [("stored", "last"), ("released", "last")]


def test_requests_without_a_session_are_told_to_nobody() -> None:
    scene, notes = bench()
    scene.ask(blocks("abc"), 17)
    assert notes.take() == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 4)), max_size=20))
def test_who_listens_knows_what_is_resident(steps: list[tuple[str, int]]) -> None:
    """Sessions have nothing in common, and grow with every step for as long as they fit."""
    scene, notes = bench(24)
    heard: dict[str, int] = {}
    texts = dict.fromkeys("abcd", "")
    for session, grown in steps:
        texts[session] = (texts[session] + session.upper() * grown)[-20:]
        scene.ask(blocks(session + texts[session]), 16, session=session)
        for _, name, left in notes.take():
            heard[name] = left
        assert heard == {name: scene.engine.resident(name) for name in heard}
        assert session in heard


# ---- over ZeroMQ


@contextmanager
def listening(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = context.socket(zmq.SUB)
        socket.rcvtimeo = 5_000
        socket.subscribe(b"saga")
        socket.connect(endpoint)
        yield socket
    finally:
        context.destroy(linger=0)


def test_messages_are_numbered_from_zero() -> None:
    publisher = KvPublisher(FREE, unix_time=lambda: 1.5)
    try:
        with listening(publisher.endpoint) as socket:
            while not socket.poll(10):  # until the subscription has arrived
                publisher.publish([("evicted", "t/s", 32)])
            topic, first, batch = socket.recv_multipart()
            publisher.publish([("evicted", "t/s", 16), ("released", "t/r", 0)])
            while True:
                _, number, last = socket.recv_multipart()
                if msgspec.msgpack.decode(last)[1][0][2] == 16:
                    break
        assert (topic, msgspec.msgpack.decode(batch)) == (b"saga", [1.5, [["evicted", "t/s", 32]]])
        assert len(first) == 8
        assert int.from_bytes(number, "big") > int.from_bytes(first, "big")
        assert len(msgspec.msgpack.decode(last)[1]) == 2
    finally:
        publisher.close()


def test_an_endpoint_that_is_taken() -> None:
    publisher = KvPublisher(FREE)
    try:
        with pytest.raises(OSError, match=publisher.endpoint):
            KvPublisher(publisher.endpoint)
    finally:
        publisher.close()


def test_an_engine_tells_where_it_publishes() -> None:
    app = EngineApp(EngineOptions(kv_events=FREE))
    try:
        endpoint = app.engine.stats()["events_endpoint"]
        assert endpoint.startswith("tcp://127.0.0.1:")
        assert endpoint != FREE
    finally:
        app.close()
    silent = EngineApp(EngineOptions())
    silent.close()
    assert silent.engine.stats()["events_endpoint"] is None


def test_endpoints_are_tcp() -> None:
    with pytest.raises(ValueError, match="kv_events"):
        EngineOptions(kv_events="ipc:///tmp/kv")
