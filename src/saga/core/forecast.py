"""What a session will do: which step follows, when it returns, how much it then adds and writes,
how many steps are left. Learned online from the sessions of its agent type, with priors that speak
until there is something to learn from. Every forecast says how far it can be relied on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from typing import NamedTuple

from saga.core.bounded import Generations
from saga.core.calibration import LEVELS, Calibration, translate
from saga.core.curves import LOAN, Curve, Curves, bell
from saga.core.graph import END, RemainingWork
from saga.core.return_times import NO_TOOL, Quantiles, owner_of
from saga.core.sequence import Chances, NextLabels, Path

MAX_KEYS = 768
"""Curves of one kind, of one agent type."""
MAX_CONTEXTS = 4_096
"""Of the next label, of one agent type."""
MAX_TYPES = 16
"""Of one owner. A full one takes some 4 MB."""
MAX_OWNERS = 256
PACE = 0.5
"""How much of a session's own deviation from the others is believed."""
SLOW_START = 3
"""Gaps of a session that its pace is taken to have been usual for."""
MAX_DEVIATION = 2.0
"""Octaves: what one gap may say of a session's pace."""
USUAL_STEPS = 10.0
RARELY_CUT = 0.02
"""Prompts that do not go on from the whole context, where nothing was seen."""
FADE = 0.999
FEW = 4
"""Sessions that went on for longer, fewer than which say little of how much longer."""

TOOL_PRIOR = bell(400_000, 2.5)
PERSON_PRIOR = bell(20_000_000, 3.0)
OUTPUT_PRIOR = bell(128, 1.5)
GROWTH_PRIOR = bell(256, 2.0)


class Forecast(NamedTuple):
    """A distribution of what is to come. Its unit is that of what was observed."""

    curve: Curve
    reliability: float
    """0: a prior and nothing else; 1: all of it was observed in just this situation."""
    scale: float = 1.0
    asked: tuple[float, ...] = LEVELS
    """The model's own levels that have turned out to mean ``LEVELS``."""
    passed: float = 0.0
    """The share that did not come true: it has been waited for."""

    @property
    def typical(self) -> float:
        """The value of which most outcomes are within a factor of two."""
        return self.curve.typical * self.scale

    def quantile(self, p: float) -> float:
        """Not exceeded with probability ``p``."""
        level = self.passed + p * (1.0 - self.passed)
        return self.curve.quantile(translate(level, LEVELS, self.asked)) * self.scale

    def chance_by(self, value: float) -> float:
        """That the value will be no larger than this."""
        level = translate(self.share(value), self.asked, LEVELS)
        return min(1.0, max(0.0, level - self.passed) / (1.0 - self.passed))

    def share(self, value: float) -> float:
        """The same as the model alone would say, never corrected."""
        return self.curve.chance_by(value / self.scale)

    def after(self, waited: float) -> Forecast:
        """The same, now that it is known to be more than this. It still counts from the start."""
        passed = min(0.999, translate(self.share(waited), self.asked, LEVELS))
        return Forecast(self.curve, self.reliability, self.scale, self.asked, passed)


@dataclass(frozen=True, slots=True)
class StepsLeft:
    """Steps that will follow the last one."""

    totals: Sequence[int]
    """Of those sessions that went on for longer, ascending."""
    done: int
    mean: float
    """Where there are too few of them: how many follow on average if any does."""
    p_end: float
    """Chance that none does."""

    @property
    def reliability(self) -> float:
        return len(self.totals) / (len(self.totals) + FEW)

    def quantile(self, p: float) -> int:
        if p <= self.p_end:
            return 0
        level = (p - self.p_end) / (1.0 - self.p_end)
        if len(self.totals) < FEW:
            return max(1, round(self.mean * level * 2))  # uniform: nothing is known of its shape
        return self.totals[max(0, ceil(level * len(self.totals)) - 1)] - self.done


@dataclass(slots=True)
class _Share:
    """How often something happened, of how many cases; older ones count less."""

    happened: float = 0.0
    cases: float = 0.0

    def count(self, *, yes: bool) -> None:
        self.happened = self.happened * FADE + yes
        self.cases = self.cases * FADE + 1.0


