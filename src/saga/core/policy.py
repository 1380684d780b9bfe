"""The policy Protocols, each one question, the read-only views they get, and their bundle.

A policy is a frozen dataclass whose fields are its parameters. It may look at everything a view
shows and touch nothing; it has no memory and no chance of its own (``loads.tie_break`` is the only
die).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from saga.core.cache import EvictionPolicy
from saga.core.graph import GraphStore, RemainingWork
from saga.core.loads import Measure
from saga.core.model import SessionState
from saga.core.return_times import ReturnTimes


class TenantView(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def service(self) -> float: ...
    @property
    def committed_tokens(self) -> int: ...
    @property
    def share(self) -> float:
        """As the fairness policy has it at present; 1 without one."""
        ...


class WorkflowView(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def tenant(self) -> TenantView: ...
    @property
    def agent_type(self) -> str: ...
    @property
    def submitted(self) -> int: ...
    @property
    def ranked_at(self) -> int: ...
    @property
    def deadline(self) -> int | None: ...
    @property
    def mean_steps(self) -> float | None: ...
    @property
    def priority(self) -> float:
        """Above 0: how much sooner it should end than others of its tenant that are like it."""
        ...

    @property
    def sessions(self) -> Mapping[str, SessionView]: ...
    @property
    def service_us(self) -> float: ...
    @property
    def cost_us(self) -> float: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def remaining(self) -> RemainingWork:
        """What the agent type's graph expects from now on, as of its last step."""
        ...

    @property
    def score(self) -> float: ...
    @property
    def score_at(self) -> int: ...


