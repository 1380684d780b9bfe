"""How loaded engines are, by several measures, kept up to date engine by engine.

A routing decision looks at every engine; between two decisions only a few have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from zlib import crc32

from saga.core.model import Engine

Measure = Literal["requests", "sessions", "committed", "paper"]


def _requests(engine: Engine) -> float:
    """Requests queued for it or with it: what a load balancer without sessions sees."""
    return engine.num_queued + engine.num_waiting + engine.num_running


def _sessions(engine: Engine) -> float:
    """Unfinished sessions that live there."""
    return engine.num_sessions


SESSION_TOKENS = 12_000
"""What a session weighs beyond its context in ``committed``: it will grow, and it takes a place in
the batch whatever its size."""


def _committed(engine: Engine) -> float:
    """KV working set over capacity, with a fixed weight per session."""
    weight = engine.committed_tokens + SESSION_TOKENS * engine.num_sessions
    return weight / engine.kv_capacity_tokens


def _paper(engine: Engine) -> float:
    """0.5 utilisation + 0.5 memory pressure + 0.05 queue depth (the first author's code).

    Utilisation is the batch's fill: a GPU with any work at all is always busy.
    """
    return (
        0.5 * engine.num_running / engine.max_num_seqs
        + 0.5 * engine.memory_pressure
        + 0.05 * (engine.num_queued + engine.num_waiting)
    )


MEASURES: Mapping[Measure, Callable[[Engine], float]] = {
    "requests": _requests,
    "sessions": _sessions,
    "committed": _committed,
    "paper": _paper,
}


def tie_break(*names: object) -> int:
    """A stateless die: the same names give the same number, on any machine and in any run."""
    return crc32("/".join(map(str, names)).encode())


class Loads:
    """The loads of the engines that may be given work. ``touch`` whatever changed."""

    def __init__(self) -> None:
        self._engines: Sequence[Engine] = ()
        self._slots: dict[str, int] = {}
        self._tables: dict[Measure, list[float]] = {}
        self._touched: set[str] = set()
        """Engines that are not up to date in any table; some may have gone."""

    def reset(self, engines: Sequence[Engine]) -> None:
        """Engines came or went."""
        self._engines = engines
        self._slots = {engine.id: slot for slot, engine in enumerate(engines)}
        self._tables.clear()
        self._touched.clear()

    def touch(self, engine: Engine) -> None:
        self._touched.add(engine.id)

    def table(self, measure: Measure) -> Sequence[float]:
        """The load of every engine, in their order."""
        if measure not in self._tables:
            self._tables[measure] = [MEASURES[measure](engine) for engine in self._engines]
        while self._touched:
            slot = self._slots.get(self._touched.pop())
            if slot is not None:
                for known, loads in self._tables.items():
                    loads[slot] = MEASURES[known](self._engines[slot])
        return self._tables[measure]

    def least(self, measure: Measure, salt: str) -> Engine:
        """The engine with the least load; a fixed order of ties would make avalanches."""
        loads = self.table(measure)
        least = min(loads)
        if loads.count(least) == 1:
            return self._engines[loads.index(least)]
        ties = [slot for slot, load in enumerate(loads) if load == least]
        return self._engines[ties[tie_break(salt) % len(ties)]]