class _Shares:
    """How often something happens, by label; rare labels are as all others."""

    def __init__(self, usual: float) -> None:
        self._usual = usual
        self._all = _Share()
        self._by_label: Generations[str, _Share] = Generations(MAX_KEYS)

    def count(self, label: str, *, yes: bool) -> None:
        self._all.count(yes=yes)
        of_label = self._by_label.get(label)
        if of_label is None:
            of_label = _Share()
            self._by_label.put(label, of_label)
        of_label.count(yes=yes)

    def share(self, label: str) -> float:
        share = self._usual
        for known in (self._all, self._by_label.get(label)):
            if known is not None:
                share = (known.happened + LOAN * share) / (known.cases + LOAN)
        return share


@dataclass(slots=True)
class Pace:
    """By how much a session's own times are longer than those of others like it, on average."""

    octaves: float = 0.0
    count: int = 0

    def learn(self, value: float, expected: Forecast) -> None:
        off = log2(max(1.0, value) / expected.curve.quantile(0.5))
        off = max(-MAX_DEVIATION, min(MAX_DEVIATION, off))
        self.count += 1
        self.octaves += (off - self.octaves) / (self.count + SLOW_START)

    @property
    def scale(self) -> float:
        return float(2.0 ** (PACE * self.octaves))


@dataclass(slots=True)
class Progress:
    """What is known of one session, and what was expected of it."""

    path: Path = field(default_factory=Path)
    label: str = ""
    """Of its last step; empty before the first."""
    output: int = 0
    new_tokens: int = 0
    """Of its last step's prompt, beyond what was there before."""
    gap_path: tuple[Hashable, ...] = (None, "", ("", 0))
    """Kinds of gaps that follow its last step: any, after its label, after such an output."""
    return_pace: Pace = field(default_factory=Pace)
    tool_pace: Pace = field(default_factory=Pace)
    expected: Forecast | None = None
    """Of its return."""


class Forecaster:
    """The models of one agent type. Times in microseconds."""

    def __init__(self) -> None:
        self.labels = NextLabels(max_contexts=MAX_CONTEXTS)
        self._tools = Curves(TOOL_PRIOR, max_keys=MAX_KEYS)
        self._persons = Curves(PERSON_PRIOR, max_keys=MAX_KEYS)
        self._tool_times = Curves(TOOL_PRIOR, max_keys=MAX_KEYS)
        self._outputs = Curves(OUTPUT_PRIOR, max_keys=MAX_KEYS)
        self._growth = Curves(GROWTH_PRIOR, max_keys=MAX_KEYS)
        self._calibration = {False: Calibration(), True: Calibration()}
        """By whether a person is waited for."""
        self._cuts = _Shares(RARELY_CUT)
        self._totals = Quantiles()
        self._usual_steps = USUAL_STEPS

    def declare(self, chances: Mapping[str, Chances], mean_steps: float | None) -> None:
        """What somebody says of such sessions: it holds until more is seen."""
        self.labels.declare(chances)
        self._usual_steps = mean_steps or USUAL_STEPS

    # ---- what happened

    def step(self, progress: Progress, tool: str | None, output_tokens: int) -> None:
        """A step ended that calls this tool."""
        self._outputs.observe(_output_path(progress), output_tokens)
        progress.label = self.labels.learn(progress.path, tool)
        progress.output = output_tokens
        progress.gap_path = _gap_path(progress.label, output_tokens)
        progress.expected = self._return_time(progress)

    def tool_took(self, progress: Progress, tool_us: int) -> None:
        """The tool that the last step called was done after so long."""
        expected = self.tool_time(progress)
        self._tool_times.observe(progress.gap_path, tool_us)
        progress.tool_pace.learn(tool_us, expected)

    def returned(
        self, progress: Progress, gap_us: int, new_tokens: int, *, cut: bool = False
    ) -> None:
        """The session's next request came; its prompt has so many tokens that are new. ``cut``: it
        does not begin with all that was there (compaction, another prefix)."""
        expected = progress.expected
        if expected is not None:
            self._curves(progress).observe(progress.gap_path, gap_us)
            self._calibration[progress.label == NO_TOOL].learn(expected.share(gap_us))
            progress.return_pace.learn(gap_us, expected)
            progress.expected = None
        if progress.label:
            self._growth.observe(progress.gap_path, new_tokens)
            self._cuts.count(progress.label, yes=cut)
        progress.new_tokens = new_tokens

    def ended(self, progress: Progress) -> None:
        """No further step follows."""
        self.labels.end(progress.path)
        self._totals.observe(progress.path.num_steps)

    # ---- what is to come

    def next_labels(self, progress: Progress) -> Chances:
        """Chances of what the next step calls, ``END`` if there is none; empty: no idea."""
        return self.labels.chances(progress.path)

    def next_tool(self, progress: Progress) -> str | None:
        """The most likely tool of the next step that calls one."""
        chances = self.next_labels(progress)
        tools = {label: p for label, p in chances.items() if label not in (END, NO_TOOL)}
        return max(tools, key=tools.__getitem__) if tools else None

    def return_time(self, progress: Progress) -> Forecast:
        """From the end of its last step to its next request."""
        return progress.expected or self._return_time(progress)

    def tool_time(self, progress: Progress) -> Forecast:
        """Inside the tool that the last step called: a part of the return time."""
        curve, known = self._tool_times.curve(progress.gap_path)
        return Forecast(curve, known, progress.tool_pace.scale)

    def output_tokens(self, progress: Progress) -> Forecast:
        """Of its next step."""
        return Forecast(*self._outputs.curve(_output_path(progress)))

    def new_tokens(self, progress: Progress) -> Forecast:
        """What its next prompt adds to the context: its own last output is not among them."""
        return Forecast(*self._growth.curve(progress.gap_path))

    def p_reuse(self, progress: Progress, context_tokens: int) -> float:
        """How much of the next prompt will be found, if all of the context is kept: the chance that
        there is one and that it goes on from there, times the overlap (paper, Eq. 4 and 5)."""
        goes_on = 1.0 - self.next_labels(progress).get(END, 0.0)
        kept = 1.0 - self._cuts.share(progress.label)
        return (
            goes_on * kept * context_tokens / (context_tokens + self.new_tokens(progress).typical)
        )

    def work_left(self, progress: Progress, p: float) -> RemainingWork:
        """Steps, tokens to read and tokens to write, exceeded with probability ``1 - p``."""
        steps = self.steps_left(progress).quantile(p)
        new = self.new_tokens(progress).quantile(0.5)
        return RemainingWork(steps, steps * new, steps * self.output_tokens(progress).quantile(0.5))

    def steps_left(self, progress: Progress) -> StepsLeft:
        done, known = progress.path.num_steps, self._totals.values
        mean = sum(known) / len(known) if known else self._usual_steps
        p_end = self.next_labels(progress).get(END, 0.0)
        return StepsLeft(known[bisect_right(known, done) :], done, mean, p_end)

    # ---- inside

    def _curves(self, progress: Progress) -> Curves:
        return self._persons if progress.label == NO_TOOL else self._tools

    def _return_time(self, progress: Progress) -> Forecast:
        curve, known = self._curves(progress).curve(progress.gap_path)
        asked = self._calibration[progress.label == NO_TOOL].asked()
        return Forecast(curve, known, progress.return_pace.scale, asked)


