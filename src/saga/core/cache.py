"""Who holds which idle KV on one engine, and what goes first.

``RetentionIndex`` is shared by the simulated engines and by real ones: it ranks *entries* (the idle
KV of one lineage), and leaves blocks, hashes and prefix trees to its host.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

FOREVER = 1 << 62
"""A retention that ends only when its session runs again or is released."""

DEFAULT_REUSE = 1.0
"""P_reuse of KV about which nobody said anything."""

BATCH_SHARE = 16
"""In batches, one scan names this part of the candidates (one in so many), at least one."""


@dataclass(slots=True, kw_only=True, eq=False)
class KVEntry:
    """Idle KV that is evicted from its tail. Identity is the object."""

    session: str | None
    """Its owner; None for KV shared by many (a system prefix)."""
    tokens: int
    last_access: int
    """When its last user left."""
    turn: int = 0
    """Orders those whose last users left at the same time, for static policies: the smallest goes
    first, and of equal ones the one that was listed first."""
    p_reuse: float = DEFAULT_REUSE
    retained_until: int = 0
    released: bool = False
    """Nobody will ask for it again."""
    next_use: int = FOREVER
    """The true time of its next use; filled in for clairvoyant policies only."""
    ticket: int = 0
    """Written by the index: which of its places in the heap is valid; 0 while it is not listed."""


@dataclass(frozen=True, slots=True)
class CacheView:
    """What an eviction policy may relate an entry to."""

    now: int
    max_idle: int
    """Longest idle time among the candidates, at least 1 us."""
    max_tokens: int
    """Largest candidate, at least 1 token."""


_Place = tuple[float, int, int, KVEntry]
"""In a heap: key, turn, ticket, entry."""


class EvictionPolicy(Protocol):
    """Which KV goes first?"""

    static: ClassVar[bool]
    """Whether ``rank`` depends on the entry alone: ranked once, in O(log n)."""
    whole_entry: ClassVar[bool]
    """Whether a victim goes at once and whole; otherwise from its tail, as space is needed."""
    clairvoyant: ClassVar[bool]
    """Whether it reads ``next_use``; only offline bounds may."""

    def rank(self, entry: KVEntry, cache: CacheView) -> float:
        """The largest goes first."""
        ...


class RetentionIndex:
    """The idle entries of one engine: released ones go first, then unprotected ones by rank, and
    retained ones only when nothing else is left, the ones retained for ever last.

    A victim stays the victim until it is gone, in use again, or (static policies) outranked by a
    newcomer, so that space is taken from one session after another and not from all a little; it
    only has to wait while something is released. O(log n) per victim for static policies, one scan
    per victim for the others and for retained ones.

    ``batched`` is for engines with thousands of sessions: a scan names several victims, so that
    each costs O(log n) amortised, and one that becomes idle after a scan waits for the next one;
    but a retained victim gives way as soon as an unprotected entry is there.
    """

    def __init__(self, policy: EvictionPolicy, *, batched: bool = False) -> None:
        self.policy = policy
        self.batched = batched
        self._released: dict[KVEntry, None] = {}
        self._open: dict[KVEntry, None] = {}
        self._retained: dict[KVEntry, None] = {}
        self._ranked: list[_Place] = []
        self._expiring: list[_Place] = []
        self._victim: KVEntry | None = None
        self._named: deque[tuple[int, KVEntry]] = deque()
        """Victims to come of the last scan; valid with their ticket only."""
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._released) + len(self._open) + len(self._retained)

    def __contains__(self, entry: KVEntry) -> bool:
        return entry.ticket > 0

    def __iter__(self) -> Iterator[KVEntry]:
        yield from self._released
        yield from self._open
        yield from self._retained

    def add(self, entry: KVEntry, now: int) -> None:
        """The entry is idle from now on. O(log n)."""
        self._tickets += 1
        entry.ticket = self._tickets
        if entry.released:
            self._released[entry] = None
        elif entry.retained_until > now:
            self._retained[entry] = None
            self._push(self._expiring, entry.retained_until, entry)
        else:
            self._open_up(entry)

    def discard(self, entry: KVEntry) -> None:
        """The entry is in use again, or gone. O(1)."""
        self._released.pop(entry, None)
        self._open.pop(entry, None)
        self._retained.pop(entry, None)
        entry.ticket = 0
        if self._victim is entry:
            self._victim = None

    def update(self, entry: KVEntry, now: int) -> None:
        """Its retention, score or release changed. Does nothing while the entry is in use."""
        if entry in self:
            self.discard(entry)
            self.add(entry, now)

    @property
    def current(self) -> KVEntry | None:
        """The victim that is being taken from, if one was chosen or needs no choice."""
        return next(iter(self._released), self._victim)

    def victim(self, now: int) -> KVEntry | None:
        """The entry whose tail goes next; None when nothing is idle."""
        if self._released:
            return next(iter(self._released))
        if self.batched and self._victim in self._retained:
            self._expire(now)
            if self._open:
                self._victim = None
        if self._victim is None:
            self._expire(now)
            self._victim = self._choose(now)
        return self._victim

    def _choose(self, now: int) -> KVEntry | None:
        if self._open and self.policy.static:
            return self._first_ranked()
        candidates = self._open or self._retained
        while self._named:
            ticket, entry = self._named.popleft()
            if entry.ticket == ticket and entry in candidates:
                return entry
        if candidates is self._retained:
            candidates = {e: None for e in candidates if e.retained_until < FOREVER} or candidates
        return self._scan(candidates, now)

    def _first_ranked(self) -> KVEntry | None:
        while self._ranked:
            _, _, ticket, entry = self._ranked[0]
            if entry.ticket == ticket:
                return entry
            heapq.heappop(self._ranked)
        return None

    def _scan(self, entries: dict[KVEntry, None], now: int) -> KVEntry | None:
        if not entries:
            return None
        cache = CacheView(
            now,
            max(1, now - min(entry.last_access for entry in entries)),
            max(1, max(entry.tokens for entry in entries)),
        )
        rank = self.policy.rank
        ranked = [(rank(entry, cache), -entry.ticket, entry) for entry in entries]
        if not self.batched:
            return max(ranked)[-1]
        first, *others = heapq.nlargest(max(1, len(ranked) // BATCH_SHARE), ranked)
        self._named = deque((-ticket, entry) for _, ticket, entry in others)
        return first[-1]

    def _expire(self, now: int) -> None:
        while self._expiring and self._expiring[0][0] <= now:
            _, _, ticket, entry = heapq.heappop(self._expiring)
            if entry.ticket == ticket:
                del self._retained[entry]
                self._open_up(entry)

    def _open_up(self, entry: KVEntry) -> None:
        self._open[entry] = None
        if self.policy.static:
            rank = self.policy.rank(entry, CacheView(entry.last_access, 1, max(1, entry.tokens)))
            self._push(self._ranked, -rank, entry)
            if self._victim in self._open and self._first_ranked() is entry:
                self._victim = None  # the newcomer goes before the one that is being taken from

    def _push(self, heap: list[_Place], key: float, entry: KVEntry) -> None:
        heapq.heappush(heap, (key, entry.turn, entry.ticket, entry))
        if len(heap) > 2 * len(self) + 16:  # most of it is stale
            heap[:] = [item for item in heap if item[3].ticket == item[2]]
            heapq.heapify(heap)
