"""Which sessions' KV stays: what a scheduler tells about requests, and what it is told."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from saga import wire
from saga.clock import Clock
from saga.core.cache import DEFAULT_REUSE
from saga.core.policy import Policies
from saga.engine.vllm.chain import Chain
from saga.engine.vllm.events import Events
from saga.engine.vllm.habits import Habits
from saga.engine.vllm.hints import Hints
from saga.engine.vllm.holdings import Holdings, num_common
from saga.engine.vllm.host_tier import HostTier
from saga.engine.vllm.prefixes import Prefixes, is_prefix, name_of
from saga.policies.tool_ttl import ToolTtl


class FreeQueue(Protocol):
    """Where blocks go that sessions gave up."""

    def add_loose(self, numbers: Sequence[int], *, first: bool = False) -> None: ...

    def go_first(self, numbers: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The KV of a request that gives it up."""

    blocks: Sequence[int]
    """From its head to its tail, full ones only."""
    ends: Sequence[int]
    """Tokens up to the end of each."""
    own: Sequence[int]
    """Those that no other request uses."""
    tokens: int

    def up_to(self, tokens: int) -> Context:
        """Its first blocks, that end there or before."""
        count = bisect_right(self.ends, tokens)
        return Context(blocks=self.blocks[:count], ends=self.ends[:count], own=(), tokens=tokens)


