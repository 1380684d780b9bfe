"""What comes next in a session: which tool its next step calls, or that there is none.

A mixture of experts, each of which counts what followed one kind of context: the last zero to three
labels (a variable-order Markov model), the place in the session, and what this very session has
done after the same label before. An expert counts by how often it was right (weights learned
online, by gradient on the log loss) and by how much of its context it has seen (Witten-Bell). So
deep contexts speak where they are known and shallow ones elsewhere, and a new kind of session is
guessed from what all have in common.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import copysign, exp
from operator import mul
from typing import NamedTuple

from saga.core.bounded import Generations
from saga.core.graph import END, OTHER, START
from saga.core.return_times import NO_TOOL

ORDER = 3
"""Labels of the longest context."""
PLACES = 12
"""Steps of a session that are told apart; all later ones are alike."""
MAX_LABELS = 128
"""Of one agent type; further ones are one label."""
MAX_LENGTH = 64
"""Characters of a label that count."""
FULL = 512
"""Transitions of one context after which all of them count half."""
NUM_LEADERS = 12
"""Labels of which an expert speaks."""
STALE = 0.05
"""They are sought anew when so much of what it has counted is new."""
YOUNG = 1 / STALE
"""With fewer, each one is so much: they are sought when somebody asks."""
FURTHEST = 8.0
"""Of a weight from its beginning, as a logarithm."""
NEGLIGIBLE = 0.03
"""Experts with less of the weight are not heard."""
DECLARED = 10
"""Transitions that what is declared of one label counts as."""
RESERVED = (START, END, OTHER)
"""No names of tools."""
RATE = 0.2
"""At which weights are learned."""

Chances = Mapping[str, float]


class _Followers:
    """What followed one context."""

    __slots__ = ("_leaders", "_until", "counts", "total")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.total = 0
        self._leaders: list[tuple[str, float]] | None = None
        self._until = 0.0
        """Total up to which they are good enough."""

    def add(self, label: str) -> None:
        counts = self.counts
        counts[label] = counts.get(label, 0) + 1
        self.total = total = self.total + 1
        if total < YOUNG:
            self._leaders = None
        elif total >= FULL:
            self.counts = {one: n // 2 for one, n in counts.items() if n > 1}
            self.total = sum(self.counts.values())
            self._renew()
        elif total > self._until:
            self._renew()

    @property
    def leaders(self) -> list[tuple[str, float]]:
        """The most frequent ones, with their shares."""
        if self._leaders is None:
            self._leaders = self._seek()
        return self._leaders

    def _renew(self) -> None:
        self._leaders = self._seek()
        self._until = self.total * (1.0 + STALE)

    def _seek(self) -> list[tuple[str, float]]:
        counts, total = self.counts, self.total
        first = sorted(counts, key=counts.__getitem__, reverse=True)[:NUM_LEADERS]
        return [(one, counts[one] / total) for one in first]


NUM_EXPERTS = ORDER + 4
LAST_OWN, ALL_OWN = ORDER + 2, ORDER + 3
"""The experts for what this very session does."""


class _Told(NamedTuple):
    """What experts know of a path; those that know nothing are not among them."""

    numbers: list[int]
    weights: list[float]
    followers: list[_Followers]


class Path:
    """What one session has done so far."""

    __slots__ = ("chances", "contexts", "labels", "num_steps", "own", "told")

    def __init__(self) -> None:
        self.labels: tuple[str, ...] = ()
        """The last ones, at most ``ORDER``."""
        self.num_steps = 0
        self.contexts = _contexts((), 0)
        """What experts go by, but for those for this very session."""
        self.told: tuple[object, _Told] = (None, _Told([], [], []))
        """What a model knows of it, as of that state of the model."""
        self.chances: Chances | None = None
        """As they were told since its last step, so that they are worked out once."""
        self.own: dict[str, _Followers] = {}
        """By label: what followed it in this session. Bounded by the number of labels."""

    def go_on(self, label: str) -> None:
        """The next step was this one."""
        if self.labels:
            self._of_own(self.labels[-1]).add(label)
        self._of_own("").add(label)
        self.labels = (*self.labels, label)[-ORDER:]
        self.num_steps += 1
        self.contexts = _contexts(self.labels, self.num_steps)
        self.chances = None

    def _of_own(self, label: str) -> _Followers:
        followers = self.own.get(label)
        if followers is None:
            followers = self.own[label] = _Followers()
        return followers


class NextLabels:
    """The model of one agent type. Bounded by ``max_contexts``."""

    def __init__(self, *, max_contexts: int) -> None:
        self._contexts: Generations[Hashable, _Followers] = Generations(max_contexts)
        self._weights = [0.0] * NUM_EXPERTS
        """As logarithms, and ..."""
        self._scales = [1.0] * NUM_EXPERTS
        """... as they count."""
        self._state = object()
        """Another one whenever something is learned."""
        self._labels: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._contexts)

    def label(self, tool: str | None) -> str:
        """The tool's label: itself, unless there are too many."""
        name = (tool or NO_TOOL)[:MAX_LENGTH]
        if name in RESERVED:
            return OTHER
        return name if name in self._labels or len(self._labels) < MAX_LABELS else OTHER

    def chances(self, path: Path) -> Chances:
        """Of each label, ``END`` among them, to be the next; they sum to 1, or there are none."""
        if path.chances is None:
            path.chances = _mix(self._told(path))
        return path.chances

    def learn(self, path: Path, tool: str | None) -> str:
        """The session's next step calls this tool; its label. ``path`` goes on."""
        label = self.label(tool)
        if label != OTHER:
            self._labels[label] = None
        self._count(path, label)
        path.go_on(label)
        return label

    def declare(self, chances: Mapping[str, Chances]) -> None:
        """What somebody says of what follows a label (``START``: of the first step). It counts as
        if it had been seen ``DECLARED`` times, and so gives way to what is seen."""
        for label, following in chances.items():
            key: Hashable = (0, "") if label == START else (self.label(label),)
            followers = self._contexts.get(key) or self._begin(key)
            for one, chance in following.items():
                name = one if one == END else self.label(one)
                for _ in range(max(1, round(DECLARED * chance))):
                    followers.add(name)
        self._state = object()

    def end(self, path: Path) -> None:
        """The session has ended instead."""
        self._count(path, END)

    # ---- inside

    def _count(self, path: Path, label: str) -> None:
        self._weigh(self._told(path), label)
        self._state = object()
        for key in path.contexts:
            (self._contexts.get(key) or self._begin(key)).add(label)

    def _begin(self, key: Hashable) -> _Followers:
        followers = _Followers()
        self._contexts.put(key, followers)
        return followers

    def _told(self, path: Path) -> _Told:
        """Changes nothing, and is worked out once for as long as nothing is learned."""
        state, told = path.told
        if state is not self._state:
            told = self._ask(path)
            path.told = self._state, told
        return told

    def _ask(self, path: Path) -> _Told:
        known = list(enumerate(map(self._contexts.peek, path.contexts)))
        if path.labels:
            known.append((LAST_OWN, path.own.get(path.labels[-1])))
            known.append((ALL_OWN, path.own[""]))
        numbers, weights, followers = told = _Told([], [], [])
        for number, one in known:
            if one is not None and one.total:  # what is declared of it may be nothing
                sure = one.total / (one.total + len(one.counts))
                numbers.append(number)
                weights.append(self._scales[number] * sure * sure)
                followers.append(one)
        return told

    def _weigh(self, told: _Told, label: str) -> None:
        """Experts that gave ``label`` a better chance than the mixture did gain weight."""
        if not told.numbers:
            return
        total = sum(told.weights)
        chances = [one.counts.get(label, 0) / one.total for one in told.followers]
        mixed = sum(map(mul, told.weights, chances)) / total + 1e-3
        gains = [
            weight / total * (chance / mixed - 1.0)
            for weight, chance in zip(told.weights, chances, strict=True)
        ]
        usual = sum(gains) / len(gains)  # only differences matter: without this all would sink
        weights, scales = self._weights, self._scales
        for number, gain in zip(told.numbers, gains, strict=True):
            weight = weights[number] + RATE * (gain - usual)
            if not -FURTHEST < weight < FURTHEST:
                weight = copysign(FURTHEST, weight)
            weights[number], scales[number] = weight, exp(weight)


def _contexts(labels: tuple[str, ...], num_steps: int) -> list[Hashable]:
    """The place in the session, and its last labels: none, one, and so on."""
    place = min(num_steps, PLACES), labels[-1] if labels else ""
    return [place, *[labels[first:] for first in range(len(labels), -1, -1)]]


def _mix(told: _Told) -> Chances:
    chances: dict[str, float] = {}
    least = NEGLIGIBLE * sum(told.weights)
    for weight, followers in zip(told.weights, told.followers, strict=True):
        if weight >= least:
            for label, share in followers.leaders:
                chances[label] = chances.get(label, 0.0) + weight * share
    total = sum(chances.values())
    return {label: chance / total for label, chance in chances.items()}
