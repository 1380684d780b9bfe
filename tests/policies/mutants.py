"""Policies with one thing wrong, each of them a policy in its own right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from saga.core.cache import CacheView, KVEntry
from saga.core.policy import (
    ClusterView,
    Hold,
    RequestView,
    Route,
    SessionView,
    Steal,
    TenantView,
    Verdict,
)
from saga.policies.agent_fair_share_paper import AgentFairSharePaper


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualRanks:
    """Which KV? Anyone's: the weights do not count."""

    static: ClassVar[bool] = False
    whole_entry: ClassVar[bool] = False
    clairvoyant: ClassVar[bool] = False

    def rank(self, entry: KVEntry, cache: CacheView) -> float:
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverHolds:
    """Which KV may not go? None, and nothing is scored."""

    release_finished: bool = False
    protect_queued: bool = False

    def hold(self, session: SessionView, cluster: ClusterView) -> Hold | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetsKv:
    """Which engine? The least loaded one, wherever the KV is."""

    def route(self, request: RequestView, cluster: ClusterView) -> Route | None:
        return Route(cluster.least_loaded("paper", request.id), "forgetful")


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualShares(AgentFairSharePaper):
    """Which tenant? All have the same share."""

    def share(self, tenant: TenantView, urgency: float) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverPreempts(AgentFairSharePaper):
    """Which tenant? As published, but nobody gives way."""

    def preempt(
        self, head: RequestView, running: Sequence[RequestView], cluster: ClusterView
    ) -> RequestView | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysAdmits:
    """May this workflow start? Yes."""

    def admit(self, request: RequestView, cluster: ClusterView) -> Verdict:
        return Verdict(True, "why not")

    def stay(self, request: RequestView, cluster: ClusterView) -> Verdict:
        return Verdict(True, "why not")

    def outstay(self, request: RequestView, first: RequestView, cluster: ClusterView) -> Verdict:
        return Verdict(True, "why not")

    def makes(self, request: RequestView, wait_us: int, cluster: ClusterView) -> Verdict:
        return Verdict(True, "why not")

    def growth_tokens(self, session: SessionView, tokens: int, cluster: ClusterView) -> int:
        return 0

    def absence_us(self, session: SessionView, cluster: ClusterView) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverSteals:
    """Which sessions should move? None."""

    def steals(self, cluster: ClusterView) -> Sequence[Steal]:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverPrefetches:
    """Whose KV should be ready? Nobody's."""

    def at(self, session: SessionView, cluster: ClusterView) -> int | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualKeys:
    """Which request? Whichever came into the queue first."""

    def key(self, request: RequestView, cluster: ClusterView) -> float:
        return 0.0