class Keeper:
    """Decides for each session how long its KV stays. Microseconds of ``clock`` throughout."""

    def __init__(
        self,
        num_blocks: int,
        policies: Policies,
        *,
        tenant_share: float,
        clock: Clock,
        events: Events,
    ) -> None:
        self.clock = clock
        self.events = events
        self.holdings = Holdings(
            num_blocks, policies.eviction, tenant_share=tenant_share, evicted=self._evicted
        )
        self.queue: FreeQueue
        """Set as soon as it is there: it needs the holdings."""
        self.host: HostTier | None = None
        """Set if there is one: it is told what is promised of sessions."""
        ttl = policies.retention
        self.habits = Habits(ttl if isinstance(ttl, ToolTtl) else None)
        self.num_sessions_evicted = 0
        self._here: dict[str, int] = {}
        """Unfinished requests, by session."""
        self._prefixes = Prefixes()

    # ---- requests

    def arrived(self, session: str, hints: Hints, prompt_tokens: int) -> None:
        """A request is here: until it has run, what its session left behind stays."""
        if hints.prefetch:  # its session is still away
            return
        now = self.clock.now_us()
        self.habits.arrived(session, prompt_tokens, now)
        self._here[session] = self._here.get(session, 0) + 1
        chain = self.holdings.chains.get(session)
        if chain is not None:
            self.holdings.protect(chain, True, now)

    def finished(self, session: str, hints: Hints, context: Context) -> None:
        """A request ended, one way or another; its blocks are freed after this."""
        now = self.clock.now_us()
        if not hints.prefetch:
            self._leave(session, context.tokens, now)
        if hints.final:
            self.queue.go_first(context.own)
            self.release(session)
            return
        chain = self.holdings.chains.get(session)
        if not context.blocks:  # it never ran
            if chain is not None:
                self.holdings.protect(chain, session in self._here, now)
            return
        self.queue.add_loose(self.holdings.claim(session, context.blocks, context.ends, now))
        self.events.note(wire.KV_STORED, session, self.resident(session))
        if hints.prefetch:  # what was promised before holds
            self.extend(session, hints.ttl_s or 0.0)
            return
        if hints.ttl_s is None:
            ttl_us, score = self.habits.hold(context.tokens, hints.return_s)
        else:
            ttl_us, score = int(hints.ttl_s * 1e6), DEFAULT_REUSE
        self._retain(session, now + ttl_us, score if hints.score is None else hints.score, now)

    def preempted(self, session: str, context: Context) -> None:
        """A request has to wait again; its blocks are freed after this, and stay until it has run
        as if its session had left them."""
        if context.blocks:
            now = self.clock.now_us()
            self.queue.add_loose(self.holdings.claim(session, context.blocks, context.ends, now))
            self.holdings.protect(self.holdings.chains[session], True, now)

    def found(self, context: Context) -> None:
        """A request without a session ended, which had found this much of its prompt in the cache.

        What its like have in common is kept, as long as there are sessions to keep it from.
        """
        chains = self.holdings.chains
        if not context.blocks or len(chains) == sum(name in chains for name in self._prefixes):
            return
        now, name = self.clock.now_us(), name_of(context.blocks)
        stay_us = self._prefixes.found(name, now)
        blocks, known = context.blocks, chains.get(name)
        if known is not None:
            blocks = blocks[: num_common(known.blocks, blocks)]
        self.queue.add_loose(self.holdings.claim(name, blocks, context.ends, now))
        self.holdings.retain(name, now + stay_us, DEFAULT_REUSE, now)

    def _leave(self, session: str, tokens: int, now: int) -> None:
        left = self._here.get(session, 1) - 1
        if left:
            self._here[session] = left
        else:
            self._here.pop(session, None)
            self.habits.left(session, tokens, now)

    # ---- sessions

    def knows(self, session: str) -> bool:
        """Whether a request of it was seen lately."""
        return session in self.holdings.chains or self.habits.knows(session)

    def resident(self, session: str) -> int:
        """Tokens of its last finished request whose KV is here."""
        chain = self.holdings.chains.get(session)
        return 0 if chain is None else chain.resident_tokens

    def retain(self, session: str, ttl_s: float, score: float | None) -> None:
        """It should stay for so long, counted from now; 0: it is only scored."""
        now = self.clock.now_us()
        until = now + int(ttl_s * 1e6)
        chain = self.holdings.chains.get(session)
        if chain is not None:
            self._retain(session, until, chain.p_reuse if score is None else score, now)
        elif self.host is not None:
            self.host.retain(session, until, score)

    def extend(self, session: str, ttl_s: float) -> None:
        """Like ``retain`` with the score it has, but never ends earlier."""
        now = self.clock.now_us()
        until = now + int(ttl_s * 1e6)
        chain = self.holdings.chains.get(session)
        if chain is not None:
            self._retain(session, max(chain.until, until), chain.p_reuse, now)
        elif self.host is not None:
            self.host.retain(session, max(self.host.promised(session), until), None)

    def release(self, session: str) -> None:
        """Nobody will ask for it again: its KV goes before all other."""
        self.habits.ended(session)
        if self.host is not None:
            self.host.release(session)
        if session in self.holdings.chains:
            loose = self.holdings.release(session, self.clock.now_us())
            self.queue.add_loose(loose, first=True)
            self.events.note(wire.KV_RELEASED, session, 0)

    def forget(self) -> None:
        """The prefix cache was reset: no block holds anything."""
        for session in list(self.holdings.chains):
            self.queue.add_loose(self.holdings.release(session, self.clock.now_us()))
            if not is_prefix(session):
                self.events.note(wire.KV_EVICTED, session, 0)

    def stats(self) -> dict[str, Any]:
        """What there is now, and what was counted since the start."""
        now = self.clock.now_us()
        chains = [one for one in self.holdings.chains.values() if not is_prefix(one.name)]
        retained = [chain for chain in chains if chain.retained_until > now]
        return {
            "num_sessions": len(chains),
            "num_prefixes": len(self.holdings.chains) - len(chains),
            "num_sessions_retained": len(retained),
            "num_sessions_evicted": self.num_sessions_evicted,
            "session_blocks": self.holdings.num_held,
            "retained_blocks": sum(chain.tokens for chain in retained),
            "evicted_blocks": self.holdings.num_evicted,
            "events_endpoint": self.events.endpoint,
        }

    # ---- inside

    def _retain(self, session: str, until: int, score: float, now: int) -> None:
        waiting = session in self._here
        self.holdings.retain(session, until, score, now, waiting=waiting)
        if self.host is not None:
            self.host.retain(session, until, score)
        self.events.note(wire.KV_RETAINED, session, self.resident(session))

    def _evicted(self, chain: Chain) -> None:
        if is_prefix(chain.name):
            return
        self.num_sessions_evicted += not chain.blocks
        self.events.note(wire.KV_EVICTED, chain.name, chain.resident_tokens)
