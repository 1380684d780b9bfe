"""The read-only face of the state that policies see."""

from __future__ import annotations

from collections.abc import Sequence

from saga.core.graph import GraphStore
from saga.core.loads import MEASURES, Loads, Measure
from saga.core.model import ClusterState
from saga.core.policy import EngineView, RequestView, TenantView
from saga.core.queues import FairQueue
from saga.core.return_times import ReturnTimes


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

    def entitled_tokens(self, tenant: TenantView) -> float:
        return self.capacity_tokens * tenant.weight / self._state.total_weight

    def load(self, measure: Measure, engine: EngineView) -> float:
        return MEASURES[measure](self._state.engines[engine.id])

    def least_loaded(self, measure: Measure, salt: str) -> EngineView:
        return self.loads.least(measure, salt)

    def oldest_queued(self, engine: EngineView) -> RequestView | None:
        return self._queues[engine.id].oldest()
