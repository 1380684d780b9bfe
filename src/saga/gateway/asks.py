"""What the scheduler asks of engines beside requests: posts to their control routes.

An engine without such routes is not asked, and the host counts the action as unsupported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from saga import wire
from saga.gateway.probe import CONTROL
from saga.gateway.upstream import Timeouts, UpstreamError

if TYPE_CHECKING:
    from saga.gateway.service import Gateway

TIMEOUTS = Timeouts(connect_s=2.0, first_byte_s=5.0, chunk_s=5.0, total_s=10.0)
MAX_UNDER_WAY = 256
"""Asks under way at once; hints are worth nothing late, so further ones are dropped."""


class EngineAsks:
    """The ``EngineControl`` of a live gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.num_under_way = 0
        self.num_failed = 0

    def retain(self, engine: str, session: str, ttl_s: float, score: float) -> bool:
        what = {"session": session, "ttl_s": round(min(ttl_s, 86_400.0), 3), "score": score}
        return self._post(engine, "retain", what)

    def release(self, engine: str, session: str) -> bool:
        return self._post(engine, "release", {"session": session})

    def preempt(self, engine: str, request: str) -> bool:
        return False  # an engine's own ids of requests are not known here

    def offload(self, engine: str, session: str) -> bool:
        return False

    def prefetch(self, engine: str, session: str) -> bool:
        return self._gateway.prefetches.begin(engine, session)

    def move(self, session: str, source: str, target: str) -> bool:
        """Where both read one tier there is nothing to send: the target finds the KV there. Else it
        is computed again."""
        engines = self._gateway.fleet.engines
        infos = [engines[name].info for name in (source, target) if name in engines]
        tiers = {None if info is None else info.shared_tier for info in infos}
        return len(infos) == 2 and len(tiers) == 1 and None not in tiers

    def _post(self, name: str, op: str, what: dict[str, Any]) -> bool:
        engine = self._gateway.fleet.engines.get(name)
        if engine is None or engine.info is None or CONTROL not in engine.info.capabilities:
            return False
        if self.num_under_way < MAX_UNDER_WAY:
            self.num_under_way += 1
            self._gateway.spawn(self._send(engine.url, op, msgspec.json.encode(what)))
        return True

    async def _send(self, url: str, op: str, body: bytes) -> None:
        gateway = self._gateway
        key = gateway.settings.engines.api_key
        try:
            status, _ = await gateway.upstream.fetch(
                url,
                "POST",
                f"{wire.CONTROL}/{op}",
                api_key=key.get_secret_value() if key else None,
                body=body,
                timeouts=TIMEOUTS,
                limit=65_536,
            )
            self.num_failed += status >= 400
        except UpstreamError:
            self.num_failed += 1
        finally:
            self.num_under_way -= 1
