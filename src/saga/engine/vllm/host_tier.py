"""What the host tier of one engine keeps of sessions' KV, and in which order that goes.

A tier is a number of equal slots in host memory. It holds copies of blocks, so that nothing is lost
with a slot but time. Sessions' copies are ranked by the same policy, with the same scores and
promises, as their blocks on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from saga.clock import Clock
from saga.core.cache import DEFAULT_REUSE, EvictionPolicy
from saga.core.errors import InvariantError
from saga.engine.vllm.hints import Hints
from saga.engine.vllm.holdings import Holdings


@dataclass(slots=True)
class Visit:
    """One request of a session, from its arrival until the tier has been told of its end."""

    session: str | None
    return_s: float | None
    """When the session is expected back; None: nothing was said."""
    ends: bool
    """Nobody will come back."""
    store: bool | None = None
    """Whether its KV is copied; decided once, so that no copy has a hole."""
    until: int = 0
    score: float = DEFAULT_REUSE


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRule:
    """What is worth a copy: KV that will be wanted, not at once, and that might not last."""

    min_gap_s: float
    """A session that is back sooner finds its KV on the device."""
    min_pressure: float
    """The part of the device's blocks that is used or claimed by sessions, from which on KV of idle
    sessions is in danger."""

    def worth(self, gap_s: float | None, pressure: float) -> bool:
        """A gap that nobody knows counts as a long one."""
        return (gap_s is None or gap_s >= self.min_gap_s) and pressure >= self.min_pressure


ALWAYS = StoreRule(min_gap_s=0.0, min_pressure=0.0)
"""For tiers that other engines read: a session can be moved at any time."""


class HostTier:
    """Slots of one tier. ``usual_gap_s`` and ``pressure`` are asked when a copy is considered."""

    def __init__(
        self,
        num_slots: int,
        policy: EvictionPolicy,
        rule: StoreRule,
        *,
        tenant_share: float,
        clock: Clock,
        usual_gap_s: Callable[[], float | None],
        pressure: Callable[[], float],
    ) -> None:
        self.num_slots = num_slots
        self.num_stored = 0
        """Blocks that were copied, since the start."""
        self.num_skipped = 0
        """Blocks that were not worth it, since the start."""
        self.num_evicted = 0
        self._rule = rule
        self._clock = clock
        self._usual_gap_s = usual_gap_s
        self._pressure = pressure
        self._holdings = Holdings(
            num_slots, policy, tenant_share=tenant_share, evicted=lambda chain: None
        )
        self._plain: OrderedDict[int, None] = OrderedDict()
        """Idle slots that no session claims, the one used least recently first."""
        self._visits: dict[str, Visit] = {}

    # ---- requests

    def arrived(self, request: str, hints: Hints) -> None:
        self._visits[request] = Visit(hints.session, hints.return_s, hints.final)
        chain = self._holdings.chains.get(hints.session or "")
        if chain is not None:
            self._holdings.protect(chain, True, self._clock.now_us())

    def wants(self, request: str, count: int) -> bool:
        """Whether so many blocks of the request should be copied."""
        visit = self._visits.get(request)
        if visit is None:  # a stock scheduler announces nobody
            return True
        if visit.store is None:
            returns = visit.session is not None and not visit.ends
            gap_s = self._usual_gap_s() if visit.return_s is None else visit.return_s
            visit.store = returns and self._rule.worth(gap_s, self._pressure())
        if not visit.store:
            self.num_skipped += count
        return visit.store

    def finished(self, request: str, slots: Sequence[int]) -> None:
        """The request has ended and its context, from head to tail, has copies in these slots."""
        visit = self._visits.get(request)
        if visit is None or visit.session is None:
            for slot in reversed(slots):  # the head goes last
                if slot in self._plain:
                    self._plain.move_to_end(slot)
        elif not visit.ends and slots:
            self._claim(visit.session, slots)
            waiting = self._is_here(visit.session, but=request)
            now = self._clock.now_us()
            self._holdings.retain(visit.session, visit.until, visit.score, now, waiting=waiting)

    def left(self, request: str) -> None:
        """Nothing more will be heard of the request."""
        visit = self._visits.pop(request, None)
        chain = None if visit is None else self._holdings.chains.get(visit.session or "")
        if chain is not None and not self._is_here(chain.name):
            self._holdings.protect(chain, False, self._clock.now_us())

    # ---- sessions

    def retain(self, session: str, until: int, score: float | None) -> None:
        """As on the device: it should stay until then, at this chance of reuse (None: as it is)."""
        for visit in self._visits.values():
            if visit.session == session:
                visit.until = until
                visit.score = visit.score if score is None else score
        chain = self._holdings.chains.get(session)
        if chain is not None:
            score = chain.p_reuse if score is None else score
            waiting = self._is_here(session)
            self._holdings.retain(session, until, score, self._clock.now_us(), waiting=waiting)

    def promised(self, session: str) -> int:
        """Until when it should stay."""
        chain = self._holdings.chains.get(session)
        return 0 if chain is None else chain.until

    def release(self, session: str) -> None:
        """Nobody will ask for it again: what only this session claimed goes before all other."""
        for visit in self._visits.values():
            visit.ends |= visit.session == session
        if session in self._holdings.chains:
            for slot in self._holdings.release(session, self._clock.now_us()):
                self._plain[slot] = None
                self._plain.move_to_end(slot, last=False)

    # ---- slots

    def idle(self, slot: int) -> None:
        """Nothing reads or writes it: it may go."""
        if self._holdings.owners[slot] is None:
            self._plain[slot] = None
        else:
            self._holdings.hold([slot], self._clock.now_us())

    def busy(self, slot: int) -> None:
        """A slot that was idle is read."""
        if self._holdings.owners[slot] is None:
            del self._plain[slot]
        else:
            self._holdings.use(slot)

    def lost(self, slot: int) -> None:
        """A slot that is not idle does not hold anything."""
        if self._holdings.owners[slot] is not None:
            self._spare(self._holdings.lose(slot))

    def evict(self, wanted: int, spared: Iterable[int]) -> list[int] | None:
        """Gives up exactly so many idle slots, none of those that are spared; None: too few."""
        kept = [slot for slot in spared if self._is_idle(slot)]
        for slot in kept:
            self.busy(slot)
        taken: list[int] | None = None
        if wanted <= len(self._plain) + self._holdings.num_held:
            plain = min(wanted, len(self._plain))
            taken = [self._plain.popitem(last=False)[0] for _ in range(plain)]
            missing = wanted - plain
            if missing:
                reclaimed = self._holdings.reclaim(missing, self._clock.now_us())
                taken += reclaimed[:missing]
                self._spare(reclaimed[missing:])  # a policy can take more than is wanted
            self.num_evicted += wanted
        for slot in kept:
            self.idle(slot)
        return taken

    def clear(self) -> None:
        """All slots are empty."""
        for session in list(self._holdings.chains):
            self._holdings.release(session, self._clock.now_us())
        self._plain.clear()

    def resident(self, session: str) -> int:
        """Slots that hold the session's context."""
        chain = self._holdings.chains.get(session)
        return 0 if chain is None else len(chain.blocks)

    def stats(self) -> dict[str, Any]:
        """Slots; what was stored, skipped and evicted is counted since the start."""
        return {
            "host_slots": self.num_slots,
            "host_sessions": len(self._holdings.chains),
            "host_stored": self.num_stored,
            "host_skipped": self.num_skipped,
            "host_evicted": self.num_evicted,
        }

    def check(self, idle: Callable[[int], bool]) -> None:
        """Each idle slot is known as one, claimed or not. Raises InvariantError."""
        self._holdings.check(idle)
        for slot, owner in enumerate(self._holdings.owners):
            if (slot in self._plain) != (owner is None and idle(slot)):
                raise InvariantError(f"slot {slot} is idle or not, and known as the contrary")

    # ---- inside

    def _is_idle(self, slot: int) -> bool:
        return slot in self._plain or self._holdings.holds(slot)

    def _is_here(self, session: str, but: str = "") -> bool:
        """Whether a request of it, other than that one, is known."""
        return any(visit.session == session and name != but for name, visit in self._visits.items())

    def _claim(self, session: str, slots: Sequence[int]) -> None:
        unclaimed = [slot for slot in slots if slot in self._plain]
        for slot in unclaimed:
            del self._plain[slot]
        now = self._clock.now_us()
        loose = self._holdings.claim(session, slots, range(1, len(slots) + 1), now)
        self._spare([*unclaimed, *loose])

    def _spare(self, slots: Sequence[int]) -> None:
        """These are idle; whether somebody claims them may have changed."""
        for slot in slots:
            self.idle(slot)
