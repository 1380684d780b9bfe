"""Beginnings that requests without a session have in common, such as a chat's system prompt.

To stock vLLM they are hot. Beside sessions, whose KV goes last, they would be the first to go: so a
beginning that was found in the cache is claimed like a session that is back as often as that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

MAX_PREFIXES: Final = 64
"""The one that was found least recently is forgotten first."""
FIRST_US: Final = 10_000_000
"""For how long one stays that was found for the first time."""
SHORTEST_US: Final = 1_000_000
LONGEST_US: Final = 300_000_000
PATIENCE: Final = 3.0
"""How many times its usual gap one stays."""
LEARN: Final = 0.2
"""Weight of the newest gap."""
_MARK: Final = "\0"
"""No session's name begins with it."""


def name_of(blocks: Sequence[int]) -> str:
    """The same for all that begin with the same block, of which only one is claimed at a time."""
    return f"{_MARK}{blocks[0]}"


def is_prefix(name: str) -> bool:
    return name.startswith(_MARK)


class Prefixes:
    """When each was found. Microseconds throughout."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """When last, and the usual gap; 0 if it was found once."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def found(self, name: str, now: int) -> int:
        """For how long it should stay from now on."""
        last, gap = self._found.pop(name, (now, 0.0))
        if last < now:
            gap = now - last if not gap else gap + LEARN * (now - last - gap)
        self._found[name] = (now, gap)
        if len(self._found) > MAX_PREFIXES:
            self._found.popitem(last=False)
        stay = PATIENCE * gap if gap else FIRST_US
        return int(min(max(stay, SHORTEST_US), LONGEST_US))
