"""When an engine begins with a request, which no engine tells.

An engine prefills one request after another, and takes the next ones into the same step while that
has room: a request begins when all but a step's worth of what was sent before it is prefilled. The
first byte of an answer proves it and corrects the estimate; while the engine says that requests
wait in it (for memory), nothing is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LEARN = 0.2
"""Weight of the newest measurement."""
FEWEST_TOKENS = 1024
"""A shorter prefill says little about the time per token: most of it is the rest of the step."""
STEP_TOKENS = 2048
"""Prefilled in one step, the smallest default of vLLM (``--max-num-batched-tokens``)."""


class Expected(NamedTuple):
    """Of one request, times in microseconds."""

    begins: int
    """When the engine takes it into a step."""
    prefill: int
    """When all that is ahead of it is prefilled."""


FULL = 0.8
"""KV memory in use at which requests that wait in an engine probably wait for it. With less in use
they only wait for the next step."""


@dataclass(slots=True)
class PrefillQueue:
    """One engine's prefills, as far as they can be seen from outside. Times in microseconds."""

    us_per_token: float = 20.0
    """Learned from times to first token; the start value is a fast GPU's, since to wait for a start
    that has long happened costs throughput."""
    busy_until: int = 0
    is_full: bool = False
    """By the engine's last report: requests wait in it for KV memory."""

    def note_report(self, num_waiting: int, kv_used: float | None) -> None:
        """The engine told how many requests wait in it, and how much of its KV memory is in use."""
        self.is_full = num_waiting > 0 and (kv_used is None or kv_used >= FULL)

    def send(self, uncached_tokens: int, now: int) -> Expected | None:
        """A request is sent now; None: it waits for memory there, who knows how long."""
        if self.is_full:
            return None
        prefill = max(now, self.busy_until)
        self.busy_until = prefill + int(uncached_tokens * self.us_per_token)
        return Expected(max(now, prefill - int(STEP_TOKENS * self.us_per_token)), prefill)

    def first_token(self, uncached_tokens: int, prefill: int, now: int) -> None:
        """A request that was thought to be prefilled from ``prefill`` on gave its first token."""
        expected = prefill + int(uncached_tokens * self.us_per_token)
        self.busy_until -= max(0, expected - now)
        if uncached_tokens >= FEWEST_TOKENS:
            measured = max(0.1, (now - prefill) / uncached_tokens)
            self.us_per_token += LEARN * (measured - self.us_per_token)

    def answered(self, uncached_tokens: int, prefill: int, now: int) -> None:
        """A whole answer came at once: its prefill took no longer, and perhaps much less."""
        if now < prefill + int(uncached_tokens * self.us_per_token):
            self.first_token(uncached_tokens, prefill, now)
