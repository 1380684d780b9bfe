"""One engine's KV memory: block-granular, prefix-sharing, with an optional host-memory tier.

Blocks of a content are resident as a run from its start, since a prefix cache can use nothing
behind a gap; they go tail first, and never below where a resident content continues. All sizes are
in blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from saga.core.cache import DEFAULT_REUSE, FOREVER, EvictionPolicy, KVEntry, RetentionIndex
from saga.core.errors import InvariantError
from saga.sim.counts import Counts
from saga.sim.lineage import ENDLESS, Content, Span


@dataclass(slots=True, kw_only=True, eq=False)
class Segment(KVEntry):
    """The resident part of one content on one engine; ``tokens`` of the entry are blocks."""

    content: Content
    blocks: int = 0
    whole: int = 0
    """The first blocks that somebody who left has computed to their end."""
    host_blocks: int = 0
    """The first blocks of the content that the host tier holds."""
    pins: dict[int, int] = field(default_factory=dict)
    """Running requests by the (absolute) block up to which they need it."""
    branches: dict[int, int] = field(default_factory=dict)
    """Resident continuations by the block at which they continue."""
    uses: list[tuple[int, int, int]] = field(default_factory=list)
    """Up to which (absolute) block a user who left had needed it, when it left and in what turn:
    the deepest and oldest first. Each block was last used by the last of those that reach it."""
    left_at: int = 0
    """When its last user left, however little of it that one needed."""
    active: int = 0
    """Blocks in use, and ``dead`` ones, as last counted."""
    dead: int = 0

    @property
    def end(self) -> int:
        return self.content.start + self.blocks

    @property
    def pinned(self) -> int:
        """Blocks that running requests need."""
        if not self.pins:
            return 0
        return min(self.blocks, max(self.pins) - self.content.start)

    @property
    def evictable(self) -> int:
        """Blocks behind every user and every resident continuation."""
        floor = max(self.branches) - self.content.start if self.branches else 0
        return self.blocks - max(self.pinned, min(floor, self.blocks))

    def use(self, end: int, now: int, turn: int) -> None:
        """A user of the blocks before ``end`` left."""
        while self.uses and self.uses[-1][0] <= end:
            self.uses.pop()
        self.uses.append((end, now, turn))
        self.left_at = now

    def forget_uses(self) -> None:
        """Of blocks that are gone."""
        while len(self.uses) > 1 and self.uses[1][0] >= self.end:
            del self.uses[0]

    @property
    def of_one_age(self) -> int:
        """Evictable blocks that have the last user in common with the very last one."""
        if len(self.uses) < 2:
            return self.evictable
        return min(self.evictable, self.end - self.uses[1][0])


@dataclass(slots=True)
class Occupancy:
    """Block-microseconds since the last reset."""

    active: int = 0
    waiting: int = 0
    dead: int = 0
    later_hit: int = 0


class KVCache:
    """The blocks of one engine. Raises ``InvariantError`` rather than ever evicting KV in use."""

    def __init__(
        self, capacity: int, policy: EvictionPolicy, *, host_capacity: int = 0, now: int = 0
    ) -> None:
        self.capacity = capacity
        self.host_capacity = host_capacity
        self.index = RetentionIndex(policy)
        self.resident = 0
        self.active = 0
        self.dead = 0
        self.host_resident = 0
        self.occupancy = Occupancy()
        self.counts = Counts()
        self.shrunk: dict[str, int] = {}
        """Sessions whose KV was used up by evictions, until the host has told: blocks left, a
        declared prefix not counted, which every engine has."""
        self._now = now
        self._turn = 0
        self._reset_at = now
        self._segments: dict[Content, Segment] = {}
        self._by_session: dict[str, dict[Segment, None]] = {}
        self._host: dict[Segment, None] = {}
        """Least recently stored or hit first."""

    @property
    def free(self) -> int:
        return self.capacity - self.resident

    @property
    def available(self) -> int:
        """Blocks that are free or can be made free."""
        return self.capacity - self.active

    @property
    def without_choice(self) -> int:
        """Blocks to be had without choosing a victim or using one up."""
        victim = self.index.current
        if victim is None or self.index.policy.whole_entry:  # which goes at once, with all it has
            return self.free
        return self.free + victim.tokens - 1

    # ---- lookups

    def hit(self, path: Sequence[Span], limit: int) -> int:
        """Leading blocks of the path that are resident, at most ``limit``."""
        return self._leading(path, limit, host=False)

    def host_hit(self, path: Sequence[Span], limit: int) -> int:
        """Leading blocks that are resident here or in host memory."""
        return self._leading(path, limit, host=True)

    def _leading(self, path: Sequence[Span], limit: int, *, host: bool) -> int:
        end = 0
        for span in path:
            segment = self._segments.get(span.content)
            if segment is None:
                break
            held = max(segment.blocks, segment.host_blocks) if host else segment.blocks
            end = min(span.content.start + held, span.end, limit)
            if end < span.end:
                break
        return min(end, limit)

    def idle_in(self, path: Sequence[Span], blocks: int) -> int:
        """How many of the path's first ``blocks`` are resident and not in use."""
        idle = 0
        for span in path:
            segment = self._segments.get(span.content)
            if segment is not None:
                used = min(segment.end, span.end, blocks) - span.content.start
                idle += max(0, used - segment.pinned)
        return idle

    # ---- use

    def pin(self, path: Sequence[Span], hit: int, now: int, *, returned: bool = True) -> None:
        """A request uses the path from now on; its first ``hit`` blocks were found resident.

        ``returned``: its session came back, which ends a retention; a prefetch does not.
        """
        self._advance(now)
        for span in path:
            segment = self._segment(span.content)
            waited = min(segment.end, span.end, hit) - span.content.start - segment.pinned
            if waited > 0:
                since = max(segment.left_at, self._reset_at)
                self.occupancy.later_hit += waited * (now - since)
            segment.pins[span.end] = segment.pins.get(span.end, 0) + 1
            segment.released = False
            if returned:
                segment.retained_until = 0
            self._recount(segment)

    def grow(self, path: Sequence[Span], end: int, now: int) -> None:
        """Makes the pinned path resident up to block ``end``, evicting as needed."""
        last = self._segments[path[-1].content]
        if last.blocks:  # then all before it is resident
            self._extend(last, end - last.end, now)
            return
        for span in path:
            segment = self._segments[span.content]
            self._extend(segment, min(span.end, end) - segment.end, now)
            if span.end >= end:
                return

    def _extend(self, segment: Segment, blocks: int, now: int) -> None:
        if blocks <= 0:
            return
        self._advance(now)
        if blocks > self.free:
            self.evict(blocks - self.free, now)
        if segment.blocks == 0:
            self._branch(segment.content, +1)
        segment.blocks += blocks
        self.resident += blocks
        if ENDLESS in segment.pins:  # all of it is in use, as before: the usual case, kept short
            segment.active += blocks
            self.active += blocks
        else:
            self._recount(segment)

    def unpin(
        self, path: Sequence[Span], full_blocks: int, now: int, next_use: int = FOREVER
    ) -> None:
        """The request left; blocks behind its ``full_blocks`` are not whole and are freed."""
        self._advance(now)
        for span in reversed(path):
            segment = self._segments[span.content]
            segment.pins[span.end] -= 1
            if not segment.pins[span.end]:
                del segment.pins[span.end]
            self._turn += 1
            segment.use(ENDLESS if self.index.policy.whole_entry else span.end, now, self._turn)
            segment.next_use = next_use
            segment.whole = max(segment.whole, min(span.end, full_blocks) - span.content.start)
            self._drop(segment, min(segment.blocks - segment.whole, segment.evictable))
            self._recount(segment)
            self._forget_if_empty(segment)

    def evict(self, blocks: int, now: int) -> None:
        """Frees at least ``blocks`` by the eviction policy, tails first."""
        self._advance(now)
        while blocks > 0:
            victim = self.index.victim(now)
            if victim is None:
                raise InvariantError(f"law 5: {blocks} blocks wanted and all KV is in use")
            assert isinstance(victim, Segment)
            taken = victim.tokens if self.index.policy.whole_entry else min(blocks, victim.tokens)
            self.counts.evicted_blocks += taken
            blocks -= taken
            self._drop(victim, taken)
            gone = min(victim.dead, taken)  # the dead part of a run is its tail
            victim.dead -= gone
            self.dead -= gone
            victim.tokens -= taken
            if victim.evictable:
                self._recount(victim)
            else:
                self._used_up(victim)

    def _used_up(self, segment: Segment) -> None:
        """Nothing more can be evicted of it."""
        self.index.discard(segment)
        self.counts.num_evictions += 1
        if segment.session is not None:
            parent = segment.content.parent
            shared_only = not segment.blocks and (parent is None or parent.session is None)
            self.shrunk[segment.session] = 0 if shared_only else segment.end
        self._forget_if_empty(segment)

    # ---- what the scheduler says

    def retain(self, session: str, until: int, score: float, now: int) -> None:
        """Applies to what the session would find again, not to what it cut off before."""
        for segment in self._by_session.get(session, ()):
            if segment.content.live_end > segment.content.start:
                segment.retained_until = until
                segment.p_reuse = score
                self.index.update(segment, now)

    def release(self, session: str, now: int) -> None:
        """Nobody will ask for it again: first to go, and out of host memory at once.

        What a fork still continues from stays as it is.
        """
        for segment in list(self._by_session.get(session, ())):
            if any(end != ENDLESS for end in segment.content.claims.values()):
                continue
            segment.released = True
            self._set_host(segment, 0)
            self.index.update(segment, now)
            self._forget_if_empty(segment)

    def drop(self, session: str, now: int) -> None:
        """Frees the session's own idle KV at once (it was moved or offloaded)."""
        self._advance(now)
        for segment in list(self._by_session.get(session, ())):
            self._drop(segment, segment.evictable)
            self._recount(segment)
            self._forget_if_empty(segment)

    def liveness_changed(self, contents: Iterable[Content], now: int) -> None:
        self._advance(now)
        for content in contents:
            segment = self._segments.get(content)
            if segment is not None:
                self._recount(segment)

    # ---- host tier

    def store(self, path: Sequence[Span], full_blocks: int) -> None:
        """Copies the path's first blocks to host memory, the least recently used out."""
        if not self.host_capacity:
            return
        for span in path:
            segment = self._segments.get(span.content)
            whole = min(span.end, full_blocks) - span.content.start
            if segment is None or whole <= 0:
                break
            self._host.pop(segment, None)
            self._host[segment] = None
            self._set_host(segment, max(segment.host_blocks, whole))
        while self.host_resident > self.host_capacity:
            oldest = next(iter(self._host))
            excess = self.host_resident - self.host_capacity
            self._set_host(oldest, oldest.host_blocks - min(excess, oldest.host_blocks))
            self._forget_if_empty(oldest)

    def _set_host(self, segment: Segment, blocks: int) -> None:
        self.host_resident += blocks - segment.host_blocks
        segment.host_blocks = blocks
        if not blocks:
            self._host.pop(segment, None)

    # ---- bookkeeping

    def _segment(self, content: Content) -> Segment:
        segment = self._segments.get(content)
        if segment is None:
            segment = Segment(
                session=content.session,
                tokens=0,
                last_access=self._now,
                p_reuse=DEFAULT_REUSE,
                content=content,
            )
            self._segments[content] = segment
            if content.session is not None:
                self._by_session.setdefault(content.session, {})[segment] = None
        return segment

    def _drop(self, segment: Segment, blocks: int) -> None:
        if blocks <= 0:
            return
        segment.blocks -= blocks
        segment.whole = min(segment.whole, segment.blocks)
        self.resident -= blocks
        if segment.blocks == 0:
            self._branch(segment.content, -1)

    def _branch(self, content: Content, change: int) -> None:
        """A content became resident or ceased to be: its parent cannot or can go below it."""
        if content.parent is None:
            return
        parent = self._segments.get(content.parent)
        if parent is None:
            return
        count = parent.branches.get(content.start, 0) + change
        if count:
            parent.branches[content.start] = count
        else:
            del parent.branches[content.start]
            self._recount(parent)

    def _recount(self, segment: Segment) -> None:
        """Brings the totals and the index up to date with one segment."""
        active = segment.pinned
        live = max(0, segment.content.live_end - segment.content.start)
        dead = max(0, segment.blocks - max(active, live))
        self.active += active - segment.active
        self.dead += dead - segment.dead
        segment.active = active
        segment.dead = dead
        segment.forget_uses()
        segment.tokens = segment.of_one_age
        turn = segment.turn
        if segment.uses:
            _, segment.last_access, segment.turn = segment.uses[0]
        listed = segment in self.index
        if segment.tokens and not listed:
            self.index.add(segment, self._now)
        elif listed and not segment.tokens:
            self.index.discard(segment)
        elif listed and segment.turn != turn:
            self.index.update(segment, self._now)

    def _forget_if_empty(self, segment: Segment) -> None:
        if segment.blocks or segment.host_blocks or segment.pins or segment.branches:
            return
        self._segments.pop(segment.content, None)
        session = segment.content.session
        if session is not None and session in self._by_session:
            self._by_session[session].pop(segment, None)
            if not self._by_session[session]:
                del self._by_session[session]

    def _advance(self, now: int) -> None:
        elapsed = now - self._now
        if elapsed > 0:
            self.occupancy.active += self.active * elapsed
            self.occupancy.dead += self.dead * elapsed
            self.occupancy.waiting += (self.resident - self.active - self.dead) * elapsed
            self._now = now

    def reset_occupancy(self, now: int) -> None:
        self._advance(now)
        self._reset_at = now
        self.occupancy = Occupancy()

    def settle(self, now: int) -> Occupancy:
        """The occupancy up to ``now``."""
        self._advance(now)
        return self.occupancy

    def check(self) -> None:
        """Law 4: held + evictable + free = capacity; law 5 through the counts per segment."""
        segments = self._segments.values()
        totals = (
            sum(s.blocks for s in segments),
            sum(s.pinned for s in segments),
            sum(s.host_blocks for s in segments),
        )
        if totals != (self.resident, self.active, self.host_resident):
            raise InvariantError(
                f"law 4: resident, active, host {totals} by segment, "
                f"{(self.resident, self.active, self.host_resident)} counted"
            )
        if not 0 <= self.resident <= self.capacity or self.host_resident > self.host_capacity:
            raise InvariantError(f"law 4: {self.resident} of {self.capacity} blocks resident")
        for segment in segments:
            if (segment.evictable > 0) != (segment in self.index):
                raise InvariantError(f"law 4: segment of {segment.session!r} is misfiled")
            above = segment.content.parent
            if segment.blocks and above is not None:
                parent = self._segments.get(above)
                if parent is None or parent.end < segment.content.start:
                    raise InvariantError(f"law 5: KV under {segment.session!r} was evicted")
