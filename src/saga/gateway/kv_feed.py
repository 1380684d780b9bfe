"""What one publisher tells of an engine's KV, made into news of sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from saga import wire
from saga.gateway.kv_blocks import Held, KvBlocks
from saga.gateway.kv_messages import (
    Cleared,
    KvEvent,
    MalformedError,
    Removed,
    SessionKV,
    Stored,
    read,
    split,
)

MAX_BLOCKS = 262_144
"""Of one engine: 4 million tokens in vLLM's usual blocks, and some 150 MB here."""
MAX_SESSIONS = 65_536

SessionOf = Callable[[str], str | None]
"""The session by what the engine calls it; None for names that are not the gateway's to know."""


@dataclass(frozen=True, slots=True)
class KvNews:
    """What an engine told since the news before."""

    cleared: bool
    """All that it held before is gone ..."""
    held: Sequence[Held]
    """... and this is what is known of sessions after that."""


class KvFeed:
    """Follows one publisher, which numbers its messages.

    A number that is too high means that some were missed: whatever is known of blocks is forgotten,
    and nothing is claimed. One that is too low means that the engine has started anew, and empty.

    Of the groups of a hybrid model's KV the first is followed for which a prefix needs all blocks.
    """

    def __init__(
        self,
        session_of: SessionOf,
        *,
        max_blocks: int = MAX_BLOCKS,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.blocks = KvBlocks(max_blocks=max_blocks, max_sessions=max_sessions)
        self.counts: Counter[str] = Counter()
        """Blocks stored and removed, events of the other kinds."""
        self.num_messages = 0
        self.num_gaps = 0
        self.num_restarts = 0
        self.num_malformed = 0
        """Messages, and events in messages."""
        self._session_of = session_of
        self._next: int | None = None
        self._group: int | None = None
        self._cleared = False
        self._told: dict[str, Held] = {}
        """What the engine said of sessions itself."""

    def take(self, frames: Sequence[bytes]) -> Iterator[int]:
        """Works through one message; yields bit by bit how many blocks of work it was."""
        yield 1
        try:
            number, events = split(frames)
        except MalformedError:
            self.num_malformed += 1
            return
        self.num_messages += 1
        self._follow_on(number)
        for event in events:
            try:
                known = read(event)
            except MalformedError:
                self.num_malformed += 1
                known = None
            yield 1 if known is None else self._apply(known)

    def news(self) -> KvNews | None:
        """What has changed since the last call; None if nothing has."""
        held = [*self.blocks.changes(), *self._told.values()]
        cleared, self._cleared, self._told = self._cleared, False, {}
        return KvNews(cleared, held) if cleared or held else None

    def _follow_on(self, number: int) -> None:
        expected, self._next = self._next, number + 1
        if expected is None or number == expected:
            return
        self._forget()
        if number > expected:
            self.num_gaps += 1
        else:
            self.num_restarts += 1
            self._cleared = True

    def _apply(self, event: KvEvent) -> int:
        match event:
            case Stored():
                if self._group is None:
                    self._group = event.group
                if event.group not in (None, self._group):
                    return 1
                self.counts["stored"] += len(event.hashes)
                session = None if event.session is None else self._session_of(event.session)
                self.blocks.stored(event.hashes, event.parent, event.block_size, session)
                return 1 + len(event.hashes)
            case Removed():
                if event.group not in (None, self._group):
                    return 1
                self.counts["removed"] += len(event.hashes)
                self.blocks.removed(event.hashes)
                return 1 + len(event.hashes)
            case Cleared():
                self.counts["cleared"] += 1
                self._forget()
                self._cleared = True
            case SessionKV():
                self.counts[f"session_{event.kind}"] += 1
                if event.kind in (wire.KV_STORED, wire.KV_EVICTED):
                    lost = event.kind == wire.KV_EVICTED
                    self._told[event.session] = Held(event.session, event.tokens, lost)
        return 1

    def _forget(self) -> None:
        self.blocks.forget()
        self._told.clear()
        self._group = None
