"""Names of KV blocks where prompts are lineages and not text: what vLLM takes for their hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from saga.sim.lineage import Content, Span

_BITS = 32
"""Of a name, for the number of the block; the rest is the number of its content."""
_BYTES = 16


class BlockNames:
    """A name for each block of each content.

    A content has one history, so that blocks have the same name if and only if they hold the same
    tokens after the same ones: what vLLM's chained hashes say of text. Names are made once and only
    looked up after that, since contexts of 100,000 tokens are sent again with every step.
    """

    def __init__(self) -> None:
        self._numbers = 0
        self._names: dict[Content, list[bytes]] = {}
        self._contents: dict[int, Content] = {}
        """By their numbers."""

    def of(self, path: Sequence[Span], begin: int, end: int) -> list[bytes]:
        """Of the path's blocks [begin, end)."""
        names: list[bytes] = []
        for span in path:
            first, last = max(begin, span.content.start), min(end, span.end)
            if first < last:
                start = span.content.start
                names += self._up_to(span.content, last)[first - start : last - start]
        return names

    def _up_to(self, content: Content, end: int) -> list[bytes]:
        names = self._names.get(content)
        if names is None:
            self._numbers += 1
            self._contents[self._numbers] = content
            base = self._numbers << _BITS
            names = self._names[content] = [(base + content.start).to_bytes(_BYTES, "big")]
        missing = range(content.start + len(names), end)
        if missing:
            base = int.from_bytes(names[0], "big") - content.start
            names += [(base + block).to_bytes(_BYTES, "big") for block in missing]
        return names

    def find(self, name: bytes) -> tuple[Content, int]:
        """Content and block of a name; vLLM's group of the block may follow it."""
        number = int.from_bytes(name[:_BYTES], "big")
        return self._contents[number >> _BITS], number & ((1 << _BITS) - 1)

    def forget(self, contents: Iterable[Content]) -> None:
        """Nobody will ask for these again: only what they were called is kept."""
        for content in contents:
            self._names.pop(content, None)

    def hasher(self, path: Sequence[Span], block_size: int) -> Callable[[Any], list[bytes]]:
        """Names the blocks that a vLLM request on this path has filled since it was last asked."""

        def names(request: Any) -> list[bytes]:
            begin, end = len(request.block_hashes), request.num_tokens // block_size
            return self.of(path, begin, end) if begin < end else []

        return names
