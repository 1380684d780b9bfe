"""What becomes of sessions' KV, told to whoever subscribes."""

from __future__ import annotations

from saga.engine.publisher import KvPublisher


class Events:
    """Gathers what happens between two flushes: of one session, the last of each kind."""

    def __init__(self, publisher: KvPublisher | None) -> None:
        self._publisher = publisher
        self._noted: dict[tuple[str, str], int] = {}

    @property
    def endpoint(self) -> str | None:
        """Where to listen; None if nothing is published."""
        return None if self._publisher is None else self._publisher.endpoint

    def note(self, kind: str, session: str, tokens_left: int) -> None:
        """``kind`` is one of ``wire.KV_*``."""
        if self._publisher is not None:
            self._noted.pop((kind, session), None)
            self._noted[kind, session] = tokens_left

    def flush(self) -> None:
        if self._publisher is not None and self._noted:
            self._publisher.publish([(*key, left) for key, left in self._noted.items()])
            self._noted.clear()

    def close(self) -> None:
        if self._publisher is not None:
            self._publisher.close()


def rank_endpoint(endpoint: str, rank: int) -> str:
    """The endpoint of one of several data-parallel engines, as vLLM counts its own on."""
    if not rank:
        return endpoint
    address, _, port = endpoint.rpartition(":")
    if not endpoint.startswith("tcp://"):
        return f"{endpoint}_dp{rank}"
    return f"{address}:{int(port) + rank}" if port.isdigit() and int(port) else endpoint
