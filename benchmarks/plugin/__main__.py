"""``.venv-e2e/bin/python -m benchmarks.plugin [FILE]``: scheduler time per step, stock and with the
plugin, on vLLM's real scheduler without a model.

Both do the same work in turns of a few hundred steps, so that whatever else the machine does meets
both; what is compared are the turns of a pair. Processor time, not wall time.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

from tests.e2e.plugin.engine import BLOCK, STOCK, FakeEngine, tokens

NUM_BLOCKS = 8_000
SESSIONS = 1_000
SESSION_BLOCKS = 7
RUNNING = 32
STEPS = 300
"""Of a turn."""
PAIRS = 40
WARM_UP = 5
OUTPUT = (60, 180)
"""Tokens that a request answers, at least and at most."""
PROMPT = (100, 600)


@dataclass
class Lane:
    """One engine, and the work that it is given."""

    engine: FakeEngine
    sessions: bool
    chance: Random = field(default_factory=lambda: Random(1))
    number: int = 0
    steps_us: list[float] = field(default_factory=list)

    def fill(self) -> None:
        """The KV of many sessions, all of which wait for their tools."""
        for number in range(SESSIONS):
            prompt = tokens(f"idle {number}", SESSION_BLOCKS * BLOCK)
            self.engine.run(prompt, **self._hints(f"idle {number}"))

    def turn(self) -> float:
        """Mean time of a step, in microseconds."""
        spent = [self._step() for _ in range(STEPS)]
        self.steps_us += spent
        return mean(spent)

    def _step(self) -> float:
        scheduler = self.engine.scheduler
        while sum(scheduler.get_request_counts()) < RUNNING:
            self.number += 1
            prompt = tokens(f"request {self.number}", self.chance.randint(*PROMPT))
            hints = self._hints(f"session {self.number}")
            self.engine.submit(prompt, self.chance.randint(*OUTPUT), **hints)
        return self.engine.timed_step(time.thread_time_ns) / 1_000

    def _hints(self, session: str) -> dict[str, Any]:
        if not self.sessions:
            return {}
        tenant = self.chance.randrange(4)
        return {"session": f"t{tenant}/{session}", "ttl_s": 3_600, "score": self.chance.random()}


def compare(name: str, *, sessions: bool) -> dict[str, float]:
    """Prints and returns what the plugin adds."""
    stock = Lane(FakeEngine(NUM_BLOCKS, scheduler=STOCK[False], max_num_seqs=RUNNING), sessions)
    plugin = Lane(FakeEngine(NUM_BLOCKS, max_num_seqs=RUNNING), sessions)
    for lane in (stock, plugin):
        lane.fill()
    gc.collect()
    gc.freeze()
    ratios = list(_ratios(stock, plugin))[WARM_UP:]
    figures = {
        "stock_us": mean(stock.steps_us),
        "plugin_us": mean(plugin.steps_us),
        "ratio": median(ratios),
        "evicted_blocks_per_step": plugin.engine.scheduler.stats()["evicted_blocks"]
        / len(plugin.steps_us),
    }
    print(
        f"{name:<34}{figures['stock_us']:>9.0f}{figures['plugin_us']:>9.0f}"
        f"{figures['ratio'] - 1:>+9.1%}{figures['evicted_blocks_per_step']:>9.1f}"
    )
    return figures


def _ratios(stock: Lane, plugin: Lane) -> Iterator[float]:
    for pair in range(PAIRS + WARM_UP):
        first, second = (stock, plugin) if pair % 2 else (plugin, stock)
        times = {id(lane): lane.turn() for lane in (first, second)}
        yield times[id(plugin)] / times[id(stock)]


def main() -> None:
    print(f"{'us per scheduler step':<34}{'stock':>9}{'plugin':>9}{'added':>9}{'evicted':>9}")
    figures = {
        "without sessions": compare("without sessions", sessions=False),
        "every request evicts sessions": compare("every request evicts sessions", sessions=True),
    }
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
