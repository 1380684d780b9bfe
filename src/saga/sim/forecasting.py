"""How good forecasts are: one online pass over a trace, each forecast made before it is scored."""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean, median
from typing import Any, Protocol

from saga.core.forecast import Forecasts, Progress
from saga.core.return_times import NO_TOOL
from saga.traces.script import SessionScript, StepScript, WorkflowScript

COVERAGES = (50, 80, 95)
GRID = tuple(level / 40 for level in range(1, 40))
"""Levels at which distributions are compared; the mean pinball loss is half their CRPS."""
PIT_BINS = 10
Figures = dict[str, float | None]


class Distribution(Protocol):
    def quantile(self, p: float) -> float: ...


class Guesser(Protocol):
    """What is scored. Each question is asked before the answer is told. Microseconds."""

    def begin(self, agent_type: str) -> None: ...
    def next_tool(self) -> str | None: ...
    def output(self) -> float | None: ...
    def stepped(self, step: StepScript) -> None: ...
    def tool_time(self) -> float | None: ...
    def return_time(self) -> float | None: ...
    def return_times(self) -> Distribution | None: ...
    def total_steps(self) -> float | None: ...
    def returned(self, step: StepScript, new_tokens: int) -> None: ...
    def ended(self) -> None: ...


class _Stopwatch:
    """Mean seconds inside ``with``."""

    def __init__(self) -> None:
        self.total_s, self.count = 0.0, 0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.total_s += time.perf_counter() - self._began
        self.count += 1

    @property
    def mean_us(self) -> float:
        return self.total_s / max(1, self.count) * 1e6


class Ours:
    """``saga.core.forecast``, and the time that one update and one question take."""

    def __init__(self) -> None:
        self.forecasts = Forecasts()
        self.updates, self.questions = _Stopwatch(), _Stopwatch()

    def begin(self, agent_type: str) -> None:
        self._model, self._progress = self.forecasts.of(agent_type), Progress()

    def next_tool(self) -> str | None:
        with self.questions:
            return self._model.next_tool(self._progress)

    def output(self) -> float | None:
        with self.questions:
            return self._model.output_tokens(self._progress).typical

    def stepped(self, step: StepScript) -> None:
        with self.updates:
            self._model.step(self._progress, step.tool, step.output_tokens)

    def tool_time(self) -> float | None:
        return self._model.tool_time(self._progress).typical

    def return_time(self) -> float | None:
        with self.questions:
            return self._model.return_time(self._progress).typical

    def return_times(self) -> Distribution:
        return self._model.return_time(self._progress)

    def total_steps(self) -> float | None:
        with self.questions:
            left = self._model.steps_left(self._progress).quantile(0.5)
        return self._progress.path.num_steps + left

    def returned(self, step: StepScript, new_tokens: int) -> None:
        if step.tool_us:
            self._model.tool_took(self._progress, step.tool_us)
        with self.updates:
            if not step.gap_us:  # not told: nothing is to be learned from it
                self._progress.expected = None
            self._model.returned(self._progress, step.gap_us, new_tokens)

    def ended(self) -> None:
        with self.updates:
            self._model.ended(self._progress)


@dataclass(slots=True)
class _Sorted:
    """All values so far: their quantiles, nearest rank."""

    values: list[float] = field(default_factory=list)

    def quantile(self, p: float) -> float:
        return self.values[max(0, ceil(p * len(self.values)) - 1)]


class Naive:
    """What is easily had: a trigram of tools that backs off, and the quantiles of all that was seen
    of a tool, else of everything; the median number of steps and of output tokens."""

    def __init__(self) -> None:
        self._after: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self._seen: defaultdict[tuple[str, str | None], _Sorted] = defaultdict(_Sorted)

    def begin(self, agent_type: str) -> None:
        self._tools: list[str] = []
        self._done, self._tool = 0, ""

    def next_tool(self) -> str | None:
        for order in (2, 1, 0):
            known = self._after.get(tuple(self._tools[len(self._tools) - order :]))
            if order <= len(self._tools) and known:
                return known.most_common(1)[0][0]
        return None

    def output(self) -> float | None:
        return self._median("output")

    def stepped(self, step: StepScript) -> None:
        self._learn("output", None, step.output_tokens)
        self._tool = step.tool or NO_TOOL
        self._done += 1
        if step.tool is not None:
            for order in range(min(2, len(self._tools)) + 1):
                self._after[tuple(self._tools[len(self._tools) - order :])][step.tool] += 1
            self._tools.append(step.tool)

    def tool_time(self) -> float | None:
        return self._median("tool", self._tool)

    def return_time(self) -> float | None:
        return self._median("return", self._tool)

    def return_times(self) -> Distribution | None:
        return self._of("return", self._tool)

    def total_steps(self) -> float | None:
        total = self._median("steps")
        return None if total is None else max(self._done, total)

    def returned(self, step: StepScript, new_tokens: int) -> None:
        if step.tool_us:
            self._learn("tool", self._tool, step.tool_us)
        if step.gap_us:
            self._learn("return", self._tool, step.gap_us)

    def ended(self) -> None:
        self._learn("steps", None, self._done)

    def _learn(self, what: str, tool: str | None, value: float) -> None:
        insort(self._seen[what, tool].values, value)
        if tool is not None:
            insort(self._seen[what, None].values, value)

    def _of(self, what: str, tool: str | None = None) -> _Sorted | None:
        return self._seen.get((what, tool)) or self._seen.get((what, None))

    def _median(self, what: str, tool: str | None = None) -> float | None:
        known = self._of(what, tool)
        return None if known is None else known.quantile(0.5)


