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
from math import exp

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

    __slots__ = ("_until", "counts", "leaders", "total")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.total = 0
        self.leaders: list[tuple[str, float]] = []
        """The most frequent ones, with their shares."""
        self._until = 0.0
        """Total up to which they are good enough."""

    def add(self, label: str) -> None:
        self.counts[label] = self.counts.get(label, 0) + 1
        self.total += 1
        if self.total >= FULL:
            self.counts = {one: n // 2 for one, n in self.counts.items() if n > 1}
            self.total = sum(self.counts.values())
            self._until = 0.0
        if self.total > self._until:
            first = sorted(self.counts, key=self.counts.__getitem__, reverse=True)[:NUM_LEADERS]
            self.leaders = [(one, self.counts[one] / self.total) for one in first]
            self._until = self.total * (1.0 + STALE)


NUM_EXPERTS = ORDER + 4
_Told = list[tuple[float, _Followers] | None]
"""What each expert knows of a context, with its weight."""


class Path:
    """What one session has done so far."""

    __slots__ = ("chances", "labels", "num_steps", "own", "told")

    def __init__(self) -> None:
        self.labels: tuple[str, ...] = ()
        """The last ones, at most ``ORDER``."""
        self.num_steps = 0
        self.told: tuple[object, _Told] = (None, [])
        """What a model knows of it, as of that state of the model."""
        self.chances: Chances | None = None
        """As they were told since its last step, so that they are worked out once."""
        self.own: dict[str, _Followers] = {}
        """By label: what followed it in this session. Bounded by the number of labels."""


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
        if path.labels:
            path.own.setdefault(path.labels[-1], _Followers()).add(label)
        path.own.setdefault("", _Followers()).add(label)
        path.labels = (*path.labels, label)[-ORDER:]
        path.num_steps += 1
        path.chances = None
        return label

    def declare(self, chances: Mapping[str, Chances]) -> None:
        """What somebody says of what follows a label (``START``: of the first step). It counts as
        if it had been seen ``DECLARED`` times, and so gives way to what is seen."""
        for label, following in chances.items():
            key: Hashable = (0, "") if label == START else (self.label(label),)
            followers = self._contexts.get(key)
            if followers is None:
                followers = _Followers()
                self._contexts.put(key, followers)
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
        for key in _contexts(path):
            followers = self._contexts.get(key)
            if followers is None:
                followers = _Followers()
                self._contexts.put(key, followers)
            followers.add(label)

    def _told(self, path: Path) -> _Told:
        """Changes nothing, and is worked out once for as long as nothing is learned."""
        state, told = path.told
        if state is not self._state:
            told = self._ask(path)
            path.told = self._state, told
        return told

    def _ask(self, path: Path) -> _Told:
        known: list[_Followers | None] = [self._contexts.peek(key) for key in _contexts(path)]
        known += [None] * (ORDER + 2 - len(known))
        known.append(path.own.get(path.labels[-1]) if path.labels else None)
        known.append(path.own.get(""))
        told: _Told = []
        for scale, one in zip(self._scales, known, strict=True):
            if one is None or not one.total:
                told.append(None)
            else:
                sure = one.total / (one.total + len(one.counts))
                told.append((scale * sure * sure, one))
        return told

    def _weigh(self, told: _Told, label: str) -> None:
        """Experts that gave ``label`` a better chance than the mixture did gain weight."""
        given = [
            (number, one[0], one[1].counts.get(label, 0) / one[1].total)
            for number, one in enumerate(told)
            if one is not None
        ]
        total = sum([weight for _, weight, _ in given])
        if not total:
            return
        mixed = sum([weight * chance for _, weight, chance in given]) / total + 1e-3
        gains = [min(1.0, weight / total * (chance / mixed - 1.0)) for _, weight, chance in given]
        usual = sum(gains) / len(gains)  # only differences matter: without this all would sink
        for (number, _, _), gain in zip(given, gains, strict=True):
            weight = self._weights[number] + RATE * (gain - usual)
            self._weights[number] = weight = max(-FURTHEST, min(FURTHEST, weight))
            self._scales[number] = exp(weight)


def _contexts(path: Path) -> list[Hashable]:
    """The place in the session, and its last labels."""
    labels, place = path.labels, min(path.num_steps, PLACES)
    last = labels[-1] if labels else ""
    return [(place, last), *(labels[len(labels) - order :] for order in range(len(labels) + 1))]


def _mix(told: _Told) -> Chances:
    chances: dict[str, float] = {}
    known = [one for one in told if one is not None]
    least = NEGLIGIBLE * sum(weight for weight, _ in known)
    known = [one for one in known if one[0] >= least]
    for weight, followers in known:
        for label, share in followers.leaders:
            chances[label] = chances.get(label, 0.0) + weight * share
    total = sum(chances.values())
    return {label: chance / total for label, chance in chances.items()}
