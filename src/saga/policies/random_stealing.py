from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga.core.loads import Measure, tie_break
from saga.core.policy import ClusterView, EngineView, Steal


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomStealing:
    """Which sessions should move? The oldest queued one of a random overloaded engine.

    Paper section 5: each epoch, if an engine has been idle for longer than ``idle_ms`` or the loads
    differ by more than ``max_ratio``, every idle engine (else the least loaded one) steals once, at
    most ``max_steals`` in all. Overloaded: more than ``max_ratio`` times the least load, or a queue
    of ``min_queue``.
    """

    idle_ms: float = 100.0
    max_ratio: float = 2.0
    min_queue: int = 2
    max_steals: int = 4
    load: Measure = "paper"

    def steals(self, cluster: ClusterView) -> Sequence[Steal]:
        loads = {engine.id: cluster.load(self.load, engine) for engine in cluster.engines}
        least = min(loads.values())
        idle = [engine for engine in cluster.engines if self._is_idle(engine, cluster.now)]
        if not idle and max(loads.values()) <= self.max_ratio * least:
            return []
        over = [
            engine
            for engine in cluster.engines
            if engine.num_queued
            and (loads[engine.id] > self.max_ratio * least or engine.num_queued >= self.min_queue)
        ]
        thieves = idle or [min(cluster.engines, key=lambda engine: loads[engine.id])]
        steals: list[Steal] = []
        for thief in thieves[: self.max_steals]:
            victims = [engine for engine in over if engine is not thief]
            if not victims:
                break
            victim = victims[tie_break(cluster.num_epochs, thief.id) % len(victims)]
            over.remove(victim)
            request = cluster.oldest_queued(victim)
            if request is not None:
                steals.append(Steal(request, thief, f"stolen from {victim.id}"))
        return steals

    def _is_idle(self, engine: EngineView, now: int) -> bool:
        return engine.idle_since is not None and now - engine.idle_since > self.idle_ms * 1e3
