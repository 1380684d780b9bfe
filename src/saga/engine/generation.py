"""One request in the emulated engine, as those who wait for it see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from saga.engine.contents import Use
from saga.engine.tokens import Answer, Prompt
from saga.sim.engine import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What a request says about the KV it leaves behind."""

    session: str | None = None
    ttl_s: float | None = None
    """Seconds on the clock for which it should stay; 0: nobody will come back."""
    score: float | None = None
    final: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One request in the engine. Times are model microseconds."""

    name: str
    prompt: Prompt
    answer: Answer
    hints: Hints
    job: Job
    use: Use
    submitted_us: int
    first_token_us: int | None = None
    finished_us: int | None = None
    cached_tokens: int = 0
    produced: int = 0
    done: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def progress(self) -> AsyncIterator[int]:
        """How many tokens there are, whenever there are more; ends when the answer is complete."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield self.produced
            if self.done:
                return

    @property
    def running(self) -> bool:
        return self.job.started and self.job.covered > 0

    def notice(self) -> int:
        """Takes over the job's progress; how many tokens are new."""
        new = self.job.produced - self.produced
        if new or self.done:
            self.produced = self.job.produced
            self._changed.set()
        return new
