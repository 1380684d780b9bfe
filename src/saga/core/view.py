"""The read-only face of the state that policies see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga.core.graph import GraphStore
from saga.core.loads import MEASURES, Loads, Measure
from saga.core.model import ClusterState
from saga.core.policy import EngineView, RequestView, TenantView
from saga.core.queues import FairQueue
from saga.core.return_times import ReturnTimes


@dataclass(slots=True)
class VirtualClock:
    """A time that runs at a rate which changes now and then."""

    value: float = 0.0
    """As of ``at``, microseconds."""
    at: int = 0
    rate: float = 0.0

    def read(self, now: int) -> float:
        return self.value + self.rate * (now - self.at)

    def run(self, rate: float, now: int) -> None:
        """At this rate from now on."""
        self.value, self.at, self.rate = self.read(now), now, rate


class View:
    """The read-only face that policies see; a thin look at the state, never a copy."""

    def __init__(
        self,
        state: ClusterState,
        queues: dict[str, FairQueue],
        graphs: GraphStore | None = None,
    ) -> None:
        self._state = state
        self._queues = queues
        self.engines: Sequence[EngineView] = ()
        self.capacity_tokens = 0
        """KV memory of all of them."""
        self.clock = VirtualClock()
        """KV token-seconds for everybody there from the beginning."""
        self.loads = Loads()
        self.return_times = ReturnTimes()
        self.graphs = GraphStore() if graphs is None else graphs

    @property
    def now(self) -> int:
        return self._state.now

    @property
    def num_epochs(self) -> int:
        return self._state.num_epochs

    @property
    def num_arrived(self) -> int:
        return self._state.num_arrived

    @property
    def virtual_time(self) -> float:
        return self.clock.read(self._state.now)

    def share_memory(self) -> None:
        """Call when there are more or fewer engines or workflows."""
        tokens = self.capacity_tokens / max(1, len(self._state.workflows))
        self.clock.run(tokens / 1e6, self._state.now)

    def entitled_tokens(self, tenant: TenantView) -> float:
        return self.capacity_tokens * tenant.weight / self._state.total_weight

    def load(self, measure: Measure, engine: EngineView) -> float:
        return MEASURES[measure](self._state.engines[engine.id])

    def least_loaded(self, measure: Measure, salt: str) -> EngineView:
        return self.loads.least(measure, salt)

    def oldest_queued(self, engine: EngineView) -> RequestView | None:
        return self._queues[engine.id].oldest()
