"""Messages as engines publish them, and a publisher that a test speaks through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import zmq

SIZE = 16


def stored(hashes: Sequence[Any], parent: bytes | int | None = None, **more: Any) -> dict[str, Any]:
    """As vLLM 0.32 has it, fields that are of no use here included."""
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(range(SIZE * len(hashes))),
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
        **more,
    }


def removed(hashes: Sequence[Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "BlockRemoved",
        "block_hashes": list(hashes),
        "medium": "GPU",
        "group_idx": 0,
        **more,
    }


CLEARED = {"type": "AllBlocksCleared"}


def message(number: int, *events: Any, topic: bytes = b"") -> list[bytes]:
    batch = msgspec.msgpack.encode([1.0, events, 0])
    return [topic, number.to_bytes(8, "big"), batch]


class Engine:
    """Publishes what a test says, numbered from zero."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:0") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.xpub_verbose = True
        self._socket.bind(endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.number = 0

    def subscribed(self) -> bool:
        """Whether somebody has begun to listen since the last time that this was true."""
        while self._socket.poll(0):
            if self._socket.recv()[:1] == b"\1":
                return True
        return False

    def say(self, *events: Any) -> None:
        self.send(message(self.number, *events))
        self.number += 1

    def send(self, frames: Sequence[bytes]) -> None:
        self._socket.send_multipart(frames)

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def engine(endpoint: str = "tcp://127.0.0.1:0") -> Iterator[Engine]:
    one = Engine(endpoint)
    try:
        yield one
    finally:
        one.close()
