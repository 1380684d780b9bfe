"""Where requests wait inside the scheduler: one heap per tenant, all operations O(log n)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from saga.core.model import Request, Tenant


@dataclass(slots=True)
class _Lane:
    """One tenant's requests, smallest key first."""

    tenant: Tenant | None
    heap: list[tuple[float, int, Request]]


class FairQueue:
    """Requests by tenant (smallest virtual time first), then by key, then in order of entry.

    With ``fair=False`` all requests share one lane and only the key counts. Virtual times never
    decrease, which is what lets the heap of tenants be corrected lazily.
    """

    def __init__(self, *, fair: bool) -> None:
        self._fair = fair
        self._lanes: dict[str, _Lane] = {}
        self._turns: list[tuple[float, str, int, _Lane]] = []
        self.members: dict[str, tuple[int, Request]] = {}
        """By request id, oldest first; the number tells a re-entry from a stale heap item."""
        self._entries = 0

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, request: Request) -> bool:
        return request.id in self.members

    def push(self, request: Request, key: float) -> None:
        tenant = request.session.workflow.tenant
        name = tenant.id if self._fair else ""
        self._entries += 1
        lane = self._lanes.get(name)
        if lane is None or (self._fair and lane.tenant is not tenant):  # a new one of that name
            lane = self._lanes[name] = _Lane(tenant if self._fair else None, [])
            virtual_time = tenant.virtual_time if self._fair else 0.0
            heapq.heappush(self._turns, (virtual_time, name, self._entries, lane))
        self.members[request.id] = (self._entries, request)
        heapq.heappush(lane.heap, (key, self._entries, request))
        if len(lane.heap) > 2 * len(self.members) + 16:  # most of it is stale
            lane.heap[:] = [item for item in lane.heap if not self._stale(item)]
            heapq.heapify(lane.heap)

    def remove(self, request: Request) -> None:
        """The request leaves without having had its turn. O(1); its heap item dies lazily."""
        del self.members[request.id]
        if not self.members:  # all that is left is stale
            self._lanes.clear()
            self._turns.clear()

    def oldest(self) -> Request | None:
        """The request that entered first."""
        for _, request in self.members.values():
            return request
        return None

    def requests(self) -> list[Request]:
        """All of them, oldest first."""
        return [request for _, request in self.members.values()]

    def peek(self) -> Request | None:
        """The request whose turn it is."""
        while self._turns:
            virtual_time, name, number, lane = self._turns[0]
            if lane.tenant is not None and lane.tenant.virtual_time > virtual_time:
                heapq.heapreplace(self._turns, (lane.tenant.virtual_time, name, number, lane))
                continue
            while lane.heap and self._stale(lane.heap[0]):
                heapq.heappop(lane.heap)
            if lane.heap:
                return lane.heap[0][2]
            heapq.heappop(self._turns)
            if self._lanes.get(name) is lane:
                del self._lanes[name]
        return None

    def pop(self) -> Request:
        """Takes out the request whose turn it is; IndexError when there is none."""
        request = self.peek()
        if request is None:
            raise IndexError("pop from an empty queue")
        self.remove(request)
        return request

    def _stale(self, item: tuple[float, int, Request]) -> bool:
        _, entry, request = item
        return self.members.get(request.id, (0, request))[0] != entry