class Forecasts:
    """A forecaster for each agent type; each owner's least recently used ones are forgotten.

    Agent types of different owners (``owner_of``) are different types: nothing is learned across
    them, and nobody's agents make room for another's. ``made`` is told of each new forecaster.
    """

    def __init__(self, made: Callable[[str, Forecaster], None] = lambda kind, new: None) -> None:
        self.made = made
        self._by_owner: Generations[str, Generations[str, Forecaster]] = Generations(MAX_OWNERS)

    def peek(self, agent_type: str) -> Forecaster | None:
        """To look at, if there is one."""
        types = self._by_owner.peek(owner_of(agent_type))
        return None if types is None else types.peek(agent_type)

    def of(self, agent_type: str) -> Forecaster:
        """To learn."""
        owner = owner_of(agent_type)
        types = self._by_owner.get(owner)
        if types is None:
            types = Generations(MAX_TYPES)
            self._by_owner.put(owner, types)
        found = types.get(agent_type)
        if found is None:
            found = Forecaster()
            types.put(agent_type, found)
            self.made(agent_type, found)
        return found

    def begin_anew(self, agent_type: str) -> None:
        """What was learned of it holds no longer."""
        types = self._by_owner.get(owner_of(agent_type))
        if types is not None:
            types.drop(agent_type)


def _size(tokens: int) -> int:
    """A coarse class of sizes: each eight times the one before."""
    return 0 if tokens < 8 else 1 if tokens < 64 else 2 if tokens < 512 else 3


def _gap_path(label: str, output_tokens: int) -> tuple[Hashable, ...]:
    """A tool's arguments are in the output that calls it."""
    return None, label, (label, _size(output_tokens))


def _output_path(progress: Progress) -> tuple[Hashable, ...]:
    label, new, before = progress.label, _size(progress.new_tokens), _size(progress.output)
    return None, label, (label, new), (label, new, before)
