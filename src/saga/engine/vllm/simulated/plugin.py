"""An engine of the simulator that vLLM schedules with SAGA's plugin in it, in virtual time."""

from __future__ import annotations

from typing import Any

from saga.engine.vllm.control import answer
from saga.engine.vllm.scheduler import RetainingScheduler
from saga.engine.vllm.simulated.engine import VllmEngine
from saga.sim.engine_model import EngineSetup


class VirtualClock:
    """The simulator's time, as the plugin reads it."""

    def __init__(self, now: int) -> None:
        self.now = now

    def now_us(self) -> int:
        return self.now


class PluginEngine(VllmEngine):
    """Keeps KV of sessions as the plugin does in a server, told by the messages of the gateway."""

    retains = True

    def __init__(self, setup: EngineSetup) -> None:
        self._clock = VirtualClock(setup.up_since)
        settings = {"clock": self._clock, "policies": setup.policies}
        super().__init__(setup, type("VirtualScheduler", (RetainingScheduler,), settings))

    def wake(self, now: int) -> None:
        self._clock.now = now
        super().wake(now)

    # ---- idle KV

    def retain(self, session: str, until: int, score: float, now: int) -> None:
        ttl_s = max(0, until - now) / 1e6
        self._ask("retain", {"session": session, "ttl_s": ttl_s, "score": score}, now)

    def release(self, session: str, now: int) -> None:
        self._ask("release", {"session": session}, now)

    def _ask(self, operation: str, body: dict[str, Any], now: int) -> None:
        """As a control message; about a session that left nothing here, it is refused."""
        self._clock.now = now
        answer(self._scheduler, operation, body)