@dataclass(slots=True)
class _Scores:
    """Of one guesser: hits and losses, by figure."""

    values: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    pit: list[int] = field(default_factory=lambda: [0] * PIT_BINS)

    def hit(self, figure: str, *, yes: bool) -> None:
        self.values[figure].append(float(yes))

    def within_2x(self, figure: str, guess: float | None, truth: float) -> None:
        self.hit(figure, yes=guess is not None and truth / 2 <= guess <= truth * 2)

    def distribution(self, told: Distribution | None, truth_us: float) -> None:
        if told is None:
            return
        for percent in COVERAGES:
            low, high = told.quantile(0.5 - percent / 200), told.quantile(0.5 + percent / 200)
            self.hit(f"coverage_{percent}", yes=low <= truth_us <= high)
        guesses = [told.quantile(level) for level in GRID]
        losses = [
            (level - (truth_us < guess)) * (truth_us - guess) / 1e6
            for level, guess in zip(GRID, guesses, strict=True)
        ]
        self.values["pinball"].append(fmean(losses))
        self.values["crps_s"].append(2 * fmean(losses))
        below = sum(guess < truth_us for guess in guesses) / len(GRID)
        self.pit[min(PIT_BINS - 1, int(below * PIT_BINS))] += 1


UNTOLD = {
    "next_tool_top1": "no step names a tool",
    "tool_within_2x": "no step that names a tool has a tool time",
    "return_within_2x": "no step that names a tool has a return time",
    "remaining_steps_rel_err": "no session has ended before another began",
    "output_within_2x": "there are no steps",
    **{f"coverage_{percent}": "there are no return times" for percent in COVERAGES},
    "crps_s": "there are no return times",
    "pinball": "there are no return times",
}
"""Figures, and why one may be missing."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``evaluate`` found."""

    ours: Figures
    naive: Figures
    counts: dict[str, int]
    """Cases that each figure is taken over."""
    pit: list[int]
    """Return times by the tenth of their own forecast that they fell into: flat if calibrated."""

    def document(self) -> dict[str, Any]:
        """As JSON: the figures themselves, flat; ``null`` has a reason under ``reasons``."""
        return {
            **self.ours,
            "naive": self.naive,
            "counts": self.counts,
            "pit": self.pit,
            "reasons": {name: UNTOLD[name] for name in UNTOLD if self.ours[name] is None},
        }


def evaluate(
    workflows: Iterable[WorkflowScript], *, warm: Iterable[WorkflowScript] = ()
) -> Evaluation:
    """Plays ``workflows`` one after another; ``warm`` ones before them are learned, not scored."""
    ours, naive, warm = Ours(), Naive(), list(warm)
    for guesser in (ours, naive):
        for workflow in warm:
            _play(workflow, guesser, _Scores())
    ours.updates, ours.questions = _Stopwatch(), _Stopwatch()
    of_ours, of_naive = _Scores(), _Scores()
    for workflow in workflows:
        _play(workflow, ours, of_ours)
        _play(workflow, naive, of_naive)
    figures = _figures(of_ours)
    figures["update_us"], figures["forecast_us"] = ours.updates.mean_us, ours.questions.mean_us
    counts = {name: len(of_ours.values[name]) for name in UNTOLD}
    return Evaluation(figures, _figures(of_naive), counts, of_ours.pit)


def _figures(scores: _Scores) -> Figures:
    figures: Figures = {}
    for name in UNTOLD:
        values = scores.values[name]
        middle = median if name == "remaining_steps_rel_err" else fmean
        figures[name] = middle(values) if values else None
    return figures


def _play(workflow: WorkflowScript, guesser: Guesser, scores: _Scores) -> None:
    for session in workflow.sessions:
        guesser.begin(workflow.agent_type)
        _play_session(session, guesser, scores)
        guesser.ended()


def _play_session(session: SessionScript, guesser: Guesser, scores: _Scores) -> None:
    total = len(session.steps)
    for number, step in enumerate(session.steps):
        if step.tool is not None:
            scores.hit("next_tool_top1", yes=guesser.next_tool() == step.tool)
        scores.within_2x("output_within_2x", guesser.output(), step.output_tokens)
        guesser.stepped(step)
        expected = guesser.total_steps()
        if expected is not None:
            scores.values["remaining_steps_rel_err"].append(abs(expected - total) / total)
        if number + 1 == total:
            continue
        if step.tool is not None and step.tool_us:
            scores.within_2x("tool_within_2x", guesser.tool_time(), step.tool_us)
        if step.gap_us:
            if step.tool is not None:
                scores.within_2x("return_within_2x", guesser.return_time(), step.gap_us)
            scores.distribution(guesser.return_times(), step.gap_us)
        following = session.steps[number + 1]
        guesser.returned(step, max(0, following.new_tokens))
