"""Return times: how long until a session asks again, as empirical quantiles per tool."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Sequence
from math import ceil

from saga.core.errors import CoreError

NO_TOOL = "none"
"""The label of a step that names no tool."""


def owner_of(agent_type: str) -> str:
    """Whose agents these are: a gateway's agent types begin with their tenant and a slash."""
    owner, slash, _ = agent_type.partition("/")
    return owner if slash else ""


class Quantiles:
    """Quantiles of the last ``window`` values; nearest rank, so every answer was observed."""

    def __init__(self, window: int = 256) -> None:
        self._recent: deque[int] = deque(maxlen=window)
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def values(self) -> Sequence[int]:
        """All of them, ascending. Not to be changed."""
        return self._sorted

    def observe(self, value: int) -> None:
        if len(self._recent) == self._recent.maxlen:
            oldest = self._recent[0]
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._recent.append(value)
        insort(self._sorted, value)

    def quantile(self, p: float) -> int | None:
        """None before the first value."""
        if not self._sorted:
            return None
        return self._sorted[max(0, ceil(p * len(self._sorted)) - 1)]


class ReturnTimes:
    """Return times by tool and owner of the agents, in bounded memory: the least recently seen tool
    is forgotten. Nothing is learned across owners."""

    def __init__(self, *, window: int = 256, max_tools: int = 4096) -> None:
        if window < 1 or max_tools < 1:
            raise CoreError(f"window {window} and max_tools {max_tools} must be at least 1")
        self._window = window
        self._max_tools = max_tools
        self._by_tool: OrderedDict[tuple[str, str], Quantiles] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_tool)

    def observe(self, tool: str | None, return_us: int, *, owner: str = "") -> None:
        label = owner, tool or NO_TOOL
        history = self._by_tool.get(label)
        if history is None:
            history = self._by_tool[label] = Quantiles(self._window)
            if len(self._by_tool) > self._max_tools:
                self._by_tool.popitem(last=False)
        self._by_tool.move_to_end(label)
        history.observe(return_us)

    def quantile(self, tool: str | None, p: float, *, owner: str = "") -> int | None:
        """Microseconds; None for a tool that has not been seen."""
        history = self._by_tool.get((owner, tool or NO_TOOL))
        return None if history is None else history.quantile(p)