class SessionView(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def workflow(self) -> WorkflowView: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def state(self) -> SessionState: ...
    @property
    def home(self) -> EngineView | None: ...
    @property
    def assigned(self) -> EngineView | None: ...
    @property
    def admitted_at(self) -> int: ...
    @property
    def committed_tokens(self) -> int: ...
    @property
    def growth_tokens(self) -> int: ...
    @property
    def resident_tokens(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def tool(self) -> str | None: ...
    @property
    def acting_since(self) -> int: ...
    @property
    def num_prefetches(self) -> int: ...


class RequestView(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def session(self) -> SessionView: ...
    @property
    def arrived(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def expected_output_tokens(self) -> int: ...
    @property
    def dispatched(self) -> int | None: ...
    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that its engine did not compute; 0 until it has started."""
        ...


class EngineView(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def kv_capacity_tokens(self) -> int: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_queued(self) -> int: ...
    @property
    def committed_tokens(self) -> int: ...
    @property
    def growth_tokens(self) -> int: ...
    @property
    def num_sessions(self) -> int: ...
    @property
    def sessions(self) -> Mapping[str, SessionView]:
        """Unfinished ones that count here, by id."""
        ...

    @property
    def turns(self) -> Iterable[tuple[int, float]]:
        """When sessions gave way to waiting ones here, oldest first, and the GPU time of computing
        their context again."""
        ...

    @property
    def resident_tokens(self) -> int: ...
    @property
    def memory_pressure(self) -> float: ...
    @property
    def idle_since(self) -> int | None: ...
    @property
    def shared_kv(self) -> str | None: ...
    @property
    def draining(self) -> bool: ...
    def cost_us(self, uncached_tokens: int, output_tokens: int) -> float: ...


class ClusterView(Protocol):
    """The whole cluster, as of ``now``."""

    @property
    def now(self) -> int: ...
    @property
    def num_epochs(self) -> int: ...
    @property
    def num_arrived(self) -> int: ...
    @property
    def engines(self) -> Sequence[EngineView]:
        """Those that may be given work."""
        ...

    @property
    def virtual_time(self) -> float:
        """KV token-seconds that a workflow there from the beginning would have held by now, had
        those unfinished at each time shared all memory equally."""
        ...

    def entitled_tokens(self, tenant: TenantView) -> float:
        """Its part of all KV memory, by weight among the tenants with unfinished workflows."""
        ...

    def load(self, measure: Measure, engine: EngineView) -> float:
        """The engine's load by one of the measures of ``loads``."""
        ...

    def least_loaded(self, measure: Measure, salt: str) -> EngineView:
        """The engine with the least load; ties by the dice, with ``salt``."""
        ...

    @property
    def return_times(self) -> ReturnTimes: ...
    @property
    def graphs(self) -> GraphStore: ...
    def oldest_queued(self, engine: EngineView) -> RequestView | None:
        """The request that has been longest in the scheduler's queue for this engine."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    engine: EngineView
    reason: str
    move_kv: bool = False
    """Whether the session's KV should be copied there rather than computed again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    admit: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep a session's idle KV until ``until``; ``score`` is its chance of reuse."""

    until: int
    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class Steal:
    request: RequestView
    target: EngineView
    reason: str


class AdmissionPolicy(Protocol):
    """May this session start now, given the KV working set? Asked for sub-agents, too."""

    def admit(self, request: RequestView, cluster: ClusterView) -> Verdict: ...

    def stay(self, request: RequestView, cluster: ClusterView) -> Verdict:
        """May a session that is back from its tool go on? If not, it waits like a newcomer."""
        ...

    def outstay(self, request: RequestView, first: RequestView, cluster: ClusterView) -> Verdict:
        """The same, while ``first`` waits to be let in."""
        ...

    def makes(self, request: RequestView, wait_us: int, cluster: ClusterView) -> Verdict:
        """Can the workflow make its deadline? If not it is refused, and the reason tells the client
        why. Asked once, when the first request of one with a deadline arrives; ``wait_us``: what it
        will probably wait for admission."""
        ...

    def growth_tokens(self, session: SessionView, tokens: int, cluster: ClusterView) -> int:
        """What a session with a context of ``tokens`` is expected to need beyond them."""
        ...

    def absence_us(self, session: SessionView, cluster: ClusterView) -> int:
        """For how long a session that has gone to its tool counts in the working set."""
        ...


class FairnessPolicy(Protocol):
    """Which tenants may go next?

    Tenants are served by start-time fair queueing: in every queue a tenant's virtual time advances
    by what it is given there, divided by its share.
    ``fairness.WeightedShares`` has the usual answers to all but the first.
    """

    def limit(self, least: float) -> float:
        """The latest virtual time at which a tenant may send its next request if the waiting tenant
        that is furthest behind is at ``least``. Never decreases as that grows."""
        ...

    def start_limit(self, least: float) -> float:
        """The same for starting the next workflow, microseconds."""
        ...

    def forecast_cost(
        self, request: RequestView, uncached_tokens: int, engine: EngineView
    ) -> float:
        """What a request is charged when it is sent to the engine: the unit of virtual time."""
        ...

    def final_cost(
        self, request: RequestView, uncached_tokens: int, output_tokens: int, engine: EngineView
    ) -> float:
        """What it is charged in all, now that it has finished."""
        ...

    def urgency(self, workflow: WorkflowView, cluster: ClusterView) -> float:
        """What one workflow adds to its tenant's urgency; asked anew every epoch."""
        ...

    def share(self, tenant: TenantView, urgency: float) -> float:
        """The tenant's share, above 0, from the sum of its workflows' urgencies."""
        ...

    def preempt(
        self, head: RequestView, running: Sequence[RequestView], cluster: ClusterView
    ) -> RequestView | None:
        """Which running request should give way to the head of its engine's queue, if any."""
        ...


class OrderingPolicy(Protocol):
    """Which of its requests?"""

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        """The smallest goes first; asked once, when the request is queued."""
        ...


@runtime_checkable
class ChoosingPolicy(OrderingPolicy, Protocol):
    """An ordering that also looks at each turn, at a price linear in what waits."""

    def choose(self, heads: Sequence[RequestView], cluster: ClusterView) -> RequestView:
        """Whose turn it is in the queue of an engine, of the first request by key of every
        workflow that may go next; never none, smallest key first."""
        ...


@runtime_checkable
class ScoringPolicy(OrderingPolicy, Protocol):
    """An ordering for which the scheduler keeps a number with every workflow, its ``score``."""

    def first_score(self, request: RequestView, cluster: ClusterView) -> float:
        """The workflow's when its first request has arrived, before that is queued."""
        ...

    def next_score(self, request: RequestView, output_tokens: int, cluster: ClusterView) -> float:
        """The workflow's from now on; asked whenever one of its requests has finished."""
        ...


class RoutingPolicy(Protocol):
    """Which engine, if any yet?"""

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        """None: keep it queued, ask again next epoch. ``cluster.engines`` is never empty."""
        ...


class RetentionPolicy(Protocol):
    """Which KV may not go yet, until when, at what score?"""

    @property
    def release_finished(self) -> bool:
        """Whether KV that nobody will ask for again is freed at once."""
        ...

    @property
    def protect_queued(self) -> bool:
        """Whether KV of a session whose next request is here stays until that runs."""
        ...

    def hold(self, session: SessionView, cluster: ClusterView) -> Hold | None:
        """Asked at the end of every step; None leaves the KV to the eviction policy."""
        ...


class OffloadPolicy(Protocol):
    """Keep in GPU memory, move to host memory, or drop?"""

    def offload_now(self, session: SessionView, cluster: ClusterView) -> bool:
        """Whether to move the session's KV to host memory at the end of a step, ahead of need."""
        ...

    @property
    def store(self) -> bool:
        """Whether engines copy computed KV to host memory, where they have some."""
        ...


class StealingPolicy(Protocol):
    """Which sessions should move?"""

    def steals(self, cluster: ClusterView) -> Sequence[Steal]:
        """Asked once per epoch while anything is queued."""
        ...


class PrefetchPolicy(Protocol):
    """Whose KV should be ready before it is asked for?"""

    def at(self, session: SessionView, cluster: ClusterView) -> int | None:
        """When to prepare the KV of a session whose tool runs; asked at the start of the gap."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """Everything that a preset chooses."""

    routing: RoutingPolicy
    ordering: OrderingPolicy
    eviction: EvictionPolicy
    admission: AdmissionPolicy | None = None
    fairness: FairnessPolicy | None = None
    retention: RetentionPolicy | None = None
    offload: OffloadPolicy | None = None
    stealing: StealingPolicy | None = None
    prefetch: PrefetchPolicy | None = None
    max_waiting_per_engine: int | None = None
    """Requests sent to an engine before it has started them; more wait in the scheduler, where they
    can still be ordered and stolen. None: all are sent at once and the engine queues them."""
    epoch_us: int = 100_000
