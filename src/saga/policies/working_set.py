from __future__ import annotations

from dataclasses import dataclass
from math import log1p

from saga.core.fairness import gpu_us
from saga.core.policy import (
    ClusterView,
    EngineView,
    RequestView,
    SessionView,
    TenantView,
    Verdict,
)
from saga.core.return_times import owner_of

TURNING_US = 1_800_000_000
"""Time over which the price of turns is counted: half an hour."""
HURRY = 1.25
"""Who waits for so many times the patience gets anybody's memory, and for twice the price."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingSet:
    """May this session start? If on some engine the contexts of the unfinished sessions, their
    expected growth and the newcomer stay within ``kappa`` of the KV capacity.

    An engine without any session always admits, so nothing waits for ever. A session counts while
    it is away for as long as its tool usually takes: nobody knows which sessions are over.

    May one that is back from its tool go on? Yes, while the contexts on its engine fit into the KV
    memory, older workflows first, and nobody has waited for ``patience_s``. Then sessions give way
    that were in for as long themselves, the ones that are cheapest to compute again first, at a
    price of ``turning`` at most.
    """

    kappa: float = 0.9
    """The rest is for sessions that grow by more than expected."""
    reserve: float = 0.1
    """Part of the KV capacity, beyond ``kappa``, for tenants that have less than their share. The
    part before it is not for sub-agents of the others: one workflow may fork very many."""
    patience_s: float = 350.0
    """Usual clients give up after 600."""
    turning: float = 0.05
    """Part of the GPU time that contexts may take that are computed again after a turn."""

    absent_percentile: float = 0.95
    absent_unknown_s: float = 60.0
    """After a tool that was never seen to return."""
    absent_floor_s: float = 5.0
    """At least; also after a step without a tool that was never seen to be followed by another."""

    refuse_hopeless: bool = True
    """Whether a workflow that cannot make its deadline is refused when it begins."""
    hopeless_quantile: float = 0.1
    """Of the time that workflows of its type took without queueing: a workflow that has less left
    cannot make its deadline."""

    def __post_init__(self) -> None:
        if not 0 <= self.reserve < self.kappa:
            raise ValueError("reserve must not be below 0, and kappa be above it")
        if not (self.patience_s > 0 and self.turning >= 0):
            raise ValueError("patience_s must be above 0 and turning not below 0")
        if not 0 < self.absent_percentile <= 1:
            raise ValueError("absent_percentile must be above 0 and at most 1")
        if not (self.absent_unknown_s >= 0 and self.absent_floor_s >= 0):
            raise ValueError("absent_unknown_s and absent_floor_s must not be below 0")
        if not 0 < self.hopeless_quantile < 1:
            raise ValueError("hopeless_quantile must be above 0 and below 1")

    def admit(self, request: RequestView, cluster: ClusterView) -> Verdict:
        need, kappa = self._needs(request, cluster)
        for engine in cluster.engines:
            if excess(engine, need, kappa) <= 0 or engine.num_sessions == 0:
                return Verdict(True, "its working set fits")
        return Verdict(False, "no engine has KV memory for its working set")

    def stay(self, request: RequestView, cluster: ClusterView) -> Verdict:
        session = request.session
        engine = session.assigned or session.home
        if engine is None or engine.draining:
            return self.admit(request, cluster)
        need = request.prompt_tokens + request.expected_output_tokens
        taken = engine.committed_tokens - session.committed_tokens
        if taken and need + taken > engine.kv_capacity_tokens:
            rank = self._rank(session, cluster)
            kept = [one for one in engine.sessions.values() if self._rank(one, cluster) < rank]
            taken = sum(one.committed_tokens for one in kept)
            if need + taken > engine.kv_capacity_tokens:
                return Verdict(False, f"contexts on {engine.id} have outgrown its KV memory")
        return Verdict(True, "its working set fits")

    def outstay(self, request: RequestView, first: RequestView, cluster: ClusterView) -> Verdict:
        session, engine = request.session, request.session.assigned
        waited = (cluster.now - first.arrived) / (self.patience_s * 1e6)
        if (
            waited <= 1.0
            or engine is None
            or engine.draining
            or not self._had_turn(session, cluster)
        ):
            return Verdict(True, "its turn is not over")
        kin = first.session.workflow is session.workflow
        if kin or not self._is_due(first.session.workflow.tenant, session.workflow.tenant, cluster):
            return Verdict(True, "those who wait have their share of memory")
        in_hurry = waited > HURRY
        if not in_hurry and self._cheapest(engine, cluster) is not session:
            return Verdict(True, "another session of its engine is cheaper to compute again")
        price = engine.cost_us(session.context_tokens, 0) + sum(
            cost for at, cost in engine.turns if at > cluster.now - TURNING_US
        )
        if price > self.turning * TURNING_US * (2.0 if in_hurry else 1.0):
            return Verdict(True, "turns cost too much already")
        if not self._makes_room(session, engine, first, cluster):
            return Verdict(True, "its memory would not do for those who wait")
        return Verdict(False, f"its turn is over: session {first.session.id} has waited long")

    def _had_turn(self, session: SessionView, cluster: ClusterView) -> bool:
        return cluster.now - session.admitted_at > self.patience_s * 1e6

    def _is_due(self, waits: TenantView, stays: TenantView, cluster: ClusterView) -> bool:
        """Whether the first tenant should have memory of the second."""
        has_more = waits.committed_tokens * stays.weight > stays.committed_tokens * waits.weight
        return not (has_more or self._is_over(waits, cluster))

    def _cheapest(self, engine: EngineView, cluster: ClusterView) -> SessionView:
        """Whose context takes the least to be computed again, of those that had their turn."""
        had_turn = [one for one in engine.sessions.values() if self._had_turn(one, cluster)]
        return min(had_turn, key=lambda one: one.committed_tokens)

    def _makes_room(
        self, session: SessionView, engine: EngineView, first: RequestView, cluster: ClusterView
    ) -> bool:
        """Whether ``first`` fits where the session was, or nowhere better."""
        need, kappa = self._needs(first, cluster)
        freed = session.committed_tokens + session.growth_tokens
        nearest = min(cluster.engines, key=lambda one: excess(one, need, kappa))
        return engine is nearest or excess(engine, need - freed, kappa) <= 0

    def _needs(self, request: RequestView, cluster: ClusterView) -> tuple[int, float]:
        """Tokens, and the part of an engine's memory up to which it may be filled with them."""
        need = request.prompt_tokens
        need += self.growth_tokens(request.session, need, cluster)
        if self._is_owed(request.session.workflow.tenant, need, cluster):
            return need, self.kappa + self.reserve
        is_root = request.session.parent is None
        return need, self.kappa if is_root else self.kappa - self.reserve

    def _rank(self, session: SessionView, cluster: ClusterView) -> tuple[bool, int, str]:
        """Who keeps memory: those of tenants within their share, and the older ones."""
        workflow = session.workflow
        return self._is_over(workflow.tenant, cluster), workflow.ranked_at, session.id

    def _is_over(self, tenant: TenantView, cluster: ClusterView) -> bool:
        """Whether it has more memory than its share, some of which is for growth, and not all."""
        entitled = cluster.entitled_tokens(tenant)
        if self.kappa * tenant.committed_tokens <= entitled:
            return False
        return entitled < sum(engine.kv_capacity_tokens for engine in cluster.engines)

    def _is_owed(self, tenant: TenantView, need: int, cluster: ClusterView) -> bool:
        """Whether its working set stays within its share of the memory."""
        return tenant.committed_tokens + need <= self.kappa * cluster.entitled_tokens(tenant)

    def makes(self, request: RequestView, wait_us: int, cluster: ClusterView) -> Verdict:
        deadline = request.session.workflow.deadline
        if deadline is None or not self.refuse_hopeless:
            return Verdict(True, "no deadline counts")
        left_us = deadline - cluster.now
        if left_us <= 0:
            return Verdict(False, f"its deadline was {_seconds(-left_us)} ago")
        least_us, what = self._least_us(request.session, cluster)
        if least_us + wait_us <= left_us or not least_us:
            return Verdict(True, "it may make its deadline")
        percent = 100 * (1 - self.hopeless_quantile)
        wait = f", after a wait of about {_seconds(wait_us)} for memory" if wait_us else ""
        return Verdict(
            False,
            f"its deadline is in {_seconds(left_us)}, and {percent:g} % of workflows {what} "
            f"take at least {_seconds(least_us)}{wait}",
        )

    def _least_us(self, session: SessionView, cluster: ClusterView) -> tuple[float, str]:
        """What all workflows like this one but the fastest take at least without queueing, 0 where
        nothing is known, and which workflows these are."""
        workflow = session.workflow
        fastest_us = cluster.graphs[workflow.agent_type].fastest_us(self.hopeless_quantile)
        if fastest_us is not None:
            owner = owner_of(workflow.agent_type)
            return fastest_us, f"of type {workflow.agent_type.removeprefix(f'{owner}/')}"
        if workflow.mean_steps is None:
            return 0.0, ""
        # Numbers of steps are close to geometric, and so the time is close to exponential.
        mean_us = gpu_us(cluster.graphs.remaining(session), cluster)
        least_us = -log1p(-self.hopeless_quantile) * mean_us
        return least_us, f"of {workflow.mean_steps:g} steps on average"

    def growth_tokens(self, session: SessionView, tokens: int, cluster: ClusterView) -> int:
        workflow = session.workflow
        return cluster.graphs[workflow.agent_type].growth_tokens(tokens, workflow.mean_steps)

    def absence_us(self, session: SessionView, cluster: ClusterView) -> int:
        owner = owner_of(session.workflow.agent_type)
        usual = cluster.return_times.quantile(session.tool, self.absent_percentile, owner=owner)
        if usual is None:
            usual = 0 if session.tool is None else int(self.absent_unknown_s * 1e6)
        return max(usual, int(self.absent_floor_s * 1e6))


def excess(engine: EngineView, need: int, kappa: float) -> float:
    """By how many tokens the engine would be filled too far."""
    taken = engine.committed_tokens + engine.growth_tokens
    return taken + need - kappa * engine.kv_capacity_tokens


def _seconds(us: float) -> str:
    return f"{us / 1e6:.1f} s"
