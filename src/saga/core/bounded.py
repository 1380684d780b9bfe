"""A mapping that forgets: what was not used for long makes room for what is new."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Generations(Generic[K, V]):
    """Holds the entries that were used last: at least half of ``most``, never more than ``most``.

    Two generations; when the young one is full it becomes the old one, and what nobody has used
    since the last time is gone. O(1), without the links of an ordered mapping.
    """

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def peek(self, key: K) -> V | None:
        """Looks without using it."""
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        if found is None and (found := self._old.pop(key, None)) is not None:
            self._put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        self._old.pop(key, None)
        self._put(key, value)

    def drop(self, key: K) -> None:
        self._old.pop(key, None)
        self._young.pop(key, None)

    def _put(self, key: K, value: V) -> None:
        if len(self._young) >= self._half and key not in self._young:
            self._old, self._young = self._young, {}
        self._young[key] = value
