"""What prompts consist of: contents that form a tree, shared by all engines.

A *content* is a run of KV blocks with one history: a declared system prefix, or what one session
appended since it began or was last cut. A prompt is a path through contents. Which blocks of a
content are resident is each engine's own business (``kv_cache``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from saga.traces.script import SessionScript, StepScript

ENDLESS = 1 << 40
"""Block number behind every prompt: the end of a path that still grows."""


@dataclass(slots=True, eq=False)
class Content:
    """Blocks from ``start`` (counted from the beginning of the prompt) on, after ``parent``."""

    start: int
    parent: Content | None
    session: str | None
    """Its owner; None for a declared prefix."""
    claims: dict[int, int] = field(default_factory=dict)
    """Who may still ask for it (by lineage number), up to which block."""

    @property
    def live_end(self) -> int:
        """The block up to which anybody may still ask for it; declared prefixes live for ever."""
        return ENDLESS if self.session is None else max(self.claims.values(), default=0)


@dataclass(frozen=True, slots=True)
class Span:
    """A prompt's way through one content, up to block ``end``."""

    content: Content
    end: int


class Lineage:
    """The path of one session's prompts, as its steps are played one after another."""

    def __init__(self, number: int, session: str, block_size: int) -> None:
        self._number = number
        self._session = session
        self._block_size = block_size
        self.path: tuple[Span, ...] = ()
        self.context_tokens = 0
        """Prompt and output of the last step."""
        self.changed: list[Content] = []
        """Contents whose claims changed and about which engines were not told yet."""

    def begin(self, prefix: Content | None, prefix_tokens: int) -> None:
        """Start behind a declared prefix, or behind nothing."""
        blocks = prefix_tokens // self._block_size
        spans = (Span(prefix, blocks),) if prefix is not None and blocks else ()
        self._append(spans)
        self.context_tokens = prefix_tokens

    def fork(self, parent: Lineage, tokens: int) -> None:
        """Start with the first ``tokens`` of the parent's present context."""
        kept = min(tokens, parent.context_tokens)
        self._append(_cut(parent.path, kept // self._block_size))
        self.context_tokens = kept

    def advance(self, step: StepScript) -> tuple[Span, ...]:
        """The path of the step's prompt. Cuts the lineage where the step keeps less than all."""
        if step.kept_tokens < self.context_tokens:
            self._append(_cut(self.path, step.kept_tokens // self._block_size))
        self.context_tokens = step.prompt_tokens + step.output_tokens
        return self.path

    def end(self) -> None:
        """No further step: its claims go."""
        for span in self.path:
            if span.content.claims.pop(self._number, None) is not None:
                self.changed.append(span.content)

    def _append(self, spans: tuple[Span, ...]) -> None:
        """The path becomes ``spans`` and a new content of its own behind them."""
        self.end()
        parent, start = (spans[-1].content, spans[-1].end) if spans else (None, 0)
        own = Content(start, parent, self._session)
        self.path = (*spans, Span(own, ENDLESS))
        for span in self.path:
            span.content.claims[self._number] = span.end


def _cut(path: tuple[Span, ...], end: int) -> tuple[Span, ...]:
    """The path up to block ``end``."""
    kept = [span for span in path if span.content.start < end]
    if kept:
        kept[-1] = Span(kept[-1].content, min(kept[-1].end, end))
    return tuple(kept)


def reusable_tokens(script: SessionScript, index: int, block_size: int) -> int:
    """Prompt tokens of a step whose KV the session itself computed before, in whole blocks.

    The last token of an output is never computed, and a prompt's last token always is.
    """
    if index == 0:
        return 0
    before, step = script.steps[index - 1], script.steps[index]
    computed = before.prompt_tokens + before.output_tokens - 1
    return min(step.kept_tokens, computed, step.prompt_tokens - 1) // block_size * block_size
