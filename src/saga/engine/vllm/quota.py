"""How much of an engine's KV each tenant's retained sessions may keep."""

from __future__ import annotations

from saga.core.cache import CacheView, EvictionPolicy
from saga.engine.vllm.chain import Chain

SLACK = 0.95
"""A tenant above its cap goes down to this part of it, so that not every step looks again."""


def tenant_of(session: str) -> str:
    """What stands before the first ``/``; sessions without one share a tenant."""
    tenant, slash, _ = session.partition("/")
    return tenant if slash else ""


class Quotas:
    """A cap, in blocks, on what one of several tenants has protected; none on the only one."""

    def __init__(self, cap: int, policy: EvictionPolicy) -> None:
        self._cap = cap
        self._rank = policy.rank
        self._chains: dict[str, dict[Chain, None]] = {}
        self._at_most: dict[str, int] = {}
        """No tenant has more than this protected; made exact when it exceeds the cap."""

    def add(self, chain: Chain) -> None:
        self._chains.setdefault(tenant_of(chain.name), {})[chain] = None

    def discard(self, chain: Chain) -> None:
        tenant = tenant_of(chain.name)
        del self._chains[tenant][chain]
        if not self._chains[tenant]:
            del self._chains[tenant]
            self._at_most.pop(tenant, None)

    def excess(self, chain: Chain, now: int) -> list[Chain]:
        """The tenant's chains that lose their protection now that this one has been given it.

        O(1) as long as the tenant stays under its cap, else O(its sessions), which then is not
        needed again before a twentieth of the cap was protected anew.
        """
        tenant = tenant_of(chain.name)
        at_most = self._at_most.get(tenant, 0) + len(chain.blocks)
        losers: list[Chain] = []
        if at_most > self._cap and len(self._chains) > 1:
            protected = [
                other
                for other in self._chains[tenant]
                if other.retained_until > now and (other.tokens or other is chain)
            ]
            at_most = sum(other.owned for other in protected)
            if at_most > SLACK * self._cap:
                losers, at_most = self._worst(protected, at_most, now)
        self._at_most[tenant] = at_most
        return losers

    def _worst(self, protected: list[Chain], blocks: int, now: int) -> tuple[list[Chain], int]:
        """Those that would go first, and how many blocks the others have."""
        idle = max(1, now - min(chain.last_access for chain in protected))
        view = CacheView(now, idle, max(1, *(chain.owned for chain in protected)))
        protected.sort(key=lambda chain: self._rank(chain, view))
        losers = []
        while protected and blocks > SLACK * self._cap:
            losers.append(protected.pop())
            blocks -= losers[-1].owned
        return losers, blocks
