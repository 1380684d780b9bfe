"""Which KV prompts have in common, found by their content: a radix tree in whole blocks.

Two prompts share exactly the blocks of their common prefix, as with vLLM's chain of block hashes. A
request whose whole answer was given before shares that too, where vLLM would keep a second copy.
(One exception: of two answers of different length to one prompt at the same time, a later prompt
may find only what they have in common.) The tree knows what was ever asked for; which of it is
resident is the cache's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from saga.sim.lineage import ENDLESS, Content, Span

_Key = tuple[int, str, bytes]
"""Where a continuation begins (block), the prompt's salt, and the first block of it."""


@dataclass(slots=True, eq=False)
class _Node:
    """One content and the text of its whole blocks."""

    content: Content
    parent: _Node | None
    salt: str = ""
    text: bytes = b""
    extensible: bool = True
    """Whether its session may append to it: not the prefix that sessions share."""
    open: bool = False
    """A running request appends to it."""
    users: int = 0
    computed: int = 0
    """The block up to which somebody has computed it."""
    children: dict[_Key, _Node] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Use:
    """One request's way through the tree."""

    text: bytes
    path: tuple[Span, ...]
    nodes: list[_Node]
    computed_blocks: int
    """Leading blocks that were computed before, resident or not."""


class ContentTree:
    """``resident(content)`` tells whether a content still has blocks in the cache.

    Contents without blocks and without a running request are forgotten, the least recently used
    first, once the texts are longer than ``max_bytes``.
    """

    def __init__(
        self, *, block_bytes: int, max_bytes: int, resident: Callable[[Content], bool]
    ) -> None:
        self._block_bytes = block_bytes
        self._max_bytes = max_bytes
        self._trim_at = max_bytes
        self._resident = resident
        self._roots: dict[_Key, _Node] = {}
        self._nodes: dict[_Node, None] = {}
        """All that can be found, least recently used first, children before their parents."""
        self.num_bytes = 0

    def begin(
        self,
        text: bytes,
        *,
        prompt_blocks: int,
        session: str | None,
        shared_blocks: int = 0,
        salt: str = "",
    ) -> Use:
        """A request begins whose ``text`` is its prompt and its answer; ``end`` must follow. Its
        prompt can be found from now on.

        What follows its first ``shared_blocks`` belongs to its session. Only whole blocks count.
        """
        spans = self._match(text, len(text) // self._block_bytes, salt)
        position = spans[-1][1] if spans else 0
        computed = _computed(spans)
        if shared_blocks > position:
            shared = self._new(spans, position, None, salt)
            shared.extensible = False
            self._extend(shared, text, shared_blocks)
            spans.append((shared, shared_blocks))
            position = shared_blocks
        last = spans[-1][0] if spans else None
        if last is not None and self._may_extend(last, position, session):
            own = last
            spans.pop()
        else:
            own = self._new(spans, position, session, salt)
        own.open = True
        self._extend(own, text, prompt_blocks)
        spans.append((own, ENDLESS))
        nodes = [node for node, _ in spans]
        for node in nodes:
            node.users += 1
        self._touch(nodes)
        self._trim()
        path = tuple(Span(node.content, end) for node, end in spans)
        return Use(text, path, nodes, computed)

    def end(self, use: Use, known_blocks: int, computed_blocks: int) -> None:
        """The request left, or will with the step under way.

        Its first ``known_blocks`` can be found from now on: at least those that it leaves in the
        cache. ``computed_blocks`` is what it has surely computed.
        """
        for node, span in zip(use.nodes, use.path, strict=True):
            node.users -= 1
            node.computed = max(node.computed, min(span.end, computed_blocks))
        own = use.nodes[-1]
        own.open = False
        self._extend(own, use.text, known_blocks)
        self._touch(use.nodes)
        self._trim()

    def __len__(self) -> int:
        return len(self._nodes)

    def _match(self, text: bytes, blocks: int, salt: str) -> list[tuple[_Node, int]]:
        """The nodes of the longest known prefix, each up to its block."""
        size = self._block_bytes
        spans: list[tuple[_Node, int]] = []
        children, position = self._roots, 0
        while position < blocks:
            first = text[position * size : (position + 1) * size]
            node = children.get((position, salt, first))
            if node is None:
                break
            known = node.text[: (blocks - position) * size]
            position += _common(known, text[position * size : blocks * size]) // size
            spans.append((node, position))
            children = node.children
        return spans

    def _may_extend(self, node: _Node, position: int, session: str | None) -> bool:
        return (
            node.extensible
            and not node.open
            and node.content.session == session
            and position == self._end_of(node)
        )

    def _end_of(self, node: _Node) -> int:
        return node.content.start + len(node.text) // self._block_bytes

    def _new(
        self, spans: list[tuple[_Node, int]], start: int, session: str | None, salt: str
    ) -> _Node:
        parent = spans[-1][0] if spans else None
        above = None if parent is None else parent.content
        # Anybody may ask for it again, as far as the engine knows.
        return _Node(Content(start, above, session, {0: ENDLESS}), parent, salt)

    def _extend(self, node: _Node, text: bytes, end: int) -> None:
        """The node's text becomes ``text`` up to block ``end``, if that is more than it has."""
        if end <= self._end_of(node):
            return
        size = self._block_bytes
        grown = text[node.content.start * size : end * size]
        if not node.text:
            self._list(node, grown[:size])
        if node in self._nodes:
            self.num_bytes += len(grown) - len(node.text)
        node.text = grown

    def _list(self, node: _Node, first: bytes) -> None:
        """Makes it possible to find the node, unless another one has the same beginning: two
        requests with one prompt computed it side by side, as they would in vLLM."""
        siblings = self._roots if node.parent is None else node.parent.children
        if siblings.setdefault((node.content.start, node.salt, first), node) is node:
            self._nodes[node] = None

    def _touch(self, nodes: list[_Node]) -> None:
        for node in reversed(nodes):
            if node in self._nodes:
                del self._nodes[node]
                self._nodes[node] = None

    def _trim(self) -> None:
        """Forgets down to half of the bound; the next attempt waits until the texts have doubled,
        so that a tree which is wholly resident is not searched again and again."""
        if self.num_bytes <= self._trim_at:
            return
        for node in list(self._nodes):
            if self.num_bytes <= self._max_bytes // 2:
                break
            if not (node.users or node.children or self._resident(node.content)):
                self._forget(node)
        self._trim_at = max(self._max_bytes, 2 * self.num_bytes)

    def _forget(self, node: _Node) -> None:
        siblings = self._roots if node.parent is None else node.parent.children
        del siblings[node.content.start, node.salt, node.text[: self._block_bytes]]
        del self._nodes[node]
        self.num_bytes -= len(node.text)


def _computed(spans: list[tuple[_Node, int]]) -> int:
    computed = 0
    for node, end in spans:
        computed = min(node.computed, end)
        if node.computed < end:
            break
    return max(computed, 0)


def _common(left: bytes, right: bytes) -> int:
    """Length of the common prefix. O(n), by halving."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:  # equal up to low, different up to high
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
