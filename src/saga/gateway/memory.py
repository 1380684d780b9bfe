"""Memory that tenants share without being able to push each other out of it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class TenantLru(Generic[K, V]):
    """A mapping for each tenant, all of them together bounded by ``capacity`` entries.

    When it is full, the tenant that adds loses its own least recently used entry if it holds more
    than an equal share, else the tenant that holds most does.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be positive, not {capacity}")
        self._capacity = capacity
        self._held: dict[str, OrderedDict[K, V]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, tenant: str, key: K) -> V | None:
        """The value, which is now the most recently used; None if there is none."""
        held = self._held.get(tenant)
        if held is None or key not in held:
            return None
        held.move_to_end(key)
        return held[key]

    def put(self, tenant: str, key: K, value: V) -> None:
        held = self._held.get(tenant)
        if held is None:
            held = self._held[tenant] = OrderedDict()
        before = len(held)
        held[key] = value
        held.move_to_end(key)
        self._size += len(held) - before
        if self._size > self._capacity:
            self._make_room(tenant)

    def pop(self, tenant: str, key: K) -> None:
        """Drops an entry, if it is there."""
        held = self._held.get(tenant)
        if held is not None and key in held:
            del held[key]
            self._shrunk(tenant)

    def _make_room(self, adding: str) -> None:
        victim = adding
        if len(self._held[adding]) <= self._capacity // len(self._held):
            victim = max(self._held, key=lambda tenant: len(self._held[tenant]))
        self._held[victim].popitem(last=False)
        self._shrunk(victim)

    def _shrunk(self, tenant: str) -> None:
        self._size -= 1
        if not self._held[tenant]:
            del self._held[tenant]
