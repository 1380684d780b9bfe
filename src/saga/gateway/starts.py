"""When an engine begins with a request, which no engine tells.

An engine prefills one request after another, so that a request begins when what was sent before it
is prefilled. The first byte of an answer proves it and corrects the estimate; while the engine says
that requests wait in it (for memory), nothing is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

LEARN = 0.2
"""Weight of the newest measurement."""
FEWEST_TOKENS = 256
"""A shorter prefill says little about the time per token."""


@dataclass(slots=True)
class PrefillQueue:
    """One engine's prefills, as far as they can be seen from outside. Times in microseconds."""

    us_per_token: float = 20.0
    """Learned from times to first token; the start value is a fast GPU's, since to wait for a start
    that has long happened costs throughput."""
    busy_until: int = 0
    num_waiting: int = 0
    """By the engine's last report."""

    def send(self, uncached_tokens: int, now: int) -> int | None:
        """When a request sent now begins; None: it waits for memory there, who knows how long."""
        if self.num_waiting:
            return None
        begin = max(now, self.busy_until)
        self.busy_until = begin + int(uncached_tokens * self.us_per_token)
        return begin

    def first_token(self, uncached_tokens: int, began: int, now: int) -> None:
        """A request that is thought to have begun at ``began`` gave its first token."""
        expected = began + int(uncached_tokens * self.us_per_token)
        self.busy_until -= max(0, expected - now)
        if uncached_tokens >= FEWEST_TOKENS:
            measured = max(0.1, (now - began) / uncached_tokens)
            self.us_per_token += LEARN * (measured - self.us_per_token)

    def answered(self, uncached_tokens: int, began: int, now: int) -> None:
        """A whole answer came at once: its prefill took no longer, and perhaps much less."""
        if now < began + int(uncached_tokens * self.us_per_token):
            self.first_token(uncached_tokens, began, now)
