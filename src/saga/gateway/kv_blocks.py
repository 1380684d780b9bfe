"""Which sessions an engine still has how much KV of, worked out from its blocks.

A block hangs under the one that it continues, so that the blocks are a tree. A session's KV ends at
the last block that was made for it, and its prefix is the path to there: blocks that it found made
by others are on the path, though no event ever named it with them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

BlockKey = bytes | int


class Held(NamedTuple):
    """What is left of a session's KV, in tokens: all of the prefix that its next request can use,
    short of blocks that others have made of it since."""

    session: str
    tokens: int
    lost: bool
    """Whether the last that happened to it was a loss."""


class _Block:
    __slots__ = ("children", "copies", "cut", "end", "ending", "key", "parent")

    def __init__(self, key: BlockKey, parent: _Block | None, end: int) -> None:
        self.key = key
        self.parent = parent
        self.end = end
        """Tokens up to its end."""
        self.copies = 0
        """An engine makes a block twice if two requests compute it at once; 0: it is gone, and
        remembered for what hangs under it."""
        self.cut = False
        """It, or one above it, is gone: no session ends here or below."""
        self.children: set[_Block] | None = None
        self.ending: _Ending | None = None


class _Ending:
    """The sessions that end at one block; they move together."""

    __slots__ = ("block", "sessions")

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.sessions: set[str] = set()


class KvBlocks:
    """The blocks of one engine's cache. Amortised O(1) for each block that comes or goes, however
    many sessions share it; bounded memory.

    A block whose parent is not known has no known place: it is left out, with what hangs under it,
    and nothing is claimed of the sessions that end there.
    """

    def __init__(self, *, max_blocks: int, max_sessions: int) -> None:
        self.num_forgotten = 0
        """Blocks that were too many: the oldest."""
        self._max_blocks = max_blocks
        self._max_sessions = max_sessions
        self._root = _Block(0, None, 0)
        self._root.copies = 1
        self._blocks: dict[BlockKey, _Block] = {}
        """The oldest first."""
        self._endings: OrderedDict[str, _Ending] = OrderedDict()
        """By session; the one that was served least recently first."""
        self._changes: dict[str, bool] = {}
        """Sessions of which there is news, and whether it is a loss ..."""
        self._moved: dict[_Ending, None] = {}
        """... and those that lost something together."""

    def __len__(self) -> int:
        return len(self._blocks)

    def tokens(self, session: str) -> int | None:
        """What is left of its KV; None if that is not known."""
        ending = self._endings.get(session)
        return None if ending is None else ending.block.end

    def changes(self) -> list[Held]:
        """What has changed since the last call."""
        changes = self._changes
        for ending in self._moved:
            changes.update(dict.fromkeys(ending.sessions, True))
        held = [
            Held(session, self._endings[session].block.end, lost)
            for session, lost in changes.items()
        ]
        self._changes, self._moved = {}, {}
        for session, tokens, _ in held:
            if not tokens:
                self.leave(session)
        return held

    # ---- what an engine tells

    def stored(
        self,
        keys: Sequence[BlockKey],
        parent: BlockKey | None,
        block_size: int,
        session: str | None,
    ) -> None:
        """Blocks in a row were made for a session, or for one that is not known."""
        block = self._root if parent is None else self._blocks.get(parent)
        if session is not None:
            self.leave(session)
        if block is None:
            return
        self._restore(block)
        for key in keys:
            block = self._blocks.get(key) or self._add(key, block, block_size)
            block.copies += 1
            block.cut = False
        if session is not None:
            self._end_at(session, block)
        self._make_room()

    def removed(self, keys: Sequence[BlockKey]) -> None:
        for key in reversed(keys):  # where they are a row, no block is left hanging on the way
            block = self._blocks.get(key)
            if block is None or not block.copies:
                continue
            block.copies -= 1
            if not block.copies:
                self._cut(block)
                self._prune(block)

    def leave(self, session: str) -> None:
        """Nothing is known of it any more."""
        self._changes.pop(session, None)
        ending = self._endings.pop(session, None)
        if ending is None:
            return
        ending.sessions.discard(session)
        if not ending.sessions:
            ending.block.ending = None
            self._moved.pop(ending, None)

    def forget(self) -> None:
        """Nothing is known any more."""
        self._blocks.clear()
        self._endings.clear()
        self._changes.clear()
        self._moved.clear()
        self._root.children = self._root.ending = None

    # ---- the tree

    def _add(self, key: BlockKey, parent: _Block, block_size: int) -> _Block:
        block = self._blocks[key] = _Block(key, parent, parent.end + block_size)
        if parent.children is None:
            parent.children = set()
        parent.children.add(block)
        return block

    def _restore(self, block: _Block) -> None:
        """It was just continued, so that it and all above it must be there."""
        above: _Block | None = block
        while above is not None and above.cut:
            above.cut = False
            above.copies = max(1, above.copies)
            above = above.parent

    def _end_at(self, session: str, block: _Block) -> None:
        if block.ending is None:
            block.ending = _Ending(block)
        block.ending.sessions.add(session)
        self._endings[session] = block.ending
        self._changes[session] = False
        if len(self._endings) > self._max_sessions:
            self.leave(next(iter(self._endings)))

    def _cut(self, block: _Block) -> None:
        """The block is gone: whatever ends at or below it ends before it."""
        before = block.parent
        assert before is not None
        below = [block]
        while below:
            one = below.pop()
            if one.cut:
                continue
            one.cut = True
            below += one.children or ()
            ending, one.ending = one.ending, None
            if ending is not None:
                self._move(ending, before)

    def _move(self, ending: _Ending, block: _Block) -> None:
        """The fewer join the more."""
        there = block.ending
        if there is not None and len(there.sessions) >= len(ending.sessions):
            self._join(ending, there)
            self._changes.update(dict.fromkeys(ending.sessions, True))
            return
        if there is not None:
            self._join(there, ending)
        block.ending, ending.block = ending, block
        self._moved[ending] = None

    def _join(self, fewer: _Ending, more: _Ending) -> None:
        more.sessions |= fewer.sessions
        self._endings.update(dict.fromkeys(fewer.sessions, more))
        self._moved.pop(fewer, None)

    def _prune(self, block: _Block) -> None:
        """Blocks that are gone and have nothing under them need not be remembered."""
        while not block.copies and not block.children and block.parent is not None:
            del self._blocks[block.key]
            above = block.parent
            if above.children is not None:
                above.children.discard(block)
            block = above

    def _make_room(self) -> None:
        """Without a block, what hangs under it has no known place."""
        while len(self._blocks) > self._max_blocks:
            oldest = next(iter(self._blocks.values()))
            above = oldest.parent
            if above is not None and above.children is not None:
                above.children.discard(oldest)
            below = [oldest]
            while below:
                block = below.pop()
                below += block.children or ()
                del self._blocks[block.key]
                self.num_forgotten += 1
                for session in list(block.ending.sessions) if block.ending is not None else ():
                    self.leave(session)
