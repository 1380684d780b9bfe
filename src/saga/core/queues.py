"""Where requests wait inside the scheduler: start-time fair queueing over tenants, with a window.

What it guarantees, and why, is in ``docs/fairness.md``. Every operation is O(log n), amortised.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from saga.core.model import Request

Limit = Callable[[float], float]
"""From the virtual time of the waiting tenant that is furthest behind, to the latest one at which
a tenant may go next."""

LARGEST_SAMPLE = 64
"""Of those that wait, to tell a place among them by."""


@dataclass(slots=True, eq=False)
class Lane:
    """One tenant in one queue: what waits, and how much it was given here."""

    virtual_time: float
    """What it was charged over its share. Never decreases."""
    credit: float = 0.0
    """Charged in excess, to be used up before the virtual time advances again."""
    heap: list[tuple[float, int, Request]] = field(default_factory=list)
    """Its requests, smallest key first; those that left stay until they come up."""
    num_waiting: int = 0
    num_in_flight: int = 0
    """Charged and not settled."""
    is_timed: bool = False
    """This and the next two: whether it is in that heap of the queue, though it may not belong."""
    is_held: bool = False
    is_ahead: bool = False
    offer: int | None = None
    """The number of its valid item among those that may go next; None: there is none."""
    largest_charge: float = 0.0
    """This and the next two: l, eps and b of the bound."""
    largest_error: float = 0.0
    most_in_flight: int = 0
    given: float = 0.0
    """Charges and corrections since it began to wait."""
    began: float = 0.0
    """The time of whoever was furthest behind then."""

    def add(self, amount: float) -> None:
        self.given += amount
        due = amount - self.credit
        self.credit = max(0.0, -due)
        self.virtual_time += max(0.0, due)


class FairQueue:
    """Requests of the tenants within a window of the one furthest behind, smallest key first.

    Equal keys go in order of entry. Without a ``limit`` only the key counts.
    """

    def __init__(self, limit: Limit | None) -> None:
        self._limit = limit
        self.lanes: dict[str, Lane] = {}
        """By tenant: those that wait, have something in flight, or are ahead."""
        self.members: dict[str, tuple[int, Request]] = {}
        """By request id, oldest first; the number tells a re-entry from a stale heap item."""
        self.virtual_time = 0.0
        """The latest time of anybody who was furthest behind at a turn: where entrants start."""
        self.deviation = 0.0
        """The largest deviation so far of a tenant's service from its share, over the bound."""
        self._num_in_flight = 0
        self._window = 0.0
        """The most so far by which a tenant might be ahead at its turn."""
        self._times: list[tuple[float, int, Lane]] = []
        """Every lane that waits, by virtual time; corrected when it comes up."""
        self._held: list[tuple[float, int, Lane]] = []
        """Those that may not go next, likewise."""
        self._offers: list[tuple[float, int, int, Lane]] = []
        """Those that may, by the key and entry of their first request."""
        self._ahead: list[tuple[float, str]] = []
        """Tenants that neither wait nor run, by the time at which they may be forgotten."""
        self._entries = 0
        self._items = 0
        """Numbers that tell heap items apart."""

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, request: Request) -> bool:
        return request.id in self.members

    # ---- who waits

    def push(self, request: Request, key: float) -> None:
        self._entries += 1
        lane = self._lane(self._name(request))
        self.members[request.id] = (self._entries, request)
        heapq.heappush(lane.heap, (key, self._entries, request))
        lane.num_waiting += 1
        if lane.num_waiting == 1:
            self._begin(lane)
        elif lane.offer is not None and lane.heap[0][1] == self._entries:
            self._offer(lane)
        if len(lane.heap) > 2 * lane.num_waiting + 16:  # most of it is stale
            lane.heap[:] = [item for item in lane.heap if not self._stale(item)]
            heapq.heapify(lane.heap)
        if len(self._times) + len(self._held) + len(self._offers) > 4 * len(self.lanes) + 32:
            self._sort_anew()

    def remove(self, request: Request) -> None:
        """The request leaves without having had its turn. O(1); its heap item dies lazily."""
        del self.members[request.id]
        name = self._name(request)
        lane = self.lanes[name]
        lane.num_waiting -= 1
        self._forget(name, lane)

    def num_ahead(self, request: Request, key: float) -> int | None:
        """How many of those that wait would go before a request, of its tenant only where tenants
        are told apart; about so many where many wait. None: nobody waits there."""
        lane = self.lanes.get(self._name(request))
        if lane is None or not lane.num_waiting:
            return None
        step = len(lane.heap) // LARGEST_SAMPLE + 1
        sample = [item for item in lane.heap[::step] if not self._stale(item)]
        ahead = sum(item[0] <= key for item in sample)
        return round(lane.num_waiting * ahead / max(1, len(sample)))

    def oldest(self) -> Request | None:
        """The request that entered first."""
        for _, request in self.members.values():
            return request
        return None

    def requests(self) -> list[Request]:
        """All of them, oldest first."""
        return [request for _, request in self.members.values()]

    # ---- whose turn it is

    def peek(self) -> Request | None:
        """The request whose turn it is."""
        first = self.first(1)
        return first[0] if first else None

    def first(self, num: int) -> list[Request]:
        """The first request of up to ``num`` tenants that may go next, best first."""
        if not self.members:
            return []
        limit = self._latest()
        self._let_in(limit)
        found: list[tuple[float, int, int, Lane]] = []
        while len(found) < num and (item := self._best(limit)) is not None:
            found.append(heapq.heappop(self._offers))
        for item in found:
            heapq.heappush(self._offers, item)
        return [lane.heap[0][2] for _, _, _, lane in found]

    def heads(self) -> list[Request]:
        """The first request of every workflow of the tenants that may go next, best first.
        O(n log n)."""
        limit = self._latest()
        waiting = [
            item
            for lane in self.lanes.values()
            if lane.num_waiting and lane.virtual_time <= limit
            for item in lane.heap
            if not self._stale(item)
        ]
        first: dict[str, Request] = {}
        for _, _, request in sorted(waiting):
            first.setdefault(request.session.workflow.id, request)
        return list(first.values())

    def take(self, request: Request, amount: float = 0.0) -> None:
        """The request has its turn, and is in flight at a charge of ``amount``: service over share,
        by forecast. Any of ``first`` may be taken."""
        self.virtual_time = max(self.virtual_time, self._least())
        name = self._name(request)
        lane = self.lanes[name]
        lane.num_in_flight += 1
        self._num_in_flight += 1
        lane.most_in_flight = max(lane.most_in_flight, lane.num_in_flight)
        lane.largest_charge = max(lane.largest_charge, amount)
        self.remove(request)
        self.correct(name, amount, 0.0)
        while self._ahead and self._ahead[0][0] <= self.virtual_time:
            _, ahead = heapq.heappop(self._ahead)
            self.lanes[ahead].is_ahead = False
            self._forget(ahead, self.lanes[ahead])

    # ---- what they are given

    def correct(self, tenant: str, amount: float, error: float) -> None:
        """What is in flight takes ``amount`` more than it was charged so far, and by now ``error``
        more than at its turn."""
        lane = self._lane(tenant)
        lane.largest_error = max(lane.largest_error, abs(error))
        lane.add(amount)
        if lane.num_waiting and self._limit is not None:
            self._measure(lane)

    def settle(self, tenant: str, amount: float, error: float) -> None:
        """The same, and it is over."""
        lane = self._lane(tenant)
        self.correct(tenant, amount, error)
        lane.num_in_flight -= 1
        self._num_in_flight -= 1
        self._forget(tenant, lane)

    def lead(self, tenant: str) -> float:
        """How far the tenant is ahead of where entrants start."""
        lane = self.lanes.get(tenant)
        return max(0.0, lane.virtual_time - self.virtual_time) if lane is not None else 0.0

    # ---- mechanics

    def _name(self, request: Request) -> str:
        return "" if self._limit is None else request.session.workflow.tenant.id

    def _lane(self, tenant: str) -> Lane:
        name = "" if self._limit is None else tenant
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = Lane(virtual_time=self.virtual_time)
        return lane

    def _begin(self, lane: Lane) -> None:
        """It waits, and did not."""
        lane.virtual_time = max(lane.virtual_time, self.virtual_time)
        if not lane.is_timed:
            lane.is_timed = True
            heapq.heappush(self._times, (lane.virtual_time, self._number(), lane))
        if not lane.is_held and lane.offer is None:
            self._hold(lane)
        lane.given, lane.began = 0.0, self._least()

    def _least(self) -> float:
        """The time of the waiting tenant that is furthest behind."""
        times = self._times
        while times:
            time, number, lane = times[0]
            if not lane.num_waiting:
                heapq.heappop(times)
                lane.is_timed = False
            elif lane.virtual_time > time:
                heapq.heapreplace(times, (lane.virtual_time, number, lane))
            else:
                return time
        return self.virtual_time

    def _latest(self) -> float:
        """The latest time at which a tenant may go next."""
        least = self._least()
        if self._limit is None:
            return least
        limit = self._limit(least)
        self._window = max(self._window, limit - least)
        return limit

    def _let_in(self, limit: float) -> None:
        """Those within the limit may go next."""
        while self._held and self._held[0][0] <= limit:
            _, _, lane = heapq.heappop(self._held)
            lane.is_held = False
            self._place(lane, limit)

    def _place(self, lane: Lane, limit: float) -> None:
        """Puts it where it belongs, if it waits."""
        heap = lane.heap
        while heap and self._stale(heap[0]):
            heapq.heappop(heap)
        if heap and lane.virtual_time <= limit:
            self._offer(lane)
        elif heap:
            self._hold(lane)

    def _hold(self, lane: Lane) -> None:
        lane.is_held = True
        heapq.heappush(self._held, (lane.virtual_time, self._number(), lane))

    def _offer(self, lane: Lane) -> None:
        key, entry, _ = lane.heap[0]
        lane.offer = self._number()
        heapq.heappush(self._offers, (key, entry, lane.offer, lane))

    def _number(self) -> int:
        self._items += 1
        return self._items

    def _sort_anew(self) -> None:
        """Drops whatever belongs to lanes that are gone or elsewhere."""
        for heap in (self._times, self._held, self._offers):
            heap.clear()
        for lane in self.lanes.values():
            lane.is_timed = lane.is_held = lane.num_waiting > 0
            lane.offer = None
            if lane.num_waiting:
                self._times.append((lane.virtual_time, self._number(), lane))
        heapq.heapify(self._times)
        self._held[:] = self._times

    def _best(self, limit: float) -> tuple[float, int, int, Lane] | None:
        """The best offer that holds, which is then on top."""
        offers = self._offers
        while offers:
            _, entry, number, lane = offers[0]
            if lane.offer == number:
                is_head = bool(lane.heap) and lane.heap[0][1] == entry
                if is_head and not self._stale(lane.heap[0]) and lane.virtual_time <= limit:
                    return offers[0]
                lane.offer = None
                heapq.heappop(offers)
                self._place(lane, limit)
            else:
                heapq.heappop(offers)
        return None

    def _forget(self, tenant: str, lane: Lane) -> None:
        """Idleness is not saved up; a lead is kept until the others have caught up."""
        if not (self.members or self._num_in_flight):
            for heap in (self.lanes, self._times, self._held, self._offers, self._ahead):
                heap.clear()
        elif lane.num_waiting or lane.num_in_flight or lane.is_ahead:
            pass
        elif lane.virtual_time <= self.virtual_time:
            del self.lanes[tenant]
        else:
            lane.is_ahead = True
            heapq.heappush(self._ahead, (lane.virtual_time, tenant))

    def _measure(self, lane: Lane) -> None:
        least = self._least()
        bound = self._window + lane.largest_charge + 2 * lane.most_in_flight * lane.largest_error
        if bound > 0.0:
            off = abs(lane.given - (least - lane.began))
            self.deviation = max(self.deviation, off / bound)

    def _stale(self, item: tuple[float, int, Request]) -> bool:
        _, entry, request = item
        return self.members.get(request.id, (0, request))[0] != entry
