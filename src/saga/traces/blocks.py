"""Reuse told by the ids of a prompt's blocks, where an id names all that comes before it, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from saga.traces.script import SessionScript, WorkflowScript

BLOCK_TOKENS = 64
"""Of the files written here."""

Ids = Sequence[int]


def shared_blocks(one: Ids, other: Ids) -> int:
    """Blocks that two prompts begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


class FirstPrompts:
    """Finds what sessions begin with in common: the declared prefix that no trace names."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, full_blocks: Iterable[int]) -> None:
        self._counts.update(full_blocks)

    def shared(self, full_blocks: Iterable[int]) -> list[int]:
        """The blocks that another session begins with too."""
        return [block for block in full_blocks if self._counts[block] > 1]


class BlockIds:
    """Makes ids for the blocks of played prompts, as far as blocks can tell what they share."""

    def __init__(self, block_tokens: int = BLOCK_TOKENS) -> None:
        self.block_tokens = block_tokens
        self._num = 0
        self._prefixes: dict[str, list[int]] = {}

    def of_workflow(self, script: WorkflowScript) -> list[list[list[int]]]:
        """By session and step, the last block of a prompt may be a part of one."""
        made: list[list[list[int]]] = []
        for session in script.sessions:
            made.append(self._of_session(session, self._origin(session, script, made)))
        return made

    def _of_session(self, session: SessionScript, shared: list[int]) -> list[list[int]]:
        prompts: list[list[int]] = []
        for step in session.steps:
            ids = shared[: step.kept_tokens // self.block_tokens]
            ids += self._new(-(-step.prompt_tokens // self.block_tokens) - len(ids))
            prompts.append(ids)
            shared = ids[: step.prompt_tokens // self.block_tokens]
        return prompts

    def _origin(
        self, session: SessionScript, script: WorkflowScript, made: list[list[list[int]]]
    ) -> list[int]:
        """The whole blocks that the first prompt may begin with."""
        if session.parent is not None and session.forked_tokens:
            prompt = script.sessions[session.parent].steps[session.spawn_step].prompt_tokens
            tokens = min(session.forked_tokens, prompt)
            spawning = made[session.parent][session.spawn_step]
            return spawning[: tokens // self.block_tokens]
        if session.prefix is None:
            return []
        known = self._prefixes.setdefault(session.prefix, [])
        blocks = session.prefix_tokens // self.block_tokens
        known += self._new(blocks - len(known))
        return known[:blocks]

    def _new(self, count: int) -> list[int]:
        count = max(count, 0)
        self._num += count
        return list(range(self._num - count, self._num))
