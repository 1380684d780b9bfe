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
        self._turns: list[tuple[float, str]] = []
        self._members: dict[str, tuple[int, Request]] = {}
        """By request id, oldest first; the number tells a re-entry from a stale heap item."""
        self._entries = 0

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, request: Request) -> bool:
        return request.id in self._members

    def push(self, request: Request, key: float) -> None:
        tenant = request.session.workflow.tenant
        name = tenant.id if self._fair else ""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(tenant if self._fair else None, [])
            heapq.heappush(self._turns, (tenant.virtual_time if self._fair else 0.0, name))
        self._entries += 1
        self._members[request.id] = (self._entries, request)
        heapq.heappush(lane.heap, (key, self._entries, request))

    def remove(self, request: Request) -> None:
        """The request leaves without having had its turn. O(1); its heap item dies lazily."""
        del self._members[request.id]

    def oldest(self) -> Request | None:
        """The request that entered first."""
        for _, request in self._members.values():
            return request
        return None

    def requests(self) -> list[Request]:
        """All of them, oldest first."""
        return [request for _, request in self._members.values()]

    def peek(self) -> Request | None:
        """The request whose turn it is."""
        while self._turns:
            virtual_time, name = self._turns[0]
            lane = self._lanes[name]
            self._drop_stale(lane)
            if not lane.heap:
                heapq.heappop(self._turns)
                del self._lanes[name]
            elif lane.tenant is not None and lane.tenant.virtual_time > virtual_time:
                heapq.heapreplace(self._turns, (lane.tenant.virtual_time, name))
            else:
                return lane.heap[0][2]
        return None

    def pop(self) -> Request:
        """Takes out the request whose turn it is; IndexError when there is none."""
        request = self.peek()
        if request is None:
            raise IndexError("pop from an empty queue")
        self.remove(request)
        return request

    def _drop_stale(self, lane: _Lane) -> None:
        while lane.heap:
            _, entry, request = lane.heap[0]
            if self._members.get(request.id, (0, request))[0] == entry:
                return
            heapq.heappop(lane.heap)
