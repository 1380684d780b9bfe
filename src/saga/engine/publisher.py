"""What becomes of sessions' KV, published over ZeroMQ (PUB, on TCP)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import zmq

from saga import wire

KvEvent = tuple[str, str, int]
"""Kind, session, and the tokens of it that are resident after that."""

MAX_WAITING = 10_000
"""Messages held for one slow subscriber; further ones it misses."""


class Publisher(Protocol):
    @property
    def endpoint(self) -> str:
        """Where to listen."""
        ...

    def publish(self, events: Sequence[KvEvent]) -> None: ...


class KvPublisher:
    """Publishes from the moment it is made until ``close``; port 0 takes a free one.

    Messages are as vLLM's: a topic, a number in 8 bytes, and msgpack: ``[time, [event, ...]]``.
    Raises OSError if the endpoint cannot be had.
    """

    def __init__(self, endpoint: str, *, unix_time: Callable[[], float] = time.time) -> None:
        self._unix_time = unix_time
        self._number = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.sndhwm = MAX_WAITING
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, f"{endpoint}: {error.strerror}") from None
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def publish(self, events: Sequence[KvEvent]) -> None:
        """Never waits for subscribers."""
        batch = msgspec.msgpack.encode([self._unix_time(), events])
        self._socket.send_multipart([wire.EVENTS_TOPIC, self._number.to_bytes(8, "big"), batch])
        self._number += 1

    def close(self) -> None:
        self._context.destroy(linger=0)
