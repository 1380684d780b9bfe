"""``python -m benchmarks.forecast``: microseconds per update and per forecast, and the memory that
100,000 sessions and a million tools leave behind."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from time import perf_counter_ns

from saga.core.forecast import Forecaster, Forecasts, Progress

NUM_TYPES = 40
NUM_TOOLS = 30
MEAN_STEPS = 12


def main(num_sessions: int = 100_000, num_tools: int = 1_000_000) -> dict[str, float]:
    before = _rss_mib()
    forecasts, times = Forecasts(), _Times()
    chance = random.Random(1)
    for number in range(num_sessions):
        model = forecasts.of(f"type {number % NUM_TYPES}")
        _play(model, _tools(chance), chance, times)
    found = times.figures()
    found["sessions_mib"] = _rss_mib() - before
    hostile = forecasts.of("hostile")
    _play(hostile, (f"tool {number} " + "x" * 200 for number in range(num_tools)), chance, _Times())
    found["with_hostile_mib"] = _rss_mib() - before
    for name, value in found.items():
        print(f"{name:28}{value:10.1f}")
    return found


class _Times:
    def __init__(self) -> None:
        self.samples: dict[str, list[int]] = {}

    def of(self, name: str, call: Callable[..., object], *given: object) -> None:
        began = perf_counter_ns()
        call(*given)
        self.samples.setdefault(name, []).append(perf_counter_ns() - began)

    def figures(self) -> dict[str, float]:
        found = {}
        for name, samples in self.samples.items():
            samples.sort()
            found[f"{name} mean us"] = sum(samples) / len(samples) / 1e3
            found[f"{name} p99 us"] = samples[len(samples) * 99 // 100] / 1e3
        return found


def _tools(chance: random.Random) -> Iterator[str]:
    """A habit with exceptions."""
    at = 0
    for _ in range(min(100, 1 + int(chance.expovariate(1 / MEAN_STEPS)))):
        at = (at + 1) % NUM_TOOLS if chance.random() < 0.7 else chance.randrange(NUM_TOOLS)
        yield f"tool {at}"


def _play(model: Forecaster, tools: Iterator[str], chance: random.Random, times: _Times) -> None:
    progress = Progress()
    sampled = chance.random() < 0.05
    for tool in tools:
        output, gap = chance.randrange(20, 900), int(chance.lognormvariate(13, 1.5))
        if not sampled:
            model.step(progress, tool, output)
            model.returned(progress, gap, output)
            continue
        times.of("forecast next tool", lambda: model.next_tool(progress))
        times.of("forecast output", lambda: model.output_tokens(progress))
        times.of("update step", model.step, progress, tool, output)
        times.of("forecast return", lambda: model.return_time(progress).quantile(0.95))
        times.of("forecast steps left", lambda: model.steps_left(progress).quantile(0.5))
        times.of("update return", model.returned, progress, gap, output)
    model.ended(progress)


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
