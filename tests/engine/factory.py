"""Emulated engines for tests: on a clock that is moved by hand, and behind a real server."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.serving import always, serving
from tests.sim.factory import plain_time

from saga.engine.emulated import EmulatedEngine
from saga.engine.generation import Generation, Hints
from saga.engine.options import EngineOptions
from saga.engine.publisher import Publisher
from saga.engine.server import EngineApp
from saga.engine.tokens import Answer, Prompt, Wish, plan_answer, raw_prompt
from saga.sim.hardware import get_cluster
from saga.sim.latency import StepTime

BLOCK = 64
"""Bytes of a block: 16 tokens."""


class FakeTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeTime:
    """A clock, and the timers that go by it."""

    def __init__(self) -> None:
        self._now_us = 0
        self._timers: list[tuple[int, int, FakeTimer, Callable[[], None]]] = []
        self._numbers = 0

    def now_us(self) -> int:
        return self._now_us

    def call_later(self, delay: float, call: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer()
        self._numbers += 1
        at = self._now_us + round(delay * 1e6)
        heapq.heappush(self._timers, (at, self._numbers, timer, call))
        return timer

    def jump(self, us: int) -> None:
        """The clock goes on and no timer fires: the process was not scheduled."""
        self._now_us += us

    def step(self) -> bool:
        """Fires the next timer when it is due; False if there is none."""
        while self._timers:
            at, _, timer, call = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now_us = max(self._now_us, at)
                call()
                return True
        return False

    def run(self, until: int | None = None) -> None:
        """Fires timers until none is left, or to a time on the clock."""
        while self._timers and (until is None or self._timers[0][0] <= until):
            self.step()
        if until is not None:
            self._now_us = max(self._now_us, until)


class Bench:
    """An engine driven by hand. Steps last 1,000 us and 10 us for each new token, unless a
    ``step_time`` is given."""

    def __init__(
        self,
        *,
        step_time: StepTime | None = None,
        publisher: Publisher | None = None,
        **options: Any,
    ) -> None:
        self.time = FakeTime()
        plain = plain_time(get_cluster("16xh100-8b"), step_us=1_000, token_us=10)
        self.engine = EmulatedEngine(
            EngineOptions(**options),
            clock=self.time,
            call_later=self.time.call_later,
            step_time=step_time or plain,
            publisher=publisher,
        )
        self._numbers = 0

    def submit(
        self,
        prompt: bytes | Prompt,
        output_tokens: int = 16,
        *,
        name: str | None = None,
        priority: int = 0,
        **hints: Any,
    ) -> Generation:
        self._numbers += 1
        prompt = raw_prompt(prompt) if isinstance(prompt, bytes) else prompt
        return self.engine.submit(
            prompt,
            answer(prompt, output_tokens),
            name=name or f"request-{self._numbers}",
            hints=Hints(**hints),
            priority=priority,
        )

    def ask(self, prompt: bytes | Prompt, output_tokens: int = 16, **hints: Any) -> Generation:
        """A request, and the time until it has ended."""
        generation = self.submit(prompt, output_tokens, **hints)
        while not generation.done:
            assert self.time.step(), "the engine sleeps before the answer is complete"
        self.engine.check()
        return generation


def answer(prompt: Prompt, output_tokens: int) -> Answer:
    return plan_answer(prompt, Wish(output_tokens=output_tokens), room=1 << 30)


def blocks(text: str) -> bytes:
    """One block for each letter."""
    return b"".join(letter.encode() * BLOCK for letter in text)


@dataclass(frozen=True)
class Running:
    """An engine behind a real server."""

    url: str
    app: EngineApp


@contextmanager
def running(**options: Any) -> Iterator[Running]:
    """A server on a free port of the loopback device, in a thread of its own."""
    chosen = EngineOptions(port=0, **options)
    app = EngineApp(chosen, unix_time=lambda: 1_700_000_000.0)
    with serving(lambda: always(app)) as port:
        yield Running(f"http://127.0.0.1:{port}", app)
